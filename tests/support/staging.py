"""A small, right release tree to break: forty patients, two CT volumes, a slide, one profile; and a root around it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import meds
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.splitting.ledger import Freeze
from tests.support.releases import file_entry
from warehouse.arrays import NO_TIME
from warehouse.embeddings.store import EmbeddingWriter
from warehouse.files import atomic_write, write_json
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    Deidentification,
    EncoderEntry,
    Manifest,
    PlanEntry,
    ProfileEntry,
    content_hash,
)
from warehouse.modalities import MODALITIES
from warehouse.order import sort_events
from warehouse.parquet import write_table
from warehouse.publish import publish
from warehouse.schemas import (
    EVENTS,
    ITEMS,
    LAGS,
    LEDGER,
    QUARANTINE,
    SCHEME_SUBJECTS,
    SPLIT_LEDGER,
    SPLIT_QUARANTINE,
    SUBJECTS,
    TIMELINES,
    VOCABULARY,
)
from warehouse.shards.file import Packs, ShardHeader, write_shard
from warehouse.tokens import EOS, IMAGE_TOKENS, RESERVED, TokenType
from warehouse.vocabulary import vocabulary_hash

SCHEME, PROFILE, BUCKETS, CONTEXT = "mehrt", "mehrt", 4, 32
FRACTIONS = {"train": 0.8, "tuning": 0.1, "held_out": 0.1}
STORES = {"ct": "random-ct-0001", "wsi": "random-wsi-0001"}
DIMS = {"ct": 1024, "wsi": 1536}
SUBJECT_COUNT = 40
START = datetime(2020, 1, 1)
LAB = "LOINC//718-7//g/dL"


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
            "encoder": "random, for demonstration only",
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


def write_quarantine(tree: ReleaseLayout, rows: int) -> None:
    """That many rows of the laboratory table whose time cannot be read."""
    listed = pl.DataFrame({"row": range(7, 7 + rows)}).with_columns(
        pl.lit("labs").alias("table"), pl.lit(0).alias("part"), pl.lit("unparsable_time").alias("reason")
    )
    write_table(tree.quarantine, listed, QUARANTINE, "quarantine")


def write_lags(tree: ReleaseLayout, minutes: int = 120) -> None:
    lags = [("labs", "", 60_000_000 * minutes, 180), ("labs", LAB, 60_000_000 * minutes, 180)]
    write_table(tree.lags, pl.DataFrame(lags, schema=LAGS.names, orient="row"), LAGS, "lags")


VOCABULARY_ROWS = [*RESERVED, ("LOINC//718-7", TokenType.STRUCTURED), ("DEMO//SEX//F", TokenType.DEMOGRAPHIC)]
VOCABULARY_HASH = vocabulary_hash(
    pl.DataFrame({"token_id": range(len(VOCABULARY_ROWS)), "token": [token for token, _ in VOCABULARY_ROWS]})
)
LAB_TOKEN, SEX_TOKEN = len(RESERVED), len(RESERVED) + 1


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
    """Packs of whole subjects, in their order."""
    packs: list[list[pl.DataFrame]] = [[]]
    for part in timelines.partition_by("subject_id", maintain_order=True):
        if sum(frame.height for frame in packs[-1]) + part.height > context:
            packs.append([])
        packs[-1].append(part)
    packs = [pack for pack in packs if pack]
    ids = np.zeros((len(packs), context), np.uint16)
    types = np.zeros((len(packs), context), np.uint8)
    times = np.full((len(packs), context), NO_TIME, np.int64)
    whole = [pl.concat(pack).with_row_index("position") for pack in packs]
    for row, frame in enumerate(whole):
        ids[row, : frame.height] = frame["token_id"].to_numpy()
        types[row, : frame.height] = frame["type"].to_numpy()
        times[row, : frame.height] = frame["time"].dt.timestamp("us").fill_null(NO_TIME).to_numpy()
    images = [frame.filter(pl.col("item_key").is_not_null()) for frame in whole]
    segments = [part for pack in packs for part in pack]
    return Packs(
        pack_id=np.arange(len(packs), dtype=np.int64),
        length=np.array([frame.height for frame in whole], np.int32),
        input_ids=ids,
        token_type=types,
        time=times,
        segments_per_pack=np.array([len(pack) for pack in packs], np.int32),
        segment_length=np.array([part.height for part in segments], np.int32),
        segment_subject=np.array([part["subject_id"][0] for part in segments], np.int64),
        segment_offset=np.zeros(len(segments), np.int32),
        segment_origin=np.zeros(len(segments), np.int64),
        images_per_pack=np.array([frame.height for frame in images], np.int32),
        image_position=np.array([value for frame in images for value in frame["position"]], np.int32),
        image_key=pa.array([value for frame in images for value in frame["item_key"]], pa.string()),
        image_modality=np.array(
            [MODALITIES.index(value.split("-")[0]) for frame in images for value in frame["item_key"]], np.uint8
        ),
    )


def header(split: str, context: int = CONTEXT) -> ShardHeader:
    size = len(VOCABULARY_ROWS)
    return ShardHeader(PROFILE, split, 0, context, "uint16", VOCABULARY_HASH, size, STORES, time_dtype="int64")


def meds_table(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary)


def write_codes(tree: ReleaseLayout, codes: list[str]) -> None:
    described = pl.DataFrame({"code": codes}).select(
        "code",
        pl.when(code=LAB).then(pl.lit("Hemoglobin")).alias("description"),
        pl.when(code=LAB).then(pl.lit(["LAB//HGB"])).alias("parent_codes"),
    )
    meds_table(tree.codes, meds.CodeMetadataSchema.align(described.to_arrow()))


def write_subject_splits(tree: ReleaseLayout, splits: dict[int, str]) -> None:
    frame = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
    meds_table(tree.subject_splits, meds.SubjectSplitSchema.align(frame.to_arrow()))


def write_split_ledger(tree: ReleaseLayout, rows: list[tuple[int, str]]) -> None:
    """The scheme's ledger, whole, and the freeze that says so."""
    frame = pl.DataFrame(rows, schema=["subject_id", "split"], orient="row").with_columns(
        pl.lit("all").alias("stratum"), pl.int_range(pl.len()).alias("ordinal")
    )
    write_table(tree.split_ledger(SCHEME), frame, SPLIT_LEDGER, "split ledger")
    freeze = Freeze(SCHEME, FRACTIONS, {})
    freeze.append(frame.select(SPLIT_LEDGER.names))
    freeze.write(tree.split_freeze(SCHEME))


def write_scheme_subjects(tree: ReleaseLayout, rows: list[tuple[int, str]], aside: Sequence[int] = ()) -> None:
    """The release's subjects with their splits, and those that are set aside."""
    frame = pl.DataFrame(rows, schema=["subject_id", "split"], orient="row")
    ordered = frame.with_columns((pl.int_range(pl.len()) / max(len(rows), 1)).alias("order"))
    write_table(tree.scheme_subjects(SCHEME), ordered, SCHEME_SUBJECTS, "subjects of the scheme")
    left = pl.DataFrame({"subject_id": list(aside)}, schema={"subject_id": pl.Int64})
    reasons = left.with_columns(pl.lit("merged_across_splits").alias("reason"))
    write_table(tree.split_quarantine(SCHEME), reasons, SPLIT_QUARANTINE, "subjects set aside")


def write_splits(tree: ReleaseLayout, splits: dict[int, str]) -> None:
    """Ledger, subjects and MEDS' splits, all alike."""
    write_split_ledger(tree, list(splits.items()))
    write_scheme_subjects(tree, list(splits.items()))
    write_subject_splits(tree, splits)


def write_buckets(tree: ReleaseLayout, frame: pl.DataFrame, kind: str) -> None:
    """Writes events, items, subjects or timelines of all buckets."""
    schema = {"events": EVENTS, "items": ITEMS, "subjects": SUBJECTS, "timeline": TIMELINES}[kind]
    home = bucket_of(frame["subject_id"].to_numpy(), BUCKETS)
    for bucket in range(BUCKETS):
        path = tree.timeline(PROFILE, bucket) if kind == "timeline" else getattr(tree, kind)(bucket)
        write_table(path, frame.filter(pl.Series(home == bucket)), schema, kind)


def write_shards(tree: ReleaseLayout, timelines: pl.DataFrame, splits: dict[int, str]) -> None:
    for split in FRACTIONS:
        mine = timelines.filter(pl.col("subject_id").is_in([key for key, value in splits.items() if value == split]))
        write_shard(tree.shard(PROFILE, split, 0), make_packs(mine), header(split))


def read_all(tree: ReleaseLayout, kind: str) -> pl.DataFrame:
    """What `write_buckets` wrote."""
    paths = [
        tree.timeline(PROFILE, bucket) if kind == "timeline" else getattr(tree, kind)(bucket)
        for bucket in range(BUCKETS)
    ]
    return pl.concat([pl.read_parquet(path) for path in paths]).sort("subject_id", maintain_order=True)


def make_tree(path: Path) -> ReleaseLayout:
    """A release tree without a fault."""
    tree = ReleaseLayout(path)
    items = _items()
    events = _events(items)
    timelines = _timelines(events)
    splits = {subject: split_of(subject) for subject in range(SUBJECT_COUNT)}
    ok = items.filter(pl.col("verdict") == "ok")
    per_subject = ok.group_by("subject_id").agg(
        (pl.col("modality") == "ct").sum().alias("ct"), (pl.col("modality") == "wsi").sum().alias("wsi")
    )
    subjects = (
        events.group_by("subject_id")
        .agg(
            pl.len().alias("events"),
            pl.col("time").is_null().sum().alias("static_events"),
            (pl.col("time").unique().sort().diff().dt.total_seconds().mean() / 86400).alias("mean_interval_days"),
        )
        .join(per_subject, on="subject_id", how="left")
        .with_columns(pl.col("ct", "wsi").fill_null(0))
        .sort("subject_id")
    )
    for kind, frame in {"events": events, "items": items, "subjects": subjects, "timeline": timelines}.items():
        write_buckets(tree, frame, kind)
    write_codes(tree, sorted(events["code"].unique()))
    write_splits(tree, splits)
    write_json(tree.dataset_metadata, {"dataset_name": "fabricated", "meds_version": "0.4.1"})
    vocabulary = [
        {"token_id": index, "token": token, "type": kind.name.lower(), "train_count": 1}
        for index, (token, kind) in enumerate(VOCABULARY_ROWS)
    ]
    write_table(tree.vocabulary(PROFILE), pl.DataFrame(vocabulary), VOCABULARY, "vocabulary")
    write_shards(tree, timelines, splits)
    write_table(tree.ledger, _ledger(events), LEDGER, "ledger")
    write_quarantine(tree, 1)
    write_lags(tree)
    return tree


def change_shard(tree: ReleaseLayout, split: str, **changes: Any) -> None:
    """Rewrites a split's shard with some columns of its packs changed."""
    from warehouse.shards.file import read_shard

    shard_header, packs = read_shard(tree.shard(PROFILE, split, 0))
    copied = {name: np.array(value) for name, value in vars(packs).items() if isinstance(value, np.ndarray)}
    write_shard(tree.shard(PROFILE, split, 0), replace(packs, **copied | changes), shard_header)


def profile_entries() -> dict[str, ProfileEntry]:
    """The manifest's account of the one profile."""
    plans = {"default": PlanEntry(context=CONTEXT, groups=1)}
    entry = ProfileEntry(
        vocabulary_hash=VOCABULARY_HASH,
        vocabulary_size=len(VOCABULARY_ROWS),
        scheme=SCHEME,
        rules_hash="",
        plans=plans,
    )
    return {PROFILE: entry}


def make_manifest(tree: ReleaseLayout, release_id: str) -> Manifest:
    files = {
        path.relative_to(tree.path).as_posix(): file_entry(path)
        for path in sorted(tree.path.rglob("*"))
        if path.is_file()
    }
    return Manifest(
        release_id=release_id,
        parent=None,
        created_at=datetime(2026, 11, 21, tzinfo=UTC).isoformat(),
        run_id="run",
        buckets=BUCKETS,
        deid=Deidentification(mode="synthetic", subject_ids="kept", dates="kept", key_fingerprint=""),
        config_hash="c",
        split_scheme=SCHEME,
        split_hash="s",
        encoders={
            modality: EncoderEntry(label="random, for demonstration only", store=store, dim=DIMS[modality])
            for modality, store in STORES.items()
        },
        profiles=profile_entries(),
        stages={},
        sources={},
        verdicts={},
        content_hash=content_hash(files),
        tasks={},
        files=files,
    )


def make_root(root: Path) -> tuple[Layout, ReleaseLayout]:
    """A root with one published release and the stores that it points at."""
    layout = Layout(root)
    tree = make_tree(layout.work / "run" / "release")
    home = {row["item_key"]: row for row in read_all(tree, "items").filter(pl.col("verdict") == "ok").to_dicts()}
    for key, item in home.items():
        bucket = int(bucket_of(np.array([item["subject_id"]]), BUCKETS)[0])
        vector = np.random.default_rng(len(key)).normal(size=item["dim"]).astype(np.float32)
        with EmbeddingWriter(layout.embedding_bucket(item["modality"], item["store"], bucket)) as writer:
            writer.put_many([(key, vector, 3)])
    layout.settings.write_text(json.dumps({"buckets": BUCKETS}))
    layout.releases.mkdir(parents=True, exist_ok=True)
    return layout, publish(layout, tree.path, make_manifest(tree, "2026-11-21T02-00-00Z"))
