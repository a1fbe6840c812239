"""A release to break: forty patients, two CT volumes, a slide and one profile, without a fault."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from tests.support.releases import (
    DIMS,
    ENCODER,
    FRACTIONS,
    LAB,
    PROFILE,
    STORES,
    Content,
    make_manifest,
    pack_timelines,
    profile_entry,
    publish_tree,
    timelines_of,
    write_tables,
    write_vectors,
)
from tests.support.tokens.markov import vector_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, PlanEntry, ProfileEntry, read_manifest
from warehouse.order import sort_events
from warehouse.parquet import write_table
from warehouse.schemas import LAGS, LEDGER, QUARANTINE
from warehouse.sealed import write_sealed
from warehouse.shards.file import Packs, ShardHeader, write_shard
from warehouse.tokens import EOS, IMAGE_TOKENS, RESERVED, TokenType
from warehouse.vocabulary import vocabulary_hash

CONTEXT, SUBJECT_COUNT = 32, 40
START = datetime(2020, 1, 1)
VOCABULARY_ROWS = [*RESERVED, ("LOINC//718-7", TokenType.STRUCTURED), ("DEMO//SEX//F", TokenType.DEMOGRAPHIC)]
LAB_TOKEN, SEX_TOKEN = len(RESERVED), len(RESERVED) + 1
RELEASE_ID = "2026-11-21T02-00-00Z"
VOCABULARY_TABLE = pl.DataFrame(
    [(index, token, kind.name.lower(), 1) for index, (token, kind) in enumerate(VOCABULARY_ROWS)],
    schema=["token_id", "token", "type", "train_count"],
    orient="row",
)


def split_of(subject: int) -> str:
    return "held_out" if subject % 10 == 9 else "tuning" if subject % 10 == 8 else "train"


def _items() -> pl.DataFrame:
    good = [("ct-a", "ct", 0, 40), ("ct-b", "ct", 19, 42), ("wsi-a", "wsi", 1, 300)]
    rows: list[dict[str, Any]] = [
        {
            "subject_id": subject,
            "item_key": key,
            "modality": modality,
            "time": START + timedelta(days=subject, hours=5),
            "verdict": "ok",
            "units_expected": units,
            "units_encoded": units,
            "units_failed": 0,
            "store": STORES[modality],
            "encoder": ENCODER,
            "dim": DIMS[modality],
        }
        for key, modality, subject, units in good
    ]
    rows.append(
        {"subject_id": 2, "item_key": "ct-scout", "modality": "ct", "verdict": "refused_localizer", "units_encoded": 0}
        | {"units_failed": 0, "units_expected": 1}
    )
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col("time").alias("available_time"),
        pl.lit("collection").alias("time_source"),
        pl.lit("min").alias("time_precision"),
        pl.lit(None, pl.String).alias("geometry"),
        pl.lit(False).alias("artificial_link"),
    )


def _events(items: pl.DataFrame) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for subject in range(SUBJECT_COUNT):
        day = START + timedelta(days=subject)
        common = {"subject_id": subject, "time_precision": "min", "kind": "clinical"}
        rows += [
            common | {"time": None, "code": "DEMO//SEX//F", "source": "patients", "time_precision": None},
            common | {"time": datetime(1960, 1, 1), "code": "MEDS_BIRTH", "source": "patients"},
        ]
        rows += [
            common | {"time": day + timedelta(hours=hour), "code": LAB, "numeric_value": 10.0 + hour, "source": "labs"}
            for hour in range(3 + subject % 4)
        ]
    for item in items.filter(pl.col("verdict") == "ok").iter_rows(named=True):
        rows.append(
            {"subject_id": item["subject_id"], "time": item["time"], "code": f"IMAGE//{item['modality'].upper()}"}
            | {"time_precision": "min", "kind": "image", "source": "images", "item_key": item["item_key"]}
        )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    lab, number = pl.col("source") == "labs", pl.col("numeric_value")
    # What subjects 1 to 4 have of each mark, one event a mark: an estimate, a flag, three conflicts.
    estimated, flagged = ((lab & (pl.col("subject_id") == subject) & (number == 11.0)) for subject in (1, 2))
    dead, overlapping = ((lab & (pl.col("subject_id") == subject) & (number > 10.0)) for subject in (3, 4))
    return sort_events(
        frame.with_columns(
            pl.when(estimated).then(pl.col("time") + timedelta(hours=2)).otherwise(pl.col("time")).alias(
                "available_time"
            ),
            pl.when(flagged).then(pl.lit("<11")).alias("text_value"),
            pl.lit(None, pl.String).alias("unit"),
            pl.lit(None, pl.Int64).alias("visit_id"),
            pl.when(pl.col("time").is_not_null())
            .then(pl.when(estimated).then(pl.lit("estimated")).otherwise(pl.lit("time")))
            .alias("availability"),
            pl.when(flagged).then(pl.lit("<")).alias("value_flag"),
            pl.when(dead).then(pl.lit("after_death")).when(overlapping).then(pl.lit("overlapping_visit")).alias(
                "conflict"
            ),
        )
    )  # fmt: skip


def _ledger(events: pl.DataFrame) -> pl.DataFrame:
    labs = events.filter(pl.col("source") == "labs").height
    rows = [
        ("patients", "raw", "", SUBJECT_COUNT, 0),
        ("patients", "events", "", SUBJECT_COUNT, 2 * SUBJECT_COUNT),
        ("labs", "raw", "", labs + 1, 0),
        ("labs", "events", "", labs, labs),
        ("labs", "quarantined", "unparsable_time", 1, 0),
        ("labs", "partial", "unparsable_available_time", 2, 0),
        ("units", "raw", "", 12, 0),
        ("units", "reference", "", 12, 0),
        ("labs", "time_format", "collected %Y-%m-%d %H:%M", labs, 0),
        ("labs", "time_format", "resulted %Y-%m-%d", 3, 0),
        ("labs", "time_format", "resulted %Y-%m-%d %H:%M", labs - 4, 0),
        # one of those after a death lies within another visit too
        ("all tables", "conflict", "after_death", _marked(events, "after_death"), 0),
        ("all tables", "conflict", "overlapping_visit", _marked(events, "overlapping_visit") + 1, 0),
        ("all tables", "availability", "estimated", 1, 0),
    ]
    return pl.DataFrame(rows, schema=LEDGER.names, orient="row")


def _marked(events: pl.DataFrame, conflict: str) -> int:
    return events.filter(pl.col("conflict") == conflict).height


def _quarantine(rows: int) -> pl.DataFrame:
    return pl.DataFrame({"row": range(7, 7 + rows)}).with_columns(
        pl.lit("labs").alias("table"), pl.lit(0).alias("part"), pl.lit("unparsable_time").alias("reason")
    )


def _lags(minutes: int = 120) -> pl.DataFrame:
    lags = [("labs", "", 60_000_000 * minutes, 180), ("labs", LAB, 60_000_000 * minutes, 180)]
    return pl.DataFrame(lags, schema=LAGS.names, orient="row")


def write_quarantine(tree: ReleaseLayout, rows: int) -> None:
    """That many rows of the laboratory table whose time cannot be read."""
    write_table(tree.quarantine, _quarantine(rows), QUARANTINE, "quarantine")


def write_lags(tree: ReleaseLayout, minutes: int) -> None:
    """Laboratory values become available after so many minutes."""
    write_table(tree.lags, _lags(minutes), LAGS, "lags")


def _timelines(events: pl.DataFrame) -> pl.DataFrame:
    modality = {f"IMAGE//{name.upper()}": token for name, token in IMAGE_TOKENS.items()}
    ids = {"DEMO//SEX//F": SEX_TOKEN, LAB: LAB_TOKEN} | modality
    kept = events.filter(pl.col("code").is_in(list(ids)))
    tokens = kept.select(
        "subject_id",
        pl.col("code").replace_strict(ids, return_dtype=pl.UInt32).alias("token_id"),
        pl.when(pl.col("item_key").is_not_null())
        .then(int(TokenType.IMAGE))
        .otherwise(int(TokenType.STRUCTURED))
        .cast(pl.UInt8)
        .alias("type"),
        "time",
        "item_key",
    )
    ends = tokens.group_by("subject_id", maintain_order=True).agg(
        pl.lit(EOS, pl.UInt32).alias("token_id"),
        pl.lit(0, pl.UInt8).alias("type"),
        pl.col("time").last(),
        pl.lit(None, pl.String).alias("item_key"),
    )
    return pl.concat([tokens, ends.select(tokens.columns)]).sort("subject_id", maintain_order=True)


def make_packs(timelines: pl.DataFrame, context: int = CONTEXT) -> Packs:
    """Packs of rows of TIMELINES, in the order of their subjects."""
    return pack_timelines(timelines_of(timelines), context)


def header(split: str, context: int = CONTEXT) -> ShardHeader:
    hashed, size = vocabulary_hash(VOCABULARY_TABLE), len(VOCABULARY_TABLE)
    return ShardHeader(PROFILE, split, 0, context, "uint16", hashed, size, STORES, time_dtype="int64")


def write_shards(tree: ReleaseLayout, timelines: pl.DataFrame, splits: dict[int, str]) -> None:
    for split in FRACTIONS:
        members = [subject for subject, assigned in splits.items() if assigned == split]
        packs = make_packs(timelines.filter(pl.col("subject_id").is_in(members)))
        write_shard(tree.shard(PROFILE, split, 0), packs, header(split))


def content() -> Content:
    """What the forty patients' release tells."""
    items = _items()
    events = _events(items)
    return Content(
        events=events,
        items=items,
        timelines=_timelines(events),
        splits={subject: split_of(subject) for subject in range(SUBJECT_COUNT)},
        vocabulary=VOCABULARY_TABLE,
        ledger=_ledger(events),
        quarantine=_quarantine(1),
        lags=_lags(),
    )


def make_tree(path: Path) -> ReleaseLayout:
    """Their release tree."""
    tree, record = ReleaseLayout(path), content()
    write_tables(tree, record)
    write_shards(tree, record.timelines, record.splits)
    return tree


def entry() -> ProfileEntry:
    """The manifest's account of the one profile."""
    return profile_entry(VOCABULARY_TABLE, {"default": PlanEntry(context=CONTEXT, groups=1)})


def manifest(tree: ReleaseLayout) -> Manifest:
    """A manifest of what lies in a tree."""
    return make_manifest(tree, tree.path.name, entry())


def make_root(root: Path) -> tuple[Layout, ReleaseLayout]:
    """A root with their release, published, the stores that it points at, and what runs leave beside a release."""
    layout = Layout(root)
    tree = make_tree(layout.work / "run" / "release")
    write_vectors(layout, content().items, vector_of)
    published = publish_tree(layout, tree, RELEASE_ID, entry())
    manifest = read_manifest(published.manifest)
    write_sealed(layout.settings, {"buckets": manifest.buckets})
    write_sealed(layout.lineage / f"{manifest.run_id}.json", {"outputs": [{"name": RELEASE_ID}], "parent": None})
    for store in {path.parent for path in root.glob("embeddings/*/*/*.lmdb")}:
        write_sealed(store / "encoder.json", {})
    return layout, published
