"""A conversion stops where a table's rows, or the keys of its joins, are read wrongly."""

from typing import Any

import pytest

from pipelines import meds
from pipelines.engine.context import StageReport
from pipelines.limits import LimitsConfig
from warehouse.errors import TimeloomError
from warehouse.manifest import TaskEntry


def report_of(*parts: dict[str, Any]) -> StageReport:
    """What the stage counted of raw files, each with its table."""
    whole = {"quarantined": {}, "joins": {}, "raw": 0}
    entries = {str(at): TaskEntry(fingerprint="", files={}, counts=whole | part) for at, part in enumerate(parts)}
    return StageReport("meds", entries=entries)


def labs(raw: int, **quarantined: int) -> dict[str, Any]:
    return {"table": "labs", "raw": raw, "quarantined": quarantined}


@pytest.mark.parametrize(
    "part",
    [
        labs(0),
        labs(1, bad_subject_id=1),  # an empty table as some databases write it
        labs(20, malformed_row=19),  # too few rows to judge a share
        labs(20, no_rule_applies=20),
        labs(100, malformed_row=10),
        labs(100, missing_time=50),
        labs(100, unmapped_table=100),
    ],
)
def test_rows_within_the_limits_pass(part: dict[str, Any]) -> None:
    meds.check_rows(report_of(part), LimitsConfig())


@pytest.mark.parametrize(
    ("part", "said", "key"),
    [
        (labs(20, malformed_row=20), "20 of 20 rows make nothing (20 malformed_row)", "malformed"),
        (labs(2, bad_subject_id=2), "2 of 2 rows make nothing (2 bad_subject_id)", "quarantined"),
        (labs(20, no_rule_applies=19, missing_code=1), "20 of 20", "quarantined"),
        (labs(100, no_rule_applies=100), "100 of 100", "quarantined"),
        (labs(100, malformed_row=11), "11 of 100", "malformed"),
        (labs(100, missing_time=41, malformed_row=10), "51 of 100 rows make nothing (41 missing", "quarantined"),
    ],
)  # fmt: skip
def test_a_table_that_is_read_wrongly_stops_the_run(part: dict[str, Any], said: str, key: str) -> None:
    with pytest.raises(TimeloomError) as caught:
        meds.check_rows(report_of(part, {"table": "notes", "raw": 5}), LimitsConfig())
    assert f"table labs: {said}" in str(caught.value)
    assert caught.value.remedy.endswith(f"raise limits.{key}")
    meds.check_rows(report_of(part), LimitsConfig(malformed=1, quarantined=1))


def test_the_files_of_a_table_are_judged_together() -> None:
    meds.check_rows(report_of(labs(60, malformed_row=10), labs(60)), LimitsConfig())
    with pytest.raises(TimeloomError, match="20 of 120"):
        meds.check_rows(report_of(labs(60, malformed_row=10), labs(60, malformed_row=10)), LimitsConfig())


def joined(asked: int, missed: int, *, optional: bool = False) -> dict[str, Any]:
    counts = {"asked": asked, "missed": missed, "optional": int(optional)}
    return {"table": "labs", "joins": {"visits by visit": counts}}


def test_a_join_that_misses_most_keys_stops_the_run_unless_the_source_can_do_without_it() -> None:
    for part in (joined(100, 50), joined(49, 49), joined(100, 100, optional=True)):
        meds.check_joins(report_of(part), LimitsConfig())
    with pytest.raises(TimeloomError, match="table labs: 60 of 110 rows find nothing in visits by visit") as caught:
        meds.check_joins(report_of(joined(60, 10), joined(50, 50)), LimitsConfig())
    assert caught.value.remedy.endswith("limits.missed_joins")
    meds.check_joins(report_of(joined(100, 60)), LimitsConfig(missed_joins=0.6))
