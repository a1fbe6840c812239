"""Tasks from the first cancer treatment: every rule and switch, on patients whose answer is worked out by hand."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.label_cases import CANCER, DAY0, DRUG, Event, answers, end_of, label, on, treated, write_bucket

AKI, NEOPLASM_LIKE_TABLE = "ICD10CM/N179", "ICD10PCS/D7070ZZ"
SECOND = timedelta(seconds=1)
SEEN = "LOINC/718-7"


def answered(folder: Path, events: list[Event], task: str = "aki_icd", **keys: Any) -> dict[int, bool]:
    return answers(label(write_bucket(folder, events), task, **keys)[0])


def test_what_aces_alone_gets_wrong_is_right(tmp_path: Path) -> None:
    """The nine subjects of the published comparison: a plain window of a year calls 3 and 4 negative."""
    events: list[Event] = []
    for subject in range(1, 8):
        events += treated(subject)
    events += [(1, 50, AKI), (2, 400, SEEN), (3, 60, SEEN), (4, 140, SEEN), (4, 150, "MEDS_DEATH")]
    events += [(5, -5, AKI), (5, 400, SEEN), (6, 30, "ICD10PCS/DB021ZZ"), (6, 400, SEEN)]
    events += [(7, 50, "ICD10CM/D701"), (7, 52, "ICD10CM/R5081"), (7, 400, SEEN)]
    events += [(8, 0, "RXNORM/6851"), (8, 400, SEEN), *treated(9), (9, 0, AKI), (9, 400, SEEN)]
    tree = write_bucket(tmp_path, events)
    assert answers(label(tree, "aki_icd")[0]) == {1: True, 2: False, 6: False, 7: False}
    assert answers(label(tree, "mortality")[0]) == {2: False, 4: True, 5: False, 6: False, 7: False, 9: False}
    assert answers(label(tree, "neutropenic_fever")[0])[7] is True


@pytest.mark.parametrize(
    ("moment", "answer"),
    [
        (DAY0 - SECOND, None),
        (DAY0, None),
        (DAY0 + SECOND, True),
        (DAY0 + timedelta(days=365), True),
        (DAY0 + timedelta(days=365) + SECOND, False),
    ],
)
def test_history_ends_with_the_prediction_time_and_the_outcome_begins_behind_it(
    tmp_path: Path, moment: datetime, answer: bool | None
) -> None:
    assert answered(tmp_path, [*treated(1), (1, moment, AKI), (1, 400, SEEN)]).get(1) is answer


@pytest.mark.parametrize(("last", "seen"), [(365, False), (365 + 1 / 86_400, True)])
def test_a_negative_is_proven_by_an_event_behind_the_horizon(tmp_path: Path, last: float, seen: bool) -> None:
    labels, left_out = label(write_bucket(tmp_path, [*treated(1), (1, last, SEEN)]), "aki_icd")
    assert (len(labels), left_out["censored"]) == ((1, 0) if seen else (0, 1))


def test_what_is_billed_later_proves_nothing_of_the_patient(tmp_path: Path) -> None:
    late = (1, 360, SEEN, {"available_time": 380})
    tree = write_bucket(tmp_path, [*treated(1), late])
    assert answers(label(tree, "aki_icd")[0]) == {}
    assert answers(label(tree, "aki_icd", follow_up={"clock": "clock"})[0]) == {1: False}


@pytest.mark.parametrize(("policy", "answer"), [("exclude", None), ("negative", False), ("positive", True)])
def test_death_without_the_outcome_is_a_policy(tmp_path: Path, policy: str, answer: bool | None) -> None:
    tree = write_bucket(tmp_path, [*treated(1), (1, 150, "MEDS_DEATH")])
    labels, left_out = label(tree, "aki_icd", competing_death=policy)
    assert answers(labels).get(1) is answer
    assert left_out.get("competing_death") == (1 if answer is None else None)


def test_the_lost_are_a_policy(tmp_path: Path) -> None:
    assert answered(tmp_path, [*treated(1), (1, 60, SEEN)], censoring="negative") == {1: False}


def test_two_clocks(tmp_path: Path) -> None:
    """The code's date lies before the treatment, and nobody could know it then."""
    coded = (1, -3, AKI, {"available_time": 5})
    tree = write_bucket(tmp_path, [*treated(1), coded, (1, 400, SEEN)])
    assert answers(label(tree, "aki_icd")[0]) == {1: True}
    assert answers(label(tree, "aki_icd", clock="time")[0]) == {}
    assert answers(label(tree, "aki_icd", prior_by="either")[0]) == {}


def test_the_prediction_is_made_when_the_treatment_could_be_known(tmp_path: Path) -> None:
    events: list[Event] = [
        *treated(1)[:2],
        (1, 0, "ICD10PCS/3E03305", {"available_time": 4}),
        (1, 3, AKI),
        (1, 400, SEEN),
    ]
    tree = write_bucket(tmp_path, events)
    assert label(tree, "mortality")[0] == {(1, DAY0 + timedelta(days=4)): False}
    assert label(tree, "mortality", clock="time")[0] == {(1, DAY0): False}
    assert label(tree, "aki_icd")[0] == {}, "the injury was known before the treatment was"


def test_a_date_on_the_day_of_the_treatment_is_prior(tmp_path: Path) -> None:
    events = [*treated(1, 0.4), on(1, 0, AKI), *treated(2, 0.4), on(2, 1, AKI)]
    tree = write_bucket(tmp_path, events)
    assert answers(label(tree, "aki_icd")[0]) == {2: True}
    assert answers(label(tree, "aki_icd", same_day="after")[0]) == {1: True, 2: True}


def test_a_date_that_becomes_known_later_stands_at_that_moment(tmp_path: Path) -> None:
    coded = on(1, 0, AKI, available_time=5)
    assert answered(tmp_path, [*treated(1, 0.4), coded]) == {1: True}


def test_the_first_treatment_decides(tmp_path: Path) -> None:
    """Methotrexate years before the cancer is the first treatment, unless the first that qualifies is asked for."""
    early: Event = (1, -900, "RXNORM/6851")
    tree = write_bucket(tmp_path, [early, *treated(1), (1, 400, SEEN)])
    labels, left_out = label(tree, "mortality")
    assert (labels, left_out["cancer_not_within_365_days"]) == ({}, 1)
    index = {"first_of": "qualifying"}
    assert label(tree, "mortality", index=index)[0] == {(1, DAY0): False}


@pytest.mark.parametrize(
    ("cancer", "need", "labelled"),
    [
        ([-365], {}, True),
        ([-366], {}, False),
        ([0], {}, True),
        ([1], {}, False),
        ([-40], {"least": 2}, False),
        ([-40, -11], {"least": 2}, False),
        ([-40, -10], {"least": 2}, True),
        ([-500, -10], {"least": 2}, False),
        ([-900], {"within_days": None}, True),
    ],
)
def test_cancer_within_the_year_before(tmp_path: Path, cancer: list[int], need: dict[str, Any], labelled: bool) -> None:
    events: list[Event] = [(1, datetime(1970, 1, 1), "MEDS_BIRTH"), (1, 0, DRUG), (1, 400, SEEN)]
    events += [(1, day, CANCER) for day in cancer]
    index = {"requires": [{"codes": "cancer", "within_days": 365, **need}]}
    assert bool(label(write_bucket(tmp_path, events), "mortality", index=index)[0]) is labelled


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("ICD10CM/C7A00", True),
        ("ICD10CM/C7B00", True),
        ("ICD10CM/C4A0", True),
        ("ICD10CM/C969", True),
        ("ICD10CM/C97", False),
        ("ICD10CM/D0511", True),
        ("ICD10CM/D10", False),
        ("ICD10CM/D371", True),
        ("ICD10CM/D49", True),
        ("ICD10CM/D50", False),
        ("ICD10CM/C449", False),
        ("ICD10PCS/C50911", False),
    ],
)
def test_which_codes_are_a_cancer(tmp_path: Path, code: str, is_one: bool) -> None:
    events: list[Event] = [(1, datetime(1970, 1, 1), "MEDS_BIRTH"), (1, -10, code), (1, 0, DRUG), (1, 400, SEEN)]
    assert bool(label(write_bucket(tmp_path, events), "mortality")[0]) is is_one


@pytest.mark.parametrize(
    ("code", "is_one"),
    [
        ("ICD10PCS/3E03305", True),
        ("ICD10PCS/3E0M30M", True),
        ("ICD10PCS/3E03317", False),
        ("ICD10PCS/DB021ZZ", True),
        ("ICD10CM/Z510", True),
        ("ICD10CM/Z5111", True),
        ("ICD10CM/Z5112", True),
        ("ICD10CM/Z5189", False),
        ("CPT4/96413", True),
        ("CPT4/96372", False),
        ("HCPCS/J9045", True),
        ("CPT4/77263", True),
        ("CPT4/77080", False),
        ("ATC/L01XA01", True),
        ("ATC/L02BA01", True),
        ("ATC/L01XX33", False),
        ("RXNORM/140587", False),
        ("RXNORM/161", False),
    ],
)
def test_which_codes_are_a_treatment(tmp_path: Path, code: str, is_one: bool) -> None:
    events: list[Event] = [(1, datetime(1970, 1, 1), "MEDS_BIRTH"), (1, -10, CANCER), (1, 0, code), (1, 400, SEEN)]
    assert bool(label(write_bucket(tmp_path, events), "mortality")[0]) is is_one


def test_a_radiation_table_of_procedures_is_no_neutropenia(tmp_path: Path) -> None:
    """ICD-10-PCS has a table D70, which without its system reads as neutropenia at the index."""
    events: list[Event] = [*treated(1, drug=NEOPLASM_LIKE_TABLE), (1, 0, "ICD10CM/R5081"), (1, 400, SEEN)]
    assert answered(tmp_path, events, "neutropenic_fever") == {1: False}


@pytest.mark.parametrize(
    ("born", "labelled", "rule"),
    [
        (datetime(2002, 1, 1), True, ""),
        (datetime(2002, 1, 1, 23, 59), True, ""),
        (datetime(2002, 1, 2), False, "under_age"),
        (None, False, "age_unknown"),
    ],
)
def test_age_by_the_calendar(tmp_path: Path, born: datetime | None, labelled: bool, rule: str) -> None:
    events: list[Event] = [(1, -10, CANCER), (1, 0, DRUG), (1, 400, SEEN)]
    events += [(1, born, "MEDS_BIRTH")] if born else []
    labels, left_out = label(write_bucket(tmp_path, events), "mortality")
    assert bool(labels) is labelled
    assert not rule or left_out[rule] == 1


def test_births_of_femr_and_of_years(tmp_path: Path) -> None:
    events: list[Event] = [(1, datetime(1970, 1, 1), "SNOMED/3950001", {"time_precision": "year"})]
    assert answered(tmp_path, [*events, (1, -10, CANCER), (1, 0, DRUG), (1, 400, SEEN)], "mortality") == {1: False}


def test_a_fact_without_a_time_is_no_event(tmp_path: Path) -> None:
    """Static rows would stand first or last, and be an outcome, a treatment or a follow-up."""
    events: list[Event] = [*treated(1), (1, None, AKI), (1, None, DRUG), (1, 400, SEEN), *treated(2), (2, None, SEEN)]
    assert answered(tmp_path, events) == {1: False}


def test_washin(tmp_path: Path) -> None:
    tree = write_bucket(tmp_path, [*treated(1)[1:], (1, 400, SEEN), *treated(2)[1:], (2, -90, SEEN), (2, 400, SEEN)])
    index = {"washin_days": 90, "min_age": None}
    labels, left_out = label(tree, "mortality", index=index)
    assert (answers(labels), left_out["washin"]) == ({2: False}, 1)


def test_a_record_does_not_begin_with_a_birth(tmp_path: Path) -> None:
    events: list[Event] = [*treated(1), (1, 400, SEEN), *treated(2), (2, -90, SEEN), (2, 400, SEEN)]
    tree = write_bucket(tmp_path, events)
    for keys in ({}, {"min_age": None}):
        labels, left_out = label(tree, "mortality", index={"washin_days": 90, **keys})
        assert (answers(labels), left_out["washin"]) == ({2: False}, 1)


def test_metastasis_has_a_grace_and_leaves_out_blood_cancers(tmp_path: Path) -> None:
    events: list[Event] = []
    for subject in range(1, 6):
        events += [*treated(subject), (subject, 400, SEEN)]
    events += [(1, 30, "ICD10CM/C787"), (2, 31, "ICD10CM/C787"), (3, 5, "ICD10CM/C8338"), (4, -3, "ICD10CM/C8338")]
    tree = write_bucket(tmp_path, events)
    labels, left_out = label(tree, "metastasis")
    assert answers(labels) == {2: True, 3: False, 5: False}
    assert (left_out["metastasis_in_grace"], left_out["has_haematologic"]) == (1, 1)
    keys: dict[str, Any] = {"outcomes": [{"codes": "metastasis"}], "exclude": []}
    assert answers(label(tree, "metastasis", **keys)[0]) == {1: True, 2: True, 3: False, 4: False, 5: False}


@pytest.mark.parametrize(
    ("code", "is_one"), [("C770", True), ("C7B00", True), ("C800", True), ("C801", False), ("C76", False)]
)
def test_which_codes_are_metastases(tmp_path: Path, code: str, is_one: bool) -> None:
    assert answered(tmp_path, [*treated(1), (1, 100, f"ICD10CM/{code}"), (1, 400, SEEN)], "metastasis") == {1: is_one}


def test_an_own_list_leaves_out_lymph_nodes(tmp_path: Path) -> None:
    site = {"codes": {"metastasis": {"any": ["ICD10CM/C78*"]}}}
    events: list[Event] = [*treated(1), (1, 100, "ICD10CM/C770"), (1, 400, SEEN)]
    assert answered(tmp_path, events, "metastasis", **site) == {1: False}


def test_progression_is_a_composite(tmp_path: Path) -> None:
    events: list[Event] = []
    for subject in range(1, 9):
        events += [*treated(subject), (subject, 400, SEEN)]
    events += [(1, 100, "MEDS_DEATH"), (2, 100, "ICD10CM/C787"), (3, 20, "ICD10CM/C787"), (3, 100, "ICD10CM/C787")]
    events += [(4, 100, "ICD10CM/C9202"), (5, -5, "ICD10CM/C9202"), (5, 100, "ICD10CM/C9202")]
    events += [(6, 60, "RXNORM/56946"), (7, 20, "RXNORM/56946"), (7, 60, "RXNORM/56946"), (8, 60, DRUG)]
    found = answered(tmp_path, events, "progression_proxy")
    assert found == {1: True, 2: True, 3: False, 4: True, 5: False, 6: True, 7: False, 8: False}


@pytest.mark.parametrize(("code", "is_one"), [("C9002", True), ("C9001", False), ("C9502", True), ("C9202", True)])
def test_which_codes_are_relapses(tmp_path: Path, code: str, is_one: bool) -> None:
    assert (
        answered(tmp_path, [*treated(1), (1, 100, f"ICD10CM/{code}"), (1, 400, SEEN)], "progression_proxy")[1] is is_one
    )


@pytest.mark.parametrize("code", ["N186", "Z992", "Z940"])
def test_kidney_failure_before_is_left_out(tmp_path: Path, code: str) -> None:
    events: list[Event] = [*treated(1), (1, 0, f"ICD10CM/{code}"), *treated(2), (2, 1, f"ICD10CM/{code}")]
    events += [(subject, 400, SEEN) for subject in (1, 2)]
    assert answered(tmp_path, events) == {2: False}


@pytest.mark.parametrize(
    ("code", "is_one"),
    [("30233N1", True), ("30243R1", True), ("30233H1", True), ("30233P1", True)]
    + [(f"30233{letter}1", False) for letter in "GXYUCA"]
    + [("30233N0", False), ("30273N1", True)],
)
def test_which_codes_are_transfusions(tmp_path: Path, code: str, is_one: bool) -> None:
    events: list[Event] = [*treated(1), (1, 100, f"ICD10PCS/{code}"), (1, 400, SEEN)]
    assert answered(tmp_path, events, "transfusion") == {1: is_one}


def test_an_earlier_transfusion_is_a_switch(tmp_path: Path) -> None:
    blood = "ICD10PCS/30233N1"
    tree = write_bucket(
        tmp_path, [*treated(1), (1, -5, blood), (1, 400, SEEN), *treated(2), (2, -5, blood), (2, 9, blood)]
    )
    assert answers(label(tree, "transfusion")[0]) == {}
    allowed = {"outcomes": [{"codes": "transfusion", "prior": "allow"}]}
    assert answers(label(tree, "transfusion", **allowed)[0]) == {1: False, 2: True}


def test_nothing_counts_after_death(tmp_path: Path) -> None:
    events: list[Event] = [*treated(1), (1, 100, "MEDS_DEATH"), (1, 101, AKI)]
    tree = write_bucket(tmp_path, events)
    labels, left_out = label(tree, "aki_icd")
    assert (labels, left_out["competing_death"]) == ({}, 1)
    assert answers(label(tree, "aki_icd", after_death="keep")[0]) == {1: True}


def test_what_is_coded_when_the_dead_are_discharged_counts(tmp_path: Path) -> None:
    events: list[Event] = [*treated(1), (1, 100, "MEDS_DEATH"), (1, 99, AKI, {"available_time": 102})]
    assert answered(tmp_path, events) == {1: True}


def test_a_death_date_is_compared_as_a_date(tmp_path: Path) -> None:
    """Facts of the day of death, whatever their hour, are not after it."""
    events: list[Event] = [*treated(1), on(1, 100, "MEDS_DEATH"), (1, 100.9, AKI), *treated(2), on(2, 0, "MEDS_DEATH")]
    tree = write_bucket(tmp_path, events)
    assert answers(label(tree, "aki_icd")[0]) == {1: True}
    assert answers(label(tree, "mortality")[0]) == {1: True, 2: True}


def test_treated_after_death_is_left_out(tmp_path: Path) -> None:
    labels, left_out = label(write_bucket(tmp_path, [*treated(1), (1, -1, "MEDS_DEATH")]), "mortality")
    assert (labels, left_out["not_alive"]) == ({}, 1)


@pytest.mark.parametrize("task", ["mortality", "aki_icd"])
def test_a_death_that_becomes_known_later_proves_no_life(tmp_path: Path, task: str) -> None:
    """Neither a register that reaches beyond it nor what is recorded of the dead makes a negative of him."""
    died: Event = (1, 150, "MEDS_DEATH", {"available_time": 390})
    events: list[Event] = [*treated(1), (1, 10, "HOSPITAL_DISCHARGE/HOME"), died, (1, 400, SEEN), *treated(2)]
    tree = write_bucket(tmp_path, [*events, (2, 10, "HOSPITAL_DISCHARGE/HOME"), (2, 370, "MEDS_DEATH")])
    for follow_up in ({}, {"register_days": 365} if task == "mortality" else {}):
        labels, left_out = label(tree, task, follow_up=follow_up)
        assert (answers(labels), left_out["censored"]) == ({2: False}, 1)


@pytest.mark.parametrize(("day", "answer"), [(27, False), (28, True)])
def test_a_line_that_begins_so_many_dates_later_is_progression(tmp_path: Path, day: int, answer: bool) -> None:
    born: Event = (1, datetime(1970, 1, 1), "MEDS_BIRTH", {"time_precision": "year"})
    events: list[Event] = [born, (1, -10, CANCER), on(1, 0, DRUG), on(1, day, "RXNORM/56946"), (1, 400, SEEN)]
    assert answered(tmp_path, events, "progression_proxy") == {1: answer}


def test_a_register_of_deaths_reaches_a_year_beyond_discharge(tmp_path: Path) -> None:
    """No date of death means alive only as long as somebody looked."""
    events: list[Event] = [
        *treated(1),
        (1, 10, "HOSPITAL_DISCHARGE/HOME"),
        *treated(2),
        (2, -2, "HOSPITAL_DISCHARGE/HOME"),
    ]
    tree = write_bucket(tmp_path, events)
    assert answers(label(tree, "mortality")[0]) == {}
    assert answers(label(tree, "mortality", follow_up={"register_days": 365})[0]) == {1: False}


@pytest.mark.parametrize(
    ("order", "given", "treated_at"),
    [
        (0, 2, 2),  # the order gives way
        (0, 7, 7),
        (0, 8, 0),  # nothing is given within a week of it
        (0, None, 0),
        (3, 1, 1),  # what is given comes first
    ],
)
def test_an_order_gives_way_to_what_is_given(tmp_path: Path, order: int, given: int | None, treated_at: int) -> None:
    """Of drugs the administration decides, not its order; radiation that nobody orders is given itself."""
    ordered, drug = "PRESCRIPTION_START/MAIN/NDC/123", "EMAR/ADMINISTERED/CISPLATIN"
    events: list[Event] = [*treated(1)[:2], (1, order, ordered), (1, 400, SEEN)]
    events += [] if given is None else [(1, given, drug)]
    tree = write_bucket(tmp_path, events, {ordered: ["RXNORM/2555"], drug: ["RXNORM/2555"]})
    assert label(tree, "mortality")[0] == {(1, DAY0 + timedelta(days=treated_at)): False}
    index = {"orders": None}
    first = order if given is None else min(order, given)
    assert label(tree, "mortality", index=index)[0] == {(1, DAY0 + timedelta(days=first)): False}


def test_an_order_of_one_patient_waits_for_none_of_anothers(tmp_path: Path) -> None:
    ordered = "PRESCRIPTION_START/MAIN/NDC/123"
    events: list[Event] = [*treated(1)[:2], (1, 0, ordered), (1, 400, SEEN), *treated(2, 2), (2, 400, SEEN)]
    tree = write_bucket(tmp_path, events, {ordered: ["RXNORM/2555"]})
    assert label(tree, "mortality")[0] == {(1, DAY0): False, (2, DAY0 + timedelta(days=2)): False}


def test_a_parent_makes_a_code_what_it_is(tmp_path: Path) -> None:
    ndc, both = "PRESCRIPTION_START/MAIN/NDC/123", "PRESCRIPTION_END/MAIN/NDC/123"
    parents = {ndc: ["RXNORM/2555"], both: ["RXNORM/2555"], "ICD9CM/1749": ["ICD10CM/C50919"]}
    born: Event = (1, datetime(1970, 1, 1), "MEDS_BIRTH")
    events: list[Event] = [born, (1, -10, "ICD9CM/1749"), (1, -1, both), (1, 0, ndc), (1, 400, SEEN)]
    tree = write_bucket(tmp_path, events, parents)
    assert label(tree, "mortality")[0] == {(1, DAY0): False}, "the end of a drug is no treatment"


def test_a_mapping_of_the_site_makes_a_code_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_text("code,parent\nSNOMED/254837009,ICD10CM/C50911\nHOUSE/CIS,RXNORM/2555\n")
    born: Event = (1, datetime(1970, 1, 1), "MEDS_BIRTH")
    tree = write_bucket(tmp_path, [born, (1, -10, "SNOMED/254837009"), (1, 0, "HOUSE/CIS"), (1, 400, SEEN)])
    assert label(tree, "mortality")[0] == {}
    assert label(tree, "mortality", {"mappings": [str(tmp_path / "ours.csv")]})[0] == {(1, DAY0): False}


def test_attrition_adds_up_by_split(tmp_path: Path) -> None:
    events: list[Event] = [*treated(1), (1, 400, SEEN), *treated(2), (2, 9, AKI), *treated(3), (4, 0, SEEN)]
    splits = {1: "train", 2: "held_out", 3: "tuning"}
    labels, counted = label(write_bucket(tmp_path, events), "aki_icd", splits=splits)
    removed = {rule: number for rule, number in counted.items() if rule not in ("start", "positive", "negative")}
    assert counted["start"] == 4 == sum(removed.values()) + counted["positive"] + counted["negative"]
    assert {rule for rule, number in removed.items() if number} == {"no_cancer", "censored"}
    assert (counted["positive"], counted["negative"], len(labels)) == (1, 1, 2)


def test_other_subjects_do_not_matter(tmp_path: Path) -> None:
    """Each subject alone gives what all give together."""
    events: list[Event] = []
    for subject in range(1, 7):
        events += treated(subject, day=subject * 0.1)
    events += [(1, 400, SEEN), (2, 30, AKI), (3, 40, "MEDS_DEATH"), (4, -5, AKI), (5, 380, AKI)]
    together = label(write_bucket(tmp_path / "all", events), "aki_icd")[0]
    alone: dict[tuple[int, datetime], bool] = {}
    for subject in range(1, 7):
        theirs = [event for event in events if event[0] == subject]
        alone |= label(write_bucket(tmp_path / str(subject), theirs), "aki_icd")[0]
    assert together == alone


def test_the_end_of_a_day_is_the_last_microsecond() -> None:
    assert end_of(0) == datetime(2020, 1, 1, 23, 59, 59, 999999)


def test_the_input_does_not_depend_on_the_answer(tmp_path: Path) -> None:
    """The prediction is made at the same moment for both answers, and how much was recorded by then tells nothing."""
    rng = np.random.default_rng(56)
    events: list[Event] = []
    history = {}
    for subject in range(1, 121):
        history[subject] = int(rng.integers(1, 30))
        events += treated(subject)
        events += [(subject, -float(day), SEEN) for day in rng.random(history[subject]) * 300]
        events += [(subject, 400, SEEN)]
        if rng.random() < 0.5:
            events += [(subject, 30, AKI), *((subject, 31 + day, SEEN) for day in range(40))]
    labels, _ = label(write_bucket(tmp_path, events), "aki_icd")
    assert {moment for _, moment in labels} == {DAY0}
    found = answers(labels)
    with_it, without = (
        np.array([history[subject] for subject in found if found[subject] is value]) for value in (True, False)
    )
    greater = (with_it[:, None] > without).mean() + (with_it[:, None] == without).mean() / 2
    assert len(found) == 120 and abs(greater - 0.5) < 0.1
