"""Rules of profiles: codes to pieces and back, parents, values, intervals, demographics, and refused rules."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.profiles import NamespaceRule, Piece, ProfileConfig, built_in, codes_of, pieces_of, with_rules
from pipelines.profiles.codes import groups_of
from pipelines.profiles.intervals import DAY, SPECIFICATIONS, between, interval_tokens
from tests.support.tokens.timelines import events, fitted, left_out, named_tokens, usable
from warehouse.errors import TimeloomError
from warehouse.tokens import RESERVED, TIMELINE_END

MEHRT, ETHOS = built_in("mehrt-paper"), built_in("ethos-paper")
SEVEN = built_in("mehrt-paper", codes={"ICD10PCS": {"pieces": "1+1+1+1+1+1+1"}})
FUSED = ETHOS.model_copy(update={"values": "fused"})
NOON = datetime(2020, 6, 1, 12)


def pieces(code: str, profile: ProfileConfig = MEHRT) -> list[str]:
    return pieces_of(pl.Series([code]), profile)["token"].to_list()


# --- codes and back


def test_procedures_in_seven_know_their_place() -> None:
    expected = [f"ICD10PCS/{place}/{character}" for place, character in enumerate("30233N1", 1)]
    assert pieces("ICD10PCS/30233N1", SEVEN) == expected
    assert codes_of(expected, SEVEN) == ["ICD10PCS/30233N1"]
    # Without the places, the first 3 and the last 3 would be the same token.
    assert len(set(pieces("ICD10PCS/3023333", SEVEN))) == 7


def test_atc_in_three() -> None:
    assert pieces("ATC/L01XA01", ETHOS) == ["ATC/L01", "ATC/4/X", "ATC/5/A01"]
    assert pieces("ATC/L01", ETHOS) == ["ATC/L01"]


PARTS = ["A", "1", "/", "-", "Q", "[", "]", "4-6", "VALUE/Q1", "CODE/", "//Q7", "é", " ", "3023"]
STRANGE = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)
NAMESPACES = ["ICD10CM/", "ICD10PCS/", "ATC/", "LOINC/", "ICD10CM", "VALUE/", "INTERVAL/", "CODE/", "[", "", "X//"]
ANY_CODE = st.builds(lambda start, rest: (start + rest) or "X", st.sampled_from(NAMESPACES), STRANGE)


@pytest.mark.whole
@settings(max_examples=300, deadline=None)
@given(st.lists(ANY_CODE, min_size=1, max_size=12, unique=True), st.sampled_from([MEHRT, SEVEN, ETHOS, FUSED]))
def test_every_code_comes_back_and_no_token_has_two_meanings(codes: list[str], profile: ProfileConfig) -> None:
    found = pieces_of(pl.Series(codes), profile)
    whole = found.group_by("code", maintain_order=True).agg("token")
    assert codes_of(found["token"].to_list(), profile) == whole["code"].to_list() == sorted(codes)
    token_lists = [tuple(tokens) for tokens in whole["token"].to_list()]
    assert len(set(token_lists)) == len(token_lists)
    # Each token has one place in a code, and it is not a token that the rules reserve.
    assert found.group_by("token").agg(pl.col("piece").n_unique())["piece"].max() == 1
    named = {name for name, _ in RESERVED} | {TIMELINE_END} | set(interval_tokens("ethos19"))
    assert not set(found["token"]) & named
    assert not found["token"].str.contains(r"^(VALUE|INTERVAL)/").any()


@pytest.mark.whole
@settings(max_examples=200, deadline=None)
@given(st.lists(ANY_CODE, min_size=1, max_size=6), st.integers(1, 10))
def test_a_fused_value_is_taken_off_again(codes: list[str], bin_: int) -> None:
    held = [f"LOINC/{code}" for code in codes]
    tokens = [pieces(code, FUSED)[0] for code in held]
    assert codes_of([f"{token}//Q{bin_}" for token in tokens], FUSED) == held
    assert not {f"{token}//Q{bin_}" for token in tokens} & set(tokens)


def test_without_the_escape_a_code_would_be_taken_for_a_piece() -> None:
    assert pieces("ICD10CM/4-6/10") == ["ICD10CM//4-6/10"]
    assert "ICD10CM/4-6/10" in pieces("ICD10CM/R1110")
    assert pieces("[CT]") == ["CODE/[CT]"]


# --- parents

PARENTS = pl.DataFrame(
    {
        "code": [
            "EMAR/ADMINISTERED/X", "MIMIC_LAB/50912", "ICD9CM/80700", "ICD9CM/1", "RXNORM/1",
            "PRESCRIPTION_START/MAIN/NDC/1",
        ],
        "parent_codes": [
            ["ATC/L01XA01", "ATC/V03AB32", "RXNORM/9"], ["LOINC/2160-0"], ["ICD10CM/S2239XA", "ICD10CM/S2249XA"],
            ["ICD10CM/A00", "ICD10CM/B00"], ["ATC/L01", "RXNORM/3", "RXNORM/2"], ["RXNORM/7"],
        ],
    }
)  # fmt: skip


def groups(code: str, profile: ProfileConfig = MEHRT) -> list[tuple[list[str], str | None]]:
    return groups_of(pl.Series([code]), profile, PARENTS).select("tokens", "reason").rows()


@pytest.mark.parametrize(
    ("code", "profile", "expected"),
    [
        ("MIMIC_LAB/50912", MEHRT, [["LOINC/2160-0"]]),
        ("PRESCRIPTION_START/MAIN/NDC/1", MEHRT, [["RXNORM/7"]]),
        ("RXNORM/1", MEHRT, [["RXNORM/2"], ["RXNORM/3"]]),
        ("ICD9CM/80700", MEHRT, [["ICD10CM/S22"]]),
        ("ICD9CM/1", MEHRT, [["ICD9CM/1"]]),
        ("ICD9CM/2", MEHRT, [["ICD9CM/2"]]),
        ("EMAR/ADMINISTERED/X", ETHOS, [["ATC/L01", "ATC/4/X", "ATC/5/A01"], ["ATC/V03", "ATC/4/A", "ATC/5/B32"]]),
        ("MIMIC_LAB/50912", ETHOS, [["MIMIC_LAB/50912"]]),
    ],
)
def test_parents(code: str, profile: ProfileConfig, expected: list[list[str]]) -> None:
    assert [tokens for tokens, reason in groups(code, profile) if reason is None] == expected


def test_a_code_without_the_parent_it_needs_is_left_out_and_says_so() -> None:
    assert [reason for _, reason in groups("MIMIC_LAB/1")] == ["no_parent"]
    assert [reason for _, reason in groups("VITAL/HR")] == ["namespace_not_in_profile"]
    given_rows = events({"code": "MIMIC_LAB/1"}, {"code": "EMAR/NOT GIVEN/X"}, time=NOON)
    assert left_out(given_rows, MEHRT) == [("EMAR", "namespace_not_in_profile", 1), ("MIMIC_LAB", "no_parent", 1)]


def test_several_parents_may_leave_the_code_itself() -> None:
    keeping = built_in("mehrt-paper", codes={"RXNORM": {"parents": ["RXNORM"], "several": "keep"}})
    assert groups("RXNORM/1", keeping) == [(["RXNORM/1"], None)]


def test_each_parent_is_a_group_with_its_own_value() -> None:
    rules = ProfileConfig(
        codes={"A": NamespaceRule(parents=("B",)), "B": NamespaceRule(values=True)}, values="pair", min_values=1
    )
    given_rows = [
        {"code": "A/1", "numeric_value": float(hour), "time": NOON + timedelta(hours=hour)} for hour in (1, 2)
    ]
    parents = pl.DataFrame({"code": ["A/1"], "parent_codes": [["B/1", "B/2"]]})
    made = named_tokens(events(*given_rows), rules, parents=parents)["token"].to_list()
    assert made[1:] == ["B/1", "VALUE/Q1", "B/2", "VALUE/Q1", "B/1", "VALUE/Q10", "B/2", "VALUE/Q10"]


# --- intervals


@pytest.mark.parametrize("name", ["ethos13", "ethos19"])
def test_intervals_begin_where_the_papers_say(name: str) -> None:
    starts = [start for _, start in SPECIFICATIONS[name]]
    assert len(starts) == int(name[-2:])
    at, counts = between(np.array(starts), name)
    assert at.tolist() == list(range(len(starts)))
    assert counts.tolist() == [1] * len(starts)
    below, number = between(np.array(starts) - 1, name)
    assert below.tolist() == list(range(-1, len(starts) - 1))
    assert number.tolist() == [0] + [1] * (len(starts) - 1)


@pytest.mark.parametrize(("days", "times"), [(180, 1), (269.9, 1), (270, 2), (449, 2), (450, 3), (3600, 20)])
def test_half_years_are_repeated(days: float, times: int) -> None:
    place, number = between(np.array([int(days * DAY)]), "ethos19")
    assert interval_tokens("ethos19")[int(place[0])] == "INTERVAL/=6mt"
    assert number.tolist() == [times]


def test_an_interval_stands_before_its_event_and_has_its_time() -> None:
    later = NOON + timedelta(days=400)
    rules = built_in("mehrt-paper", intervals="ethos13")
    made = named_tokens(events({"code": "LOINC/1", "time": NOON}, {"code": "LOINC/2", "time": later}), rules)
    assert made["token"].to_list()[1:] == ["LOINC/1", "INTERVAL/=6mt", "INTERVAL/=6mt", "LOINC/2"]
    assert made["time"].to_list()[1:] == [NOON, later, later, later]


# --- demographics and places

SEX = {"code": "DEMO/SEX/F", "time": None}
BORN = {"code": "MEDS_BIRTH", "time": datetime(1950, 1, 1)}
FACTS = [
    SEX, BORN, {"code": "LOINC/1", "time": NOON}, {"code": "DEMO/ETHNICITY/A", "time": NOON},
    {"code": "DEMO/ETHNICITY/B", "time": NOON + timedelta(days=1)},
    {"code": "DEMO/ETHNICITY/B", "time": NOON + timedelta(days=2)},
]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["[BOS]", "DEMO/ETHNICITY/A", "DEMO/SEX/F", "DEMO/AGE/70-79", "LOINC/1"]),
        (
            {"static": "timed"},
            ["[BOS]", "DEMO/SEX/F", "DEMO/AGE/70-79", "DEMO/ETHNICITY/A", "LOINC/1", "DEMO/ETHNICITY/B"],
        ),
        ({"static": "none"}, ["[BOS]", "LOINC/1"]),
        (
            {"age": "digits"},
            ["[BOS]", "DEMO/ETHNICITY/A", "DEMO/SEX/F", "DEMO/AGE/TENS/7", "DEMO/AGE/ONES/0", "LOINC/1"],
        ),
        ({"age": "none", "timeline_end": True}, ["[BOS]", "DEMO/ETHNICITY/A", "DEMO/SEX/F", "LOINC/1", "TIMELINE_END"]),
        (
            {"unknown_demographics": ["DEMO/SEX", "DEMO/RACE"], "age": "none"},
            ["[BOS]", "DEMO/ETHNICITY/A", "DEMO/RACE/UNKNOWN", "DEMO/SEX/F", "LOINC/1"],
        ),
    ],
)
def test_static_facts(keys: dict[str, Any], expected: list[str]) -> None:
    assert named_tokens(events(*FACTS), built_in("mehrt-paper", **keys))["token"].to_list() == expected


def test_at_the_start_only_what_was_known_then() -> None:
    late = [SEX, {"code": "LOINC/1", "time": NOON}, {"code": "DEMO/ETHNICITY/A", "time": NOON + timedelta(days=1)}]
    rules = built_in("mehrt-paper", demographic_value="at_start", unknown_demographics=["DEMO/ETHNICITY"])
    assert named_tokens(events(*late), rules)["token"].to_list()[1:3] == ["DEMO/ETHNICITY/UNKNOWN", "DEMO/SEX/F"]


@pytest.mark.parametrize(
    ("years", "digits"), [(0, "00"), (46.4, "46"), (46.6, "47"), (89.4, "89"), (89.6, "90"), (107, "90")]
)
def test_ages_in_digits_are_rounded_and_pooled(years: float, digits: str) -> None:
    born = {"code": "MEDS_BIRTH", "time": NOON - timedelta(days=years * 365.25)}
    made = named_tokens(events(born, {"code": "LOINC/1", "time": NOON}), built_in("mehrt-paper", age="digits"))
    assert made["token"].to_list()[1:3] == [f"DEMO/AGE/TENS/{digits[0]}", f"DEMO/AGE/ONES/{digits[1]}"]


def test_only_an_items_own_event_is_an_image() -> None:
    image = {"code": "IMAGE/CT", "kind": "image", "item_key": "k", "source": "ct", "subject_id": 2}
    other = [{"code": "IMAGE/CT"}, {"code": "Image/ct"}]
    everything = built_in("mehrt-paper", namespaces=None, left_out=[])
    made = named_tokens(events(*other, image, time=NOON), everything, usable("k"))
    assert made.select("subject_id", "token", "item_key").rows() == [
        (1, "[BOS]", None), (2, "[BOS]", None), (2, "[CT]", "k"),
    ]  # fmt: skip
    assert [reason for _, reason, _ in left_out(events(*other, time=NOON), everything)] == [
        "image_code_without_image"
    ] * 2


def test_of_several_known_at_the_start_the_last_counts() -> None:
    known = [{"code": f"DEMO/ETHNICITY/{group}", "time": NOON} for group in "BA"]
    given_rows = events(*known, {"code": "LOINC/1", "time": NOON})
    assert (
        "DEMO/ETHNICITY/B" in named_tokens(given_rows, built_in("mehrt-paper", demographic_value="at_start"))["token"]
    )
    assert "DEMO/ETHNICITY/A" in named_tokens(given_rows, MEHRT)["token"]


def test_how_fine_a_time_is_says_nothing_of_when_it_is_known() -> None:
    end = datetime(2020, 6, 1, 23, 59, 59, 999_999)
    rows = [{"code": "LOINC/2"}, {"code": "LOINC/1", "time_precision": "day"}]
    known = events(*rows, time=end, available_time=NOON + timedelta(days=9))
    assert named_tokens(known, MEHRT)["token"].to_list()[1:] == ["LOINC/1", "LOINC/2"]
    assert named_tokens(events(*rows, time=end), MEHRT)["token"].to_list()[1:] == ["LOINC/2", "LOINC/1"]


@pytest.mark.parametrize("order", ["time", "available_time"])
def test_images_stand_behind_what_is_known_by_day_only(order: str) -> None:
    end = datetime(2020, 6, 1, 23, 59, 59, 999_999)
    image = {"code": "IMAGE/CT", "kind": "image", "item_key": "k", "source": "ct"}
    rows = [image, {"code": "LOINC/1", "time_precision": "day"}, {"code": "LOINC/2"}]
    rules = built_in("mehrt-paper", order=order)
    assert named_tokens(events(*rows, time=end), rules, usable("k"))["token"].to_list()[1:] == [
        "LOINC/2",
        "LOINC/1",
        "[CT]",
    ]
    known_later = [image | {"time": NOON}, *rows[1:]]
    if order == "available_time":
        made = named_tokens(events(*known_later, time=end, available_time=end), rules, usable("k"))
        assert made["token"].to_list()[1:] == ["LOINC/2", "LOINC/1", "[CT]"]


def test_images_interrupt_no_interval() -> None:
    image = {"code": "IMAGE/CT", "kind": "image", "item_key": "k", "source": "ct", "time": NOON + timedelta(days=2)}
    rows = [{"code": "LOINC/1", "time": NOON}, {"code": "LOINC/2", "time": NOON + timedelta(days=5)}]
    rules = built_in("mehrt-paper", intervals="ethos19")
    without = named_tokens(events(*rows), rules)["token"].to_list()
    assert without[1:] == ["LOINC/1", "INTERVAL/4d-7d", "LOINC/2"]
    made = named_tokens(events(image, *rows), rules, usable("k"))["token"].to_list()
    assert made[1:] == ["LOINC/1", "[CT]", "INTERVAL/4d-7d", "LOINC/2"]
    assert [token for token in made if token != "[CT]"] == without


def test_images_may_stand_first() -> None:
    image = {"code": "IMAGE/CT", "kind": "image", "item_key": "k", "source": "images/ct"}
    start = {"code": "LOINC/2", "kind": "visit_start"}
    given_rows = events({"code": "LOINC/1"}, image, start, time=NOON)
    after = named_tokens(given_rows, MEHRT, usable("k"))["token"].to_list()
    first = named_tokens(given_rows, built_in("mehrt-paper", image_position="first"), usable("k"))
    assert after[1:] == ["LOINC/2", "LOINC/1", "[CT]"]
    assert first["token"].to_list()[1:] == ["[CT]", "LOINC/2", "LOINC/1"]
    assert first["item_key"].to_list()[1] == "k"


def test_what_becomes_available_together_stands_by_its_own_time() -> None:
    labs = [{"code": "LOINC/1", "time": NOON + timedelta(hours=hour), "numeric_value": -float(hour)} for hour in (1, 0)]
    rules = built_in("mehrt-paper", codes={"LOINC": {"values": True}}, values="pair", min_values=1)
    known = NOON + timedelta(days=1)
    made = named_tokens(events(*[lab | {"available_time": known} for lab in labs]), rules)["token"].to_list()
    assert made[1:] == ["LOINC/1", "VALUE/Q10", "LOINC/1", "VALUE/Q1"]


# --- rules as data


def test_a_configuration_overrides_single_keys(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("intervals: ethos13\ncodes: {X: {pieces: 1+*}}\n")
    raw = {
        "mehrt-paper": {"context": 64},
        "ethos-paper": None,
        "mine": {"rules": "own.yaml", "codes": {"Y": {"top": 3}}},
        "finer": {"rules": "ethos-paper", "codes": {"ICD10PCS": {"pieces": "3+3+*"}, "LOINC": None}},
    }
    made = {name: ProfileConfig.model_validate(with_rule) for name, with_rule in with_rules(raw, tmp_path).items()}
    assert made["mehrt-paper"] == built_in("mehrt-paper", context=64)
    assert made["ethos-paper"] == ETHOS
    assert made["mine"].intervals == "ethos13"
    assert set(made["mine"].codes) == {"X", "Y"}
    assert pieces("ICD10PCS/30233N1", made["finer"]) == ["ICD10PCS/302", "ICD10PCS/4-6/33N", "ICD10PCS/7/1"]
    assert "LOINC" not in made["finer"].codes
    assert made["finer"].codes["MIMIC_LAB"] == ETHOS.codes["MIMIC_LAB"]


@pytest.mark.parametrize(
    ("text", "said"), [(None, "there are no profile rules"), ("[", "no YAML"), ("- 1", "holds no")]
)
def test_rules_that_cannot_be_read(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(TimeloomError, match=said):
        with_rules({"x": {"rules": "own.yaml"}}, tmp_path)


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ({"A": {"pieces": "3+x"}}, "names no pieces"),
        ({"A": {"pieces": []}}, "at least one piece"),
        ({"A": {"pieces": "3+*", "values": True}}, "neither values nor top"),
        ({"A": {"pieces": "3+*"}, "A/4": {}}, "another meaning"),
        ({"A": {"pieces": [{"length": 1, "namespace": "A"}, {"length": 1, "namespace": "A"}]}}, "another meaning"),
        ({"A": {"pieces": [{"length": 1, "namespace": "B"}]}}, "not below A"),
        ({"A": {"parts": 1}}, "Extra inputs"),
    ],
)
def test_rules_that_would_give_a_token_two_meanings(codes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        ProfileConfig.model_validate({"codes": codes})


def test_pieces_may_be_named() -> None:
    named = NamespaceRule(pieces=(Piece(length=2, namespace="A"), Piece(length=1, namespace="A/rest")))
    assert pieces("A/12345", ProfileConfig(codes={"A": named})) == ["A/12", "A/rest/345"]


def test_only_what_tokens_depend_on_is_in_the_fingerprint() -> None:
    plain = MEHRT.token_rules()
    other = built_in("mehrt-paper", context=64, scheme="x", vocabulary_version=3, plans={"long": {"context": 128}})
    assert other.token_rules() == plain
    assert built_in("mehrt-paper", intervals="ethos13").token_rules() != plain


def test_ethos_begins_with_a_context_of_known_size() -> None:
    made = named_tokens(events(SEX, BORN, {"code": "HOSPITAL_ADMISSION/X/Y", "time": NOON}), ETHOS)["token"].to_list()
    assert made == [
        "[BOS]", "DEMO/ETHNICITY/UNKNOWN", "DEMO/SEX/F", "MARITAL_STATUS/UNKNOWN", "DEMO/AGE/TENS/7", "DEMO/AGE/ONES/0",
        "HOSPITAL_ADMISSION/X/Y", "TIMELINE_END",
    ]  # fmt: skip


def test_an_unknown_code_is_unk_in_every_piece() -> None:
    vocabulary, _, _ = fitted(events({"code": "ICD10CM/R1110"}, time=NOON), MEHRT)
    made = named_tokens(events({"code": "ICD10CM/R1199"}, time=NOON), MEHRT, vocabulary=vocabulary)
    assert made["token"].to_list() == ["[BOS]", "ICD10CM/R11", "[UNK]"]
