"""Studies, their texts and their visits, worked out by hand."""

from typing import Any

import polars as pl
import pytest

from pipelines.clinifuse.settings import TripletsConfig
from pipelines.clinifuse.studies import pair, studies_of, usable
from pipelines.clinifuse.visits import visits_of
from tests.support.visits import events_of, items_of

TEXT = {"modality": "note", "tokens": 50, "kind": "RR", "table": "note/radiology"}
FILM = {"modality": "cxr", "view": "frontal"}


def stay(
    subject: int, visit: int, begin: float, end: float | None, code: str = "HOSPITAL_ADMISSION/URGENT"
) -> list[dict[str, Any]]:
    rows = [{"subject": subject, "visit": visit, "hours": begin, "code": code, "kind": "visit_start"}]
    return (
        rows
        if end is None
        else [*rows, {"subject": subject, "visit": visit, "hours": end, "code": "END", "kind": "visit_end"}]
    )


def studies(items: list[dict[str, Any]], visits: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    paired = pair(items_of(items), visits_of(events_of(visits)), TripletsConfig(**settings))
    return paired.studies.sort("subject_id", "source", "study").to_dicts()


def funnel(
    items: list[dict[str, Any]], visits: list[dict[str, Any]], **settings: Any
) -> dict[tuple[str, str, str], int]:
    paired = pair(items_of(items), visits_of(events_of(visits)), TripletsConfig(**settings))
    return {(source, step, rule): number for source, step, rule, number in paired.funnel.iter_rows()}


ANY_VISIT = stay(9, 1, 0, 1)


def test_images_become_studies_with_those_before() -> None:
    rows = [
        {"subject": 1, "key": "a", "hours": 0, **FILM},
        {"subject": 1, "key": "b", "hours": 0.5, **FILM},
        {"subject": 1, "key": "c", "hours": 48, **FILM},
        {"subject": 1, "key": "d", "hours": 24 * 500, **FILM},
        {"subject": 1, "key": "s", "hours": 0.6, "modality": "wsi"},
        {"subject": 1, "key": "x", "hours": 0.6, "verdict": "failed_blank", **FILM},
        {"subject": 2, "key": "e", "hours": 49, **FILM},
    ]
    config = TripletsConfig()
    found = studies_of(usable(items_of(rows), config), config).sort("subject_id", "source", "low")
    assert found.select("source", "image_keys", "prior_flags").rows() == [
        ("cxr", ["a", "b"], [False, False]),
        ("cxr", ["a", "b", "c"], [True, True, False]),
        ("cxr", ["d"], [False]),
        ("wsi", ["s"], [False]),
        ("cxr", ["e"], [False]),
    ]
    assert found["image_times"].list.len().to_list() == [2, 3, 1, 1, 1]
    more = TripletsConfig(priors=2, prior_days=1000, study_minutes=20)
    found = studies_of(usable(items_of(rows), more), more).filter(pl.col("source") == "cxr").sort("subject_id", "low")
    assert found["image_keys"].to_list() == [["a"], ["a", "b"], ["a", "b", "c"], ["b", "c", "d"], ["e"]]
    assert found["prior_flags"].to_list()[3] == [True, True, False]


@pytest.mark.parametrize(
    ("hours", "rule"),
    [
        (-6.001, "none"),
        (-6, "admission"),
        (0, "admission"),
        (48, "admission"),
        (48.001, "none"),
        (72, "emergency"),
        (75, "emergency"),
        (71.9, "none"),
    ],
)
def test_a_study_is_of_an_admission_from_six_hours_before_it_else_of_an_emergency_stay(hours: float, rule: str) -> None:
    visits = [*stay(1, 7, 0, 48), *stay(1, 8, 72, 75, "ED_ADMISSION/WALK"), *stay(2, 5, -100, 200)]
    items = [{"subject": 1, "key": "a", "hours": hours, **FILM}, {"subject": 1, "key": "t", "hours": hours, **TEXT}]
    (found,) = studies(items, visits)
    assert found["link_rule"] == rule
    assert found["visit_id"] == {"admission": 7, "emergency": 8, "none": None}[rule]


def test_of_several_visits_the_last_to_begin_and_an_admission_before_an_emergency_stay() -> None:
    item = [{"subject": 1, "key": "a", "hours": 10, **FILM}]
    both = [*stay(1, 7, 0, 48), *stay(1, 8, 5, 40), *stay(1, 9, 8, 12, "ED_ADMISSION/WALK")]
    assert studies(item, both)[0]["visit_id"] == 8
    assert studies(item, both, link=("emergency", "admission"))[0]["visit_id"] == 9
    assert studies(item, both, link=("emergency",))[0]["link_rule"] == "emergency"
    assert studies(item, both, link=())[0]["link_rule"] == "none"
    # An intensive care unit's start in the same visit does not hide the admission's.
    unit = [
        *stay(1, 7, 0, 48),
        {"subject": 1, "visit": 7, "hours": -1, "code": "ICU_ADMISSION/X", "kind": "visit_start"},
    ]
    assert studies(item, unit)[0]["link_rule"] == "admission"


def test_a_visit_without_an_end_reaches_its_last_event_and_one_out_of_order_nowhere() -> None:
    open_stay = [*stay(1, 7, 0, None), {"subject": 1, "visit": 7, "hours": 20, "code": "LOINC/1"}]
    for hours, rule in ((20, "admission"), (21, "none")):
        assert studies([{"subject": 1, "key": "a", "hours": hours, **FILM}], open_stay)[0]["link_rule"] == rule
    paired = pair(
        items_of([{"subject": 1, "key": "a", "hours": 0, **FILM}]),
        visits_of(events_of(stay(1, 7, 0, -5))),
        TripletsConfig(),
    )
    assert (paired.out_of_order, paired.studies["link_rule"].to_list()) == (1, ["none"])


def test_what_is_known_by_day_may_be_of_any_moment_of_it() -> None:
    """A slide of a day stands at the day's end: after the discharge of that day, and it is of the stay all the same."""
    end_of_day = 24 - 1e-9
    slide = {"subject": 1, "key": "s", "modality": "wsi", "hours": end_of_day, "precision": "day"}
    assert studies([slide], stay(1, 7, 2, 14))[0]["link_rule"] == "admission"
    assert studies([slide | {"precision": "s"}], stay(1, 7, 2, 14))[0]["link_rule"] == "none"


def test_a_report_is_of_the_study_nearest_to_it() -> None:
    items = [
        {"subject": 1, "key": "a", "hours": 0, **FILM},
        {"subject": 1, "key": "b", "hours": 20, **FILM},
        {"subject": 1, "key": "late", "hours": 19, **TEXT},  # an hour before b: of b
        {"subject": 1, "key": "nearer", "hours": 2, **TEXT},
        {"subject": 1, "key": "far", "hours": 3, **TEXT},
        {"subject": 2, "key": "other", "hours": 0, **TEXT},
        {"subject": 3, "key": "c", "hours": 0, **FILM},
        {"subject": 3, "key": "too early", "hours": -1.1, **TEXT},
        {"subject": 3, "key": "too late", "hours": 24.1, **TEXT},
    ]
    found = {row["image_keys"][-1]: row["text_key"] for row in studies(items, ANY_VISIT)}
    assert found == {"a": "nearer", "b": "late", "c": None}
    found = {row["image_keys"][-1]: row["text_key"] for row in studies(items, ANY_VISIT, report_hours={"cxr": 25})}
    assert found["c"] == "too late"


def test_summaries_stand_in_for_reports_of_an_admission() -> None:
    summary = TEXT | {"kind": "DS", "table": "note/discharge"}
    items = [
        {"subject": 1, "key": "a", "hours": 1, **FILM},
        {"subject": 1, "key": "b", "hours": 30, **FILM},
        {"subject": 1, "key": "c", "hours": 500, **FILM},
        {"subject": 1, "key": "report", "hours": 2, **TEXT},
        {"subject": 1, "key": "first", "hours": 48, **summary},
        {"subject": 1, "key": "last", "hours": 50, **summary},
        {"subject": 1, "key": "stranger", "hours": 48 + 73, **summary},
    ]
    found = {row["image_keys"][-1]: (row["text_key"], row["text_role"]) for row in studies(items, stay(1, 7, 0, 48))}
    assert found == {"a": ("report", "report"), "b": ("last", "summary"), "c": (None, "none")}
    none = studies(items, stay(1, 7, 0, 48), summaries=(), kinds=("RR",))
    assert [row["text_role"] for row in none] == ["report", "none", "none"]


def test_the_funnel_adds_up() -> None:
    items = [
        {"subject": 1, "key": "a", "hours": 1, **FILM},
        {"subject": 1, "key": "side", "hours": 1, **FILM, "view": "lateral"},
        {"subject": 1, "key": "report", "hours": 2, **TEXT},
        {"subject": 1, "key": "short", "hours": 3, **TEXT, "tokens": 3},
        {"subject": 1, "key": "spare", "hours": 4, **TEXT},
        {"subject": 2, "key": "b", "hours": 1, **FILM},
        {"subject": 3, "key": "alone", "hours": 1, **TEXT},
        {"subject": 4, "key": "c", "hours": 0, **FILM},
        {"subject": 4, "key": "years later", "hours": 9000, **TEXT},
    ]
    assert funnel(items, stay(1, 7, 0, 48), views=("frontal",)) == {
        ("cxr", "images", "taken"): 3,
        ("cxr", "images", "other_view"): 1,
        ("cxr", "text", "report"): 1,
        ("cxr", "text", "none"): 2,
        ("cxr", "visit", "admission"): 1,
        ("note", "texts", "report"): 1,
        ("note", "texts", "too_short"): 1,
        ("note", "texts", "of_no_study"): 3,
        ("all", "subjects", "triplet"): 1,
        ("all", "subjects", "images_alone"): 1,
        ("all", "subjects", "texts_alone"): 1,
        ("all", "subjects", "unpaired"): 1,
    }


def test_modalities_and_views_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="images names note: write some of ct, wsi, ecg, cxr"):
        TripletsConfig(images=("note",))
    with pytest.raises(ValueError, match="texts names cxr: write some of note"):
        TripletsConfig(texts=("cxr",))
    with pytest.raises(ValueError, match="views names PA: write some of frontal"):
        TripletsConfig(views=("PA",))
