"""The report's table of what vocabularies know: summed per split and namespace, small counts hidden."""

from pathlib import Path

import polars as pl

from validation.measure.coverage import measure_coverage
from validation.report.cells import SMALL, WITHHELD, Cells
from validation.report.vocabulary_tables import coverage_table
from warehouse.layout import ReleaseLayout

COUNTED = [
    ("train", "LOINC", "token", "", 200),
    ("train", "LOINC", "dropped", "not_numeric", 40),
    ("train", "LOINC", "dropped", "not_in_top", 60),
    ("held_out", "LOINC", "token", "", 150),
    ("held_out", "LOINC", "unknown", "", 50),
    ("tuning", "ICD10CM", "token", "", 97),
    ("tuning", "ICD10CM", "unknown", "", 3),
]


def measured(folder: Path) -> pl.DataFrame:
    tree = ReleaseLayout(folder)
    path = tree.coverage("ethos")
    path.parent.mkdir(parents=True)
    pl.DataFrame(COUNTED, schema=["split", "namespace", "outcome", "reason", "count"], orient="row").write_parquet(path)
    return measure_coverage(tree, ["ethos", "a profile without the file"])


def test_tokens_unknown_and_left_out_are_summed_by_split(tmp_path: Path) -> None:
    rows = coverage_table(measured(tmp_path), Cells(open=True)).rows
    assert rows == [
        {"profile": "ethos", "namespace": "ICD10CM", "tokens": 100, "dropped": 0,
         "train": None, "tuning": 0.03, "held_out": None},
        {"profile": "ethos", "namespace": "LOINC", "tokens": 400, "dropped": 100,
         "train": 0.0, "tuning": None, "held_out": 0.25},
    ]  # fmt: skip


def test_a_share_that_gives_a_small_count_away_is_withheld(tmp_path: Path) -> None:
    diagnoses, labs = coverage_table(measured(tmp_path), Cells(open=False)).rows
    assert diagnoses["tuning"] == WITHHELD
    assert labs["held_out"] == 0.25
    small = measured(tmp_path / "small").with_columns(
        pl.lit(7).cast(pl.Int64).alias("tokens"), unknown=pl.lit(0).cast(pl.Int64)
    )
    assert {row["tokens"] for row in coverage_table(small.head(1), Cells(open=False)).rows} == {SMALL}
