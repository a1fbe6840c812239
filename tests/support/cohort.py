"""A small release of drawn facts with labels, and what each label's subject had by then, by plain loops."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tests.support.releases import (
    BUCKETS,
    DIMS,
    ENCODER,
    PROFILE,
    STORES,
    Content,
    profile_entry,
    publish_tree,
    write_tables,
    write_vectors,
)
from warehouse import Release
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import PlanEntry, ProfileEntry
from warehouse.parquet import write_table
from warehouse.schemas import EVENTS, ITEMS
from warehouse.tokens import BOS, IMAGE_TOKENS, RESERVED, TIMELINE_END, TokenType

START = datetime(2020, 1, 1)
TASK = "mortality"
SEXES, ETHNICITIES = ("DEMO/SEX/F", "DEMO/SEX/M"), ("DEMO/ETHNICITY/A", "DEMO/ETHNICITY/B", "DEMO/ETHNICITY/UNKNOWN")
AGE = "DEMO/AGE/60-69"
CODES = (
    "HOSPITAL_ADMISSION/EMERGENCY", "HOSPITAL_DISCHARGE/HOME", "ICD10CM/C50911", "ICD10CM/C5001", "ICD10CM/D70",
    "ICD10PCS/30233N1", "ICD10PCS/D702ZZZ", "INSURANCE/PRIVATE", "LOINC/2160-0", "MEDS_DEATH", "RXNORM/2555",
)  # fmt: skip
TOKENS = [
    *RESERVED,
    *((name, TokenType.DEMOGRAPHIC) for name in (AGE, *ETHNICITIES, *SEXES)),
    *((name, TokenType.STRUCTURED) for name in (*CODES, TIMELINE_END)),
]
IDS = {name: number for number, (name, _) in enumerate(TOKENS)}
VOCABULARY = pl.DataFrame(
    [(number, token, kind.name.lower(), 1) for number, (token, kind) in enumerate(TOKENS)],
    schema=["token_id", "token", "type", "train_count"],
    orient="row",
)


@dataclass(frozen=True)
class Fact:
    """One event; times in minutes since START, None for a static one."""

    subject: int
    code: str
    time: int | None
    known: int | None
    modality: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Label:
    subject: int
    time: int
    outcome: bool


def moment(minutes: int | None) -> datetime | None:
    return None if minutes is None else START + timedelta(minutes=minutes)


def us(minutes: int) -> int:
    return round((START + timedelta(minutes=minutes) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000


def draw(seed: int, subjects: int = 24) -> tuple[list[Fact], list[Label]]:
    """Facts and labels on few moments, so that many are at one; some subjects have no event, some no label."""
    rng = random.Random(seed)
    facts, labels = [], []
    for subject in range(1, subjects + 1):
        if rng.random() < 0.9:
            facts.append(Fact(subject, rng.choice(SEXES), None, None))
            if rng.random() < 0.8:
                facts.append(Fact(subject, "MEDS_BIRTH", -60 * 365 * 24 * 60, -60 * 365 * 24 * 60))
            for _ in range(rng.randrange(3)):
                at = rng.randrange(20)
                facts.append(Fact(subject, rng.choice(ETHNICITIES), at, at + rng.choice((0, 0, 5))))
            for _ in range(rng.randrange(1, 14)):
                at = rng.randrange(20)
                facts.append(Fact(subject, rng.choice(CODES), at, at + rng.choice((0, 0, 0, 1, 7))))
            for number in range(rng.randrange(4)):
                at, modality = rng.randrange(20), rng.choice(("ct", "wsi"))
                code, key = f"IMAGE/{modality.upper()}", f"{modality}-{subject}-{number}"
                facts.append(Fact(subject, code, at, at + rng.choice((0, 3)), modality, key))
        labels += [Label(subject, rng.randrange(24), rng.random() < 0.3) for _ in range(rng.randrange(4))]
    return facts, labels


def split_of(subject: int) -> str:
    return ("train", "train", "train", "tuning", "held_out")[subject % 5]


def vector(modality: str, key: str) -> npt.NDArray[np.float32]:
    """What the store holds of an item; the first one of a subject is all zero."""
    if key.endswith("-0"):
        return np.zeros(DIMS[modality], np.float32)
    return np.random.default_rng(list(key.encode())).standard_normal(DIMS[modality], np.float32)


def known_by(facts: Sequence[Fact], subject: int, minute: int) -> list[Fact]:
    """A subject's facts that were known at a time."""
    return [fact for fact in facts if fact.subject == subject and (fact.known is None or fact.known <= minute)]


def timeline(facts: Sequence[Fact], unknown: Sequence[str] = ()) -> list[tuple[str, int | None, str | None]]:
    """(token, minute, item) of one subject's facts, without its end: start, demographics, events as they were known."""
    if not facts:
        return []
    front: dict[str, str] = {name: f"{name}/UNKNOWN" for name in unknown}
    demographic = [fact for fact in facts if fact.code in (*SEXES, *ETHNICITIES)]
    for fact in sorted(demographic, key=lambda fact: (fact.code.endswith("/UNKNOWN"), fact.known or -1, fact.code))[
        ::-1
    ]:
        front[fact.code.rpartition("/")[0]] = fact.code
    events = [fact for fact in facts if fact.code in CODES or fact.modality]
    if any(fact.code == "MEDS_BIRTH" for fact in facts) and events:
        front["DEMO/AGE"] = AGE
    events.sort(key=lambda fact: (fact.known, fact.modality is not None, fact.code, fact.key or ""))
    return [
        ("[BOS]", None, None),
        *((token, None, None) for _, token in sorted(front.items())),
        *((f"[{fact.modality.upper()}]" if fact.modality else fact.code, fact.known, fact.key) for fact in events),
    ]


def _events(facts: Sequence[Fact]) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "subject_id": fact.subject,
            "time": moment(fact.time),
            "available_time": moment(fact.known),
            "code": fact.code,
            "kind": "image" if fact.modality else "clinical",
            "source": "drawn",
            "item_key": fact.key,
        }
        for fact in sorted(facts, key=lambda fact: (fact.subject, fact.time is not None, fact.time or 0, fact.code))
    ]
    whole = pl.DataFrame(rows, infer_schema_length=None)
    lacking = [name for name in EVENTS.names if name not in whole.columns]
    return whole.with_columns(pl.lit(None).alias(name) for name in lacking)


def _items(facts: Sequence[Fact]) -> pl.DataFrame:
    rows = [
        {
            "subject_id": fact.subject, "item_key": fact.key, "modality": fact.modality, "time": moment(fact.time),
            "available_time": moment(fact.known), "verdict": "ok", "units_encoded": 1, "units_failed": 0,
            "store": STORES[fact.modality], "encoder": ENCODER, "dim": DIMS[fact.modality],
        }
        for fact in facts
        if fact.modality
    ]  # fmt: skip
    # One that could not be used, before everything.
    rows.append(
        {"subject_id": 1, "item_key": "ct-bad", "modality": "ct", "time": START, "available_time": START}
        | {"verdict": "failed_decode", "units_encoded": 0, "units_failed": 1, "store": STORES["ct"]}
    )
    whole = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.lit(False).alias("artificial_link"))
    return whole.with_columns(pl.lit(None).alias(name) for name in ITEMS.names if name not in whole.columns)


def timeline_frame(facts: Sequence[Fact], unknown: Sequence[str], *, end: bool) -> pl.DataFrame:
    """Columns of TIMELINES: each subject's tokens, with its end."""
    rows = []
    for subject in sorted({fact.subject for fact in facts}):
        tokens = timeline([fact for fact in facts if fact.subject == subject], unknown)
        if end:
            tokens.append((TIMELINE_END, tokens[-1][1], None))
        for token, minute, key in tokens:
            number = IMAGE_TOKENS[token[1:-1].lower()] if key else BOS if token == "[BOS]" else IDS[token]
            rows.append((subject, number, int(TOKENS[number][1]), moment(minute), key))
    schema = {
        "subject_id": pl.Int64, "token_id": pl.UInt32, "type": pl.UInt8, "time": pl.Datetime("us"),
        "item_key": pl.String,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def label_frame(labels: Sequence[Label]) -> pl.DataFrame:
    rows = [(label.subject, moment(label.time), label.outcome) for label in labels]
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("subject_id", "prediction_time", maintain_order=True)


def cohort(
    root: Path,
    facts: Sequence[Fact],
    labels: Sequence[Label],
    *,
    subjects: int = 24,
    unknown: tuple[str, ...] = (),
    end: bool = True,
    order: str = "available_time",
) -> Release:
    """A published release of facts, with the labels of one task."""
    layout = Layout(root)
    tree = ReleaseLayout(root / "work" / "made")
    splits = {subject: split_of(subject) for subject in range(1, subjects + 1)}
    items = _items(facts)
    write_tables(tree, Content(_events(facts), items, timeline_frame(facts, unknown, end=end), splits, VOCABULARY))
    frame = label_frame(labels)
    home = bucket_of(frame["subject_id"].to_numpy(), BUCKETS)
    for bucket in range(BUCKETS):
        path = tree.labels(TASK, bucket)
        write_table(path, frame.filter(pl.Series(home == bucket)), frame.to_arrow().schema, "labels")
    write_vectors(layout, items, vector)
    entry: ProfileEntry = profile_entry(VOCABULARY, {"default": PlanEntry(context=32, groups=1)})
    publish_tree(layout, tree, "2026-11-21T02-00-00Z", entry.model_copy(update={"order": order, "unknown": unknown}))
    return Release.open(root)


def later(fact: Fact, minute: int) -> Fact:
    """The same fact, known after a time."""
    at = minute + 1 if fact.time is not None else None
    return replace(fact, time=at, known=at)


__all__ = ["PROFILE", "Fact", "Label", "cohort", "draw", "known_by", "later", "timeline"]
