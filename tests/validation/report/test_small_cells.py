"""Tables taken together: what a table hides cannot be worked out from another table."""

from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest

from validation.measurements import Measurements
from validation.report.cells import SMALL, WITHHELD, Cells, Hidden
from validation.report.ledger_tables import availability_table
from validation.report.table import Table
from validation.report.tables import balance_table, shard_table

CLOSED, OPEN = Cells(open=False), Cells(open=True)
SPLITS = ["train", "tuning", "held_out"]


def measurements(annotations: pl.DataFrame | None = None, **areas: pl.DataFrame) -> Measurements:
    return cast(Measurements, SimpleNamespace(areas=areas, annotations=annotations))


def shards() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "profile": "mehrt",
            "plan": "default",
            "split": SPLITS,
            "packs": [37, 2, 4],
            "subjects_shards": [425, 25, 50],
            "tokens_timeline": [74_650, 3_835, 8_123],
            "tokens_dropped": 0,
            "tokens_shards": [74_650, 3_835, 8_123],
            "token_difference": 0,
            "fill": [0.98517, 0.93641, 0.99149],
            "max_segments": [12, 9, 11],
            "image_places": [172, 10, 16],
        }
    )


def by_split(cells: Cells) -> dict[str, dict[str, Any]]:
    cohort = Table("a", "", [], [{"split": split, "subjects": 100} for split in SPLITS])
    return {str(row["split"]): row for row in shard_table(measurements(shards=shards()), cohort, cells).rows}


def test_a_splits_few_images_are_neither_what_is_left_of_all_nor_a_difference_of_tokens() -> None:
    rows = by_split(CLOSED)
    assert [rows[split]["image_places"] for split in SPLITS] == [172, SMALL, WITHHELD]
    # Table A1 has 3,825 tokens that are no images.
    assert [rows[split]["tokens_shards"] for split in SPLITS] == [74_000, 3_800, 8_100]
    assert rows["tuning"]["fill"] == 0.94
    tuning = by_split(OPEN)["tuning"]
    assert (tuning["tokens_shards"], tuning["image_places"], tuning["fill"]) == (3_835, 10, 0.93641)


@pytest.mark.parametrize(("subjects", "shown"), [(25, WITHHELD), (1_999, WITHHELD), (200_000, 0.05)])
def test_a_share_of_modalities_tells_no_number_of_patients(subjects: int, shown: float | Hidden) -> None:
    line = dict.fromkeys(("length_ks", "length_smd", "interval_smd"), 0.001)
    lines = [
        {"scheme": "s", "split": split, "subjects": number, "target": 0.5, "share": 0.5, "set_aside": 0, **line}
        | {"modality_points": points}
        for split, number, points in (("train", 400_000, None), ("tuning", subjects, 0.0512))
    ]
    (_, tuning) = balance_table(measurements(splits=pl.DataFrame(lines)), CLOSED).rows
    assert tuning["modality_points"] == (shown if isinstance(shown, Hidden) else pytest.approx(shown))
    (_, open_tuning) = balance_table(measurements(splits=pl.DataFrame(lines)), OPEN).rows
    assert open_tuning["modality_points"] == 0.0512


@pytest.mark.parametrize(("failed", "shown"), [(1, WITHHELD), (11, 136)])
def test_events_of_images_do_not_tell_how_few_failed(failed: int, shown: int | Hidden) -> None:
    annotations = pl.DataFrame(
        {"source": ["images/ct"], "recorded": 0, "time": 136, "estimated": 0, "static": 0, "timed": 136}
    )
    items = pl.DataFrame({"modality": "ct", "verdict": ["ok", "failed_unreadable"], "items": [134, failed]})
    (row,) = availability_table(measurements(annotations=annotations, items=items), Table("l", "", [], []), CLOSED).rows
    assert row["time"] == shown
