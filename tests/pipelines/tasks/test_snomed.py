"""The mapping of SNOMED that docs/tasks.md prints, over a small vocabulary of OMOP; and labels with it and without."""

import re
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.support.label_cases import DAY0, Event, label, write_bucket

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"
DISEASE, BREAST, DUCTAL, CHEMO, CISPLATIN, INJURY, FEBRILE = (
    "363346000", "254837009", "1", "367336001", "2", "14669001", "409089005",
)  # fmt: skip
CONCEPTS = [DISEASE, BREAST, DUCTAL, CHEMO, CISPLATIN, INJURY, FEBRILE]
ABOVE = [(DISEASE, BREAST), (DISEASE, DUCTAL), (BREAST, DUCTAL), (CHEMO, CISPLATIN)]


@pytest.fixture
def mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (sql,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    number = {code: place for place, code in enumerate(CONCEPTS, 1)}
    concept = pl.DataFrame(
        {"concept_id": list(number.values()), "concept_code": CONCEPTS, "vocabulary_id": ["SNOMED"] * len(CONCEPTS)}
    )
    # The same codes of another vocabulary are no concepts of SNOMED.
    other = concept.with_columns(pl.col("concept_id") + 100, pl.lit("ICD10CM").alias("vocabulary_id"))
    ties = [(number[a], number[b]) for a, b in [*ABOVE, *((code, code) for code in CONCEPTS)]]
    ancestor = pl.DataFrame(ties, schema=["ancestor_concept_id", "descendant_concept_id"], orient="row")
    with duckdb.connect() as base:
        base.register("concept", pl.concat([concept, other]).to_arrow())
        base.register("concept_ancestor", ancestor.to_arrow())
        base.execute(sql)
    return tmp_path / "snomed_to_icd10cm.csv"


def test_the_mapping_has_what_lies_below_each_class(mapping: Path) -> None:
    found = set(pl.read_csv(mapping, infer_schema=False).iter_rows())
    assert found == {
        *((f"SNOMED/{code}", "ICD10CM/C801") for code in (DISEASE, BREAST, DUCTAL)),
        *((f"SNOMED/{code}", "ICD10CM/Z5111") for code in (CHEMO, CISPLATIN)),
        (f"SNOMED/{INJURY}", "ICD10CM/N179"),
        (f"SNOMED/{FEBRILE}", "ICD10CM/D709"),
        (f"SNOMED/{FEBRILE}", "ICD10CM/R5081"),
    }


def test_labels_of_conditions_in_snomed(mapping: Path, tmp_path: Path) -> None:
    events: list[Event] = [(1, datetime(1970, 1, 1), "MEDS_BIRTH"), (1, -10, f"SNOMED/{DUCTAL}")]
    events += [(1, 0, f"SNOMED/{CISPLATIN}"), (1, 9, f"SNOMED/{INJURY}"), (1, 20, f"SNOMED/{FEBRILE}")]
    tree = write_bucket(tmp_path, events)
    for task in ("aki_icd", "neutropenic_fever"):
        assert label(tree, task)[0] == {}
        assert label(tree, task, {"mappings": [str(mapping)]})[0] == {(1, DAY0): True}
