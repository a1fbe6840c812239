"""Tables taken together: what a table hides cannot be worked out from another table."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from validation.measure.cohort.subjects import IMAGING, INTERVALS, MODALITY_SETS, QUANTILES, STRUCTURED
from validation.measurements import Measurements
from validation.report import figures
from validation.report.cells import SMALL, WITHHELD, Cells, Hidden
from validation.report.ledger_tables import availability_table
from validation.report.table import Table
from validation.report.tables import (
    balance_table,
    cohort_table,
    histogram_table,
    sets_table,
    shard_table,
    withheld_splits,
)

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
    return {str(row["split"]): row for row in shard_table(measurements(shards=shards()), cohort, (), cells).rows}


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


PATIENTS = {"train": 400, "tuning": 5, "held_out": 40}


def counted() -> Measurements:
    """Tuning has 5 patients: held_out's 40 are withheld for their sake, whatever they are counted by."""
    schemes = pl.DataFrame({"scheme": "s", "split": list(PATIENTS), "subjects": list(PATIENTS.values())})
    statistics = {f"{name}_n": 40 for name in ("length", *INTERVALS)}
    statistics |= {f"{name}_{of}": 1.0 for name in ("length", *INTERVALS) for of in ("mean", "sd", *QUANTILES)}
    cohorts = [
        {"population": population, "split": split, "subjects": patients, "share": patients / 445, "tokens": 9_000}
        | statistics
        for population in (STRUCTURED, IMAGING)
        for split, patients in PATIENTS.items()
    ]
    # Everyone has CT, and timelines are of two lengths.
    groups = [
        (split, patients, half) for split, patients in PATIENTS.items() for half in (patients // 2, -patients // 2)
    ]
    sets = [
        {"split": split, "set": kind, "subjects": patients if kind == MODALITY_SETS[1] else 0, "share": 1.0}
        for split, patients in PATIENTS.items()
        for kind in MODALITY_SETS
    ]
    lengths = [
        {"split": split, "low": 2 ** (1 + (half < 0)), "subjects": abs(half), "share": 0.5} for split, _, half in groups
    ]
    return cast(
        Measurements,
        SimpleNamespace(
            areas={"splits": schemes},
            cohorts=pl.DataFrame(cohorts),
            sets=pl.DataFrame(sets),
            histogram=pl.DataFrame(lengths),
            length_unit="tokens of mehrt",
        ),
    )


def test_a_split_that_is_withheld_is_not_the_sum_of_what_is_shown() -> None:
    made = counted()
    withheld = withheld_splits(made.areas["splits"], CLOSED)
    assert withheld == {"tuning", "held_out"}
    assert withheld_splits(made.areas["splits"], OPEN) == frozenset()
    sets = sets_table(made, withheld, CLOSED)
    tables = [sets, histogram_table(made, withheld, CLOSED)]
    tables += [cohort_table(made, sets, population, withheld, CLOSED) for population in (STRUCTURED, IMAGING)]
    for table in tables:
        for row in table.rows:
            if row["split"] != "train":
                assert isinstance(row["subjects"], Hidden) or row["subjects"] == 0, (table.name, row)
                assert isinstance(row["share"], Hidden) or row["subjects"] == 0, (table.name, row)
    # A plan of one patient a pack has as many packs as the split has patients.
    alone = shards().with_columns(
        plan=pl.lit("alone"), packs=pl.Series(PATIENTS.values()), subjects_shards=pl.Series(PATIENTS.values())
    )
    rows = {
        row["split"]: row
        for row in shard_table(measurements(shards=alone), Table("a", "", [], []), withheld, CLOSED).rows
    }
    assert (rows["train"]["packs"], rows["tuning"]["packs"], rows["held_out"]["packs"]) == (400, WITHHELD, WITHHELD)


def test_a_total_beside_its_parts_gives_none_of_them_away() -> None:
    """Ninety-nine less the ninety-five of one modality are the four of the other."""
    assert [CLOSED.about(value) for value in (0, 4, 99, 104, 12_345)] == [
        "0", "fewer than 100", "fewer than 100", "about 100", "about 12,000",
    ]  # fmt: skip
    assert OPEN.about(99) == "99"


def test_a_share_that_is_hidden_is_not_drawn_as_none() -> None:
    rows = [
        {"split": split, "set": kind, "subjects": None, "share": share}
        for split, shares in (("train", (0.9, 0.1)), ("tuning", (WITHHELD, 0.0)))
        for kind, share in zip(("structured only", "CT"), shares, strict=True)
    ]
    figure: Any = figures.modality_figure(Table("figure_a1", "", [], cast(Any, rows)))
    bars = [(bar.get_width(), bar.get_hatch()) for bar in figure.axes[0].patches]
    assert sorted(width for width, hatch in bars if not hatch) == [0, 0, 10, 90]
    # The one that is hidden covers whatever it may be, and is named.
    assert [width for width, hatch in bars if hatch] == [100]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts) == ["0.0 %", "10.0 %", "90.0 %", "withheld (tuning)"]


def test_a_length_that_is_hidden_is_a_gap_that_the_legend_names() -> None:
    rows = [
        {"split": split, "low": 2**place, "subjects": None, "share": share}
        for split, shares in (("train", (0.5, 0.5)), ("tuning", (0.0, WITHHELD)), ("held_out", (WITHHELD, WITHHELD)))
        for place, share in enumerate(shares, 4)
    ]
    figure: Any = figures.length_figure(Table("lengths", "", [], cast(Any, rows)), "events")
    heights = [np.isnan(step.get_data().values).tolist() for step in figure.axes[0].patches]
    assert heights == [[False, False], [False, True], [True, True]]
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == ["train", "tuning (gaps withheld)", "held_out (withheld)"]
