"""What changed against the night before, small cells and small differences withheld."""

from pathlib import Path
from typing import Any

from flows.artifacts import changes, shown_device, words
from flows.runs.run import RunOutcome
from validation.report.cells import Cells


def report(**counts: Any) -> dict[str, Any]:
    """Tables of a report: a table of the ledger each, by its events; None where that is withheld."""
    rows = [{"table": name, "raw": 100, "events": events, "quarantined": 0} for name, events in counts.items()]
    return {"counts": {"rows": rows}}


def test_equal_reports_have_no_changes() -> None:
    assert changes(report(labs=80, visits=None), report(labs=80, visits=None), is_open=False) == []


def test_large_differences_are_shown() -> None:
    assert changes(report(labs=80), report(labs=1_100), is_open=False) == [
        {"what": "labs", "number": "events", "before": 80, "now": 1_100, "change": "+1,020"}
    ]


def test_small_differences_and_withheld_numbers_are_not() -> None:
    hidden = {"number": "events", "before": "withheld", "now": "withheld", "change": "changed"}
    assert changes(report(labs=80), report(labs=90), is_open=False) == [{"what": "labs"} | hidden]
    assert changes(report(labs=None), report(labs=200), is_open=False) == [{"what": "labs"} | hidden]
    assert changes(report(labs=200), report(labs=None), is_open=False) == [{"what": "labs"} | hidden]
    assert changes(report(labs=80), report(labs=91), is_open=False)[0]["change"] == "+11"


def test_what_a_withheld_difference_could_be_worked_out_from_is_not_shown() -> None:
    # Six patients more, of three events each.
    before, now = report(patients=300), report(patients=318)
    now["counts"]["rows"][0]["raw"] += 6
    rows = changes(before, now, is_open=False)
    assert [(row["number"], row["change"]) for row in rows] == [("raw", "changed"), ("events", "changed")]
    assert [row["change"] for row in changes(before, now, is_open=True)] == ["+6", "+18"]


def test_nothing_is_withheld_of_simulated_subjects() -> None:
    assert changes(report(labs=80), report(labs=79), is_open=True)[0]["change"] == "-1"


def test_a_table_that_comes_or_goes_is_a_change() -> None:
    rows = changes(report(labs=80), report(visits=80), is_open=False)
    assert {(row["what"], row["number"], row["now"]) for row in rows} == {
        ("labs", "raw", 0), ("labs", "events", 0), ("visits", "raw", 100), ("visits", "events", 80),
    }  # fmt: skip


def test_few_quarantined_items_and_images_are_not_counted() -> None:
    outcome = RunOutcome("2026", published=True, quarantined=7, report=Path("report.html"), steps=[])
    assert words(outcome, Cells(open=False))[1] == "published; fewer than 100 quarantined"
    assert words(outcome, Cells(open=True))[1] == "published; 7 quarantined"
    device = {"worker": "0", "items": 3, "units": 90, "seconds": 1.5, "errors": {"failed_blank": 1}}
    hidden = {"items": "1–10", "units": "1–10", "errors": "1–10"}
    assert shown_device(device, Cells(open=False)) == device | hidden
    many = device | {"items": 30}
    assert shown_device(many, Cells(open=False)) == many | {"errors": {"failed_blank": "1–10"}}
    assert shown_device(device, Cells(open=True)) == device
