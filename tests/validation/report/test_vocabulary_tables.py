"""The report's table of what vocabularies know: summed per split and namespace, small counts hidden."""

from pathlib import Path

import polars as pl

from validation.measure.profiles.coverage import measure_coverage
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
    rows = coverage_table(measured(tmp_path), (), Cells(open=True)).rows
    assert rows == [
        {"profile": "ethos", "namespace": "ICD10CM", "tokens": 100, "dropped": 0,
         "train": None, "tuning": 0.03, "held_out": None},
        {"profile": "ethos", "namespace": "LOINC", "tokens": 400, "dropped": 100,
         "train": 0.0, "tuning": None, "held_out": 0.25},
    ]  # fmt: skip


def test_a_share_that_gives_a_small_count_away_is_withheld(tmp_path: Path) -> None:
    diagnoses, labs = coverage_table(measured(tmp_path), (), Cells(open=False)).rows
    assert diagnoses["tuning"] == WITHHELD
    assert labs["held_out"] == 0.25
    small = measured(tmp_path / "small").with_columns(
        pl.lit(7).cast(pl.Int64).alias("tokens"), unknown=pl.lit(0).cast(pl.Int64)
    )
    assert {row["tokens"] for row in coverage_table(small.head(1), (), Cells(open=False)).rows} == {SMALL}


def test_a_share_of_unknown_tokens_tells_neither_its_fraction_nor_a_split_that_is_withheld() -> None:
    """As it is, a share of 0.09688581… is 28 of 289 and of nothing smaller."""
    coverage = pl.DataFrame(
        {"profile": "mehrt", "namespace": "ICD10CM", "split": ["train", "tuning", "held_out"]}
        | {"tokens": [5_000, 289, 313], "dropped": 0, "unknown": [0, 28, 31]}
    )
    assert coverage_table(coverage, (), Cells(open=True)).rows[0]["tuning"] == 28 / 289
    (row,) = coverage_table(coverage, {"tuning"}, Cells(open=False)).rows
    assert (row["train"], row["tuning"], row["held_out"]) == (0, WITHHELD, 0.099)
    fractions = {
        (above, below) for below in range(1, 400) for above in range(below) if round(above / below, 3) == 0.099
    }
    assert len(fractions) > 50
