"""Built-in profiles and built-in sources fit: what a source makes becomes tokens, or is left out by name."""

import re
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from extractors.source import SOURCES, load_source
from pipelines.profiles import built_in
from pipelines.profiles.codes import groups_of
from pipelines.profiles.rules import BUILT_IN
from tests.support.tokens.timelines import events, left_out, named_tokens

# What `derive` makes of concepts and of Synthea's systems, besides what templates say.
DERIVED = [
    "SNOMED",
    "CVX",
    "HCPCS",
    "CPT4",
    "CIEL",
    "ICD10CM",
    "ICD9CM",
    "RXNORM",
    "LOINC",
    "NDC",
    "OMOP",
    "OMOP_SOURCE",
]
NOON = datetime(2020, 6, 1, 12)


def codes_of_sources() -> list[str]:
    """A code of every event rule of every built-in source, placeholders filled in."""
    found = {f"{space}/1" for space in DERIVED}
    for path in SOURCES.glob("*.yaml"):
        for rule in load_source(path.stem).tables.values():
            found |= {re.sub(r"\{[^}]*\}", "1", event.code) for event in rule.events if event.code[0] != "{"}
    return sorted(found)


@pytest.mark.parametrize("profile", ["mehrt", "ethos"])
def test_what_a_built_in_source_makes_becomes_tokens(profile: str) -> None:
    rules = built_in(profile)
    groups = groups_of(pl.Series(codes_of_sources()), rules)
    silent = groups.filter(pl.col("reason").is_not_null() | pl.col("only_numeric") | pl.col("top"))
    assert set(silent["code"].str.extract("^([^/]*)")) <= {*rules.left_out}
    assert set(rules.left_out) == {"IMAGING_FURTHER_IMAGE", "OBSERVATION_PERIOD_START", "OBSERVATION_PERIOD_END"}


@pytest.mark.parametrize("profile", ["mehrt-paper", "ethos-paper"])
def test_a_papers_list_says_of_every_namespace_whether_it_makes_tokens(profile: str) -> None:
    rules = built_in(profile)
    assert rules.namespaces is not None
    named = {name.partition("/")[0] for name in rules.namespaces}
    spaces = {code.partition("/")[0] for code in codes_of_sources()} - {"MEDS_BIRTH"}
    assert spaces - named - {*rules.left_out} == set()
    assert named & {*rules.left_out} == set()


def test_only_what_was_named_after_a_paper_keeps_to_its_list() -> None:
    assert [name for name in BUILT_IN if built_in(name).namespaces is not None] == ["mehrt-paper", "ethos-paper"]


def test_what_is_left_out_by_name_makes_no_token_and_is_counted() -> None:
    rows = [{"code": "SNOMED/1"}, {"code": "IMAGING_FURTHER_IMAGE/CT"}, {"code": "CT_OTHER/1"}]
    rules = built_in("mehrt", left_out=["CT_OTHER", "IMAGING_FURTHER_IMAGE"])
    assert named_tokens(events(*rows, time=NOON), rules)["token"].to_list() == ["[BOS]", "SNOMED/1"]
    assert sorted(left_out(events(*rows, time=NOON), rules)) == [
        ("CT_OTHER", "namespace_not_in_profile", 1), ("IMAGING_FURTHER_IMAGE", "namespace_not_in_profile", 1),
    ]  # fmt: skip
    assert rules.token_rules() != built_in("mehrt").token_rules()


RACE = {"code": "DEMO/ETHNICITY/B", "time": NOON + timedelta(days=9)}
LIFE: list[dict[str, Any]] = [
    {"code": "DEMO/SEX/F", "time": None},
    {"code": "LOINC/1", "time": NOON},
    RACE,
    RACE | {"code": "DEMO/ETHNICITY/A", "time": NOON + timedelta(days=10)},
]


@pytest.mark.parametrize(
    ("profile", "race"),
    [("ethos", "DEMO/ETHNICITY/B"), ("mehrt", "DEMO/ETHNICITY/B"), ("ethos-paper", "DEMO/ETHNICITY/UNKNOWN")],
)
def test_the_prefix_has_the_first_race_that_is_ever_known(profile: str, race: str) -> None:
    made = named_tokens(events(*LIFE), built_in(profile))["token"].to_list()
    assert [token for token in made if token.startswith("DEMO/ETHNICITY")] == [race]
    # It does not move when more becomes known.
    more = [*LIFE, RACE | {"code": "DEMO/ETHNICITY/C", "time": NOON + timedelta(days=99)}]
    assert named_tokens(events(*more), built_in(profile))["token"].to_list()[:4] == made[:4]
    # Who has none is still told so where the profile asks for it.
    if profile != "mehrt":
        assert "DEMO/ETHNICITY/UNKNOWN" in named_tokens(events(*LIFE[:2]), built_in(profile))["token"].to_list()


def test_a_value_that_nobody_knows_gives_way_to_one_that_is_known() -> None:
    unstated = {"code": "DEMO/ETHNICITY/UNKNOWN", "time": NOON}
    made = named_tokens(events(*LIFE[:2], unstated, RACE), built_in("ethos"))["token"].to_list()
    assert [token for token in made if token.startswith("DEMO/ETHNICITY")] == ["DEMO/ETHNICITY/B"]
    alone = named_tokens(events(*LIFE[:2], unstated), built_in("ethos"))["token"].to_list()
    assert alone.count("DEMO/ETHNICITY/UNKNOWN") == 1
