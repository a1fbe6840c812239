"""Events as the align stage holds them: numbers for texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from extractors.events.converted import AVAILABILITY
from extractors.events.times import PRECISIONS
from extractors.events.values import FLAGS
from pipelines.aligning.bucket_rows import KINDS, BucketRows, BucketTexts
from warehouse.arrays import NO_TIME


def narrow(events: pl.DataFrame) -> tuple[BucketRows, BucketTexts]:
    """Rows of columns of EVENTS, `row_hash` and `rule`, and what their numbers stand for."""

    def texts(column: str) -> list[str]:
        return sorted({text for text in events[column] if text is not None})

    def numbers(column: str, names: Sequence[str], dtype: Any) -> np.ndarray[Any, Any]:
        none = np.iinfo(dtype).max
        return np.array([none if text is None else list(names).index(text) for text in events[column]], dtype)

    def values(column: str, none: int = 0) -> Any:
        return events[column].to_physical().fill_null(none).to_numpy()

    codes, units, sources, items, others = map(texts, ("code", "unit", "source", "item_key", "text_value"))
    rows = BucketRows(
        subject=values("subject_id"),
        time=values("time", NO_TIME),
        code=numbers("code", codes, np.uint32),
        number=values("numeric_value"),
        has_number=events["numeric_value"].is_not_null().to_numpy(),
        # Texts of values stand in no order.
        text=numbers("text_value", others[::-1], np.uint32),
        available=values("available_time", NO_TIME),
        precision=numbers("time_precision", PRECISIONS, np.uint8),
        kind=numbers("kind", KINDS, np.uint8),
        unit=numbers("unit", units, np.uint32),
        source=numbers("source", sources, np.uint16),
        visit=values("visit_id"),
        has_visit=events["visit_id"].is_not_null().to_numpy(),
        item=numbers("item_key", items, np.uint32),
        availability=numbers("availability", AVAILABILITY, np.uint8),
        flag=numbers("value_flag", FLAGS, np.uint8),
        rule=values("rule").astype(np.uint16),
        row_hash=values("row_hash").astype(np.uint64),
    )
    arrays = (pa.array(texts, pa.string()) for texts in (codes, units))
    return rows, BucketTexts(*arrays, sources, pa.array(items, pa.string()), pa.array(others[::-1], pa.large_string()))
