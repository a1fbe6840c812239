"""Random events under random rules: timelines and counts equal those of the simple reference."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.profiles.events import Part, TextPlaces, read_parts
from pipelines.profiles.intervals import LONGEST, MINUTE
from pipelines.profiles.rules import ProfileConfig
from tests.support.tokens.naive_timelines import Naive
from tests.support.tokens.timelines import events, fitted, named_tokens, part_of, usable
from warehouse.arrays import NO_TIME
from warehouse.parquet import write_tables
from warehouse.schemas import EVENTS
from warehouse.tokens import TYPE_NAMES

NAMES = {int(kind): name for kind, name in TYPE_NAMES.items()}
START = datetime(2020, 1, 1)
PARENTS = {
    "RXNORM/1": ["RXNORM/8", "RXNORM/9", "ATC/L01XX05"],
    "MIMIC_LAB/1": ["LOINC/1-1"],
    "ICD9CM/1": ["ICD10CM/S7200", "ICD10CM/S7209"],
    "ICD9CM/2": ["ICD10CM/A00", "ICD10CM/B00"],
}
CODES = [
    "ICD10CM/I10", "ICD10CM/S72001A", "ICD10PCS/30233N1", "ICD9CM/1", "ICD9CM/2", "RXNORM/1", "RXNORM/2", "MIMIC_LAB/1",
    "MIMIC_LAB/2", "LOINC/1-1", "LOINC/2-2", "VITAL/HR", "DEMO/SEX/F", "DEMO/SEX/M",
    "DEMO/SEX/UNKNOWN", "MARITAL_STATUS/X", "MEDS_BIRTH",
    "IMAGE/CT", "Image/ct",
]  # fmt: skip
NAMESPACES = ("ICD10CM", "ICD10PCS", "RXNORM/8", "LOINC", "DEMO", "MARITAL_STATUS")
SECONDS = [0, 1, 299, 300, 3600, 86_400, 3 * 86_400, 90 * 86_400, 180 * 86_400, 270 * 86_400, 40 * 365 * 86_400]


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    seconds = draw(st.none() | st.sampled_from(SECONDS))
    time = None if seconds is None else START + timedelta(seconds=seconds)
    later = None if time is None else time + timedelta(seconds=draw(st.sampled_from([0, 0, 1, 300, 86_400])))
    row = {
        "subject_id": draw(st.sampled_from([1, 2, 5])),
        "time": time,
        "available_time": later,
        "code": draw(st.sampled_from(CODES)),
        "time_precision": draw(st.sampled_from(["s", "s", "day"])),
        "source": draw(st.sampled_from(["a", "b"])),
        "kind": draw(st.sampled_from(["clinical", "clinical", "visit_start", "visit_end"])),
    }
    if draw(st.booleans()):
        row |= {
            "numeric_value": draw(
                st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0, float("nan"), float("-inf"), float("inf")])
            ),
            "unit": draw(st.sampled_from([None, "mg", "g"])),
            "value_flag": draw(st.sampled_from([None, None, ">", "<", "range"])),
        }
    if draw(st.integers(0, 5)) == 0:
        row |= {"code": "IMAGE/CT", "kind": "image", "item_key": draw(st.sampled_from(["good", "bad", "fine"]))}
        # An image without a time makes no event.
        row |= {"time": time or START, "available_time": later or START}
    return row


@st.composite
def profiles(draw: st.DrawFn) -> ProfileConfig:
    pieces = draw(st.sampled_from(["3+3+*", "1+1+1+1+1+1+1"]))
    several = draw(st.sampled_from(["each", "common", "keep"]))
    numeric = draw(st.booleans())
    return ProfileConfig(
        order=draw(st.sampled_from(["available_time", "time"])),
        namespaces=draw(
            st.sampled_from([None, ("ICD10CM", "ICD10PCS", "RXNORM/8", "LOINC", "DEMO", "MARITAL_STATUS")])
        ),
        codes={
            "ICD10CM": {"pieces": "3+3+*"},
            "ICD10PCS": {"pieces": pieces},
            "ICD9CM": {"parents": ("ICD10CM",), "several": several},
            "RXNORM": {"parents": draw(st.sampled_from([("RXNORM",), ("ATC", "RXNORM"), ("NDC", "RXNORM")]))},
            "ATC": {"pieces": "3+1+*"},
            "MIMIC_LAB": {"parents": ("LOINC",)},
            "LOINC": {"values": True, "only_numeric": numeric},
        },
        values=draw(st.sampled_from(["codes_only", "pair", "fused"])),
        quantiles=draw(st.sampled_from([2, 4, 10])),
        min_values=draw(st.sampled_from([1, 3])),
        intervals=draw(st.sampled_from(["none", "ethos13", "ethos19"])),
        static=draw(st.sampled_from(["prefix", "timed", "none"])),
        demographics=("DEMO", "MARITAL_STATUS"),
        demographic_value=draw(st.sampled_from(["first", "at_start"])),
        unknown_demographics=draw(st.sampled_from([(), ("DEMO/SEX", "MARITAL_STATUS")])),
        age=draw(st.sampled_from(["bands", "digits", "none"])),
        image_position=draw(st.sampled_from(["after", "first"])),
        timeline_end=draw(st.booleans()),
    )


def one_birth_each(given_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with one birth a subject at most: aligning removes further ones."""
    born, kept = set[int](), []
    for row in given_rows:
        if row["code"] != "MEDS_BIRTH" or row["subject_id"] not in born:
            kept.append(row)
            born |= {row["subject_id"]} if row["code"] == "MEDS_BIRTH" else set()
    return kept


@pytest.mark.whole
@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=25), profiles(), st.lists(st.sampled_from([1, 2, 5]), unique=True))
def test_timelines_and_counts_are_those_of_the_reference(
    given_rows: list[dict[str, Any]], profile: ProfileConfig, train: list[int]
) -> None:
    if profile.static == "none":
        profile = profile.model_copy(update={"unknown_demographics": ()})
    frame = events(*one_birth_each(given_rows))
    parents = pl.DataFrame({"code": list(PARENTS), "parent_codes": list(PARENTS.values())})
    items = usable("good", "fine")
    splits = {subject: "train" if subject in train else "held_out" for subject in (1, 2, 5)}
    vocabulary, quantiles, counts = fitted(frame, profile, items, parents, splits)
    made = named_tokens(frame, profile, items, parents, vocabulary, quantiles)
    breaks = {(code, unit): list(cuts) for code, unit, cuts, _ in quantiles.iter_rows()}
    reference = Naive(frame, profile, {"good", "fine"}, PARENTS, set(vocabulary["token"]), breaks)
    shown = [
        (subject, token, NAMES[kind], time, key)
        for subject, token, kind, time, key in made.select(
            "subject_id", "token", "type", "time", "item_key"
        ).iter_rows()
    ]
    assert shown == reference.tokens
    left_out = counts.left_out.group_by("namespace", "reason").agg(pl.col("count").sum())
    assert {(namespace, reason): number for namespace, reason, number in left_out.iter_rows()} == reference.left_out
    # The counts equal the written tokens: in train every token is known.
    written = made.filter(pl.col("subject_id").is_in(train)).group_by("token").len()
    counted = vocabulary.filter(pl.col("train_count") > 0).select("token", "train_count")
    assert dict(written.iter_rows()) == dict(counted.iter_rows())


@pytest.mark.whole
@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=30), st.integers(1, 12))
def test_pieces_of_a_part_are_the_part(given_rows: list[dict[str, Any]], size: int) -> None:
    part = part_of(events(*given_rows))
    pieces = list(part.slices(size))
    assert np.concatenate([piece.subjects for piece in pieces]).tolist() == part.subjects.tolist()
    assert sum(map(len, pieces)) == len(part)
    for name in ("time", "available"):
        whole = np.concatenate([getattr(piece, name) for piece in pieces])
        assert whole.tolist() == getattr(part, name).tolist()
    assert all(same_subjects(piece) for piece in pieces)


def test_a_files_row_groups_are_one_part(tmp_path: Path) -> None:
    ct = {"code": "IMAGE/CT", "kind": "image", "time": START}
    other = {"code": "VITAL/HR", "time": START}
    first = events(other, {**other, "time": None}, subject_id=1)
    groups = [
        first,
        events(other, {**ct, "item_key": "a"}, other, subject_id=1),
        events(other, subject_id=2),
        events({**ct, "item_key": "b"}, {**ct, "item_key": "a"}, {**other, "source": "s"}, subject_id=3),
    ]
    write_tables(tmp_path / "events.parquet", groups, EVENTS, "events")
    codes = pl.Series(["IMAGE/CT", "IMAGE/WSI", "VITAL/HR"])
    for size in (1, 3, 100):
        parts = list(read_parts(tmp_path / "events.parquet", codes, values=True, rows=size))
        frame = pl.concat(groups)
        assert sum(map(len, parts)) == len(frame)
        assert np.concatenate([part.time for part in parts]).tolist() == [
            NO_TIME if time is None else time for time in frame["time"].to_physical().to_list()
        ]
        for name in ("code", "kind", "source", "unit"):
            assert [text for part in parts for text in texts(getattr(part, name))] == frame[name].to_list()
        keys = [text for part in parts for text in texts(part.item_key)]
        assert [key for key, kind in zip(keys, frame["kind"], strict=True) if kind == "image"] == ["a", "a", "b"]


def texts(of: TextPlaces | None) -> list[str | None]:
    assert of is not None
    return [None if place < 0 else of.distinct[place] for place in of.place.tolist()]


def same_subjects(piece: Part) -> bool:
    counted = np.bincount(piece.subject, minlength=len(piece.subjects))
    return bool((np.diff(piece.starts) == counted).all()) and piece.starts[0] == 0


def test_the_reference_knows_the_longest_interval() -> None:
    assert LONGEST == 180 * 24 * 60 * MINUTE
