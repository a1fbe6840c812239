"""tokenize: one bucket's events → its subjects' timelines as token ids. Schema in: EVENTS. Schema out: TIMELINES."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.carrying.cells import Contents
from pipelines.carrying.kept import KeptCells
from pipelines.carrying.subjects import reads, subjects_of_other_items
from pipelines.engine.context import RunContext
from pipelines.engine.former import Former
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.profiles.choosing import UNKNOWN, chosen_parts, ids_of, parents_hash, parents_hash_before, parents_of
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Encoded, TimelineWriter
from pipelines.vocabulary import slice_hash, uncounted_subjects
from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, read_shared, write_tables
from warehouse.schemas import TIMELINES
from warehouse.tokens import UNK

# Smaller than as dictionaries, and written in half the time.
ENCODINGS = {"subject_id": "PLAIN", "token_id": "BYTE_STREAM_SPLIT", "type": "PLAIN", "time": "PLAIN"}


class Counts(TypedDict):
    """What a task tells of its timelines."""

    tokens: int
    unknown: int
    largest_id: int
    values_without_quantiles: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    bucket: int
    profile: str
    settings: dict[str, Any]
    stores: dict[str, str]


def plan(night: Night) -> list[Task]:
    """One task per profile and bucket."""
    return [
        task
        for name, profile in night.profiles
        for task in tasks_of(night.context, name, profile, night.bucket_inputs(profile), night.stores_of(profile))
    ]


def tasks_of(
    context: RunContext,
    name: str,
    profile: ProfileConfig,
    inputs: dict[int, Any],
    stores: Mapping[str, str],
) -> list[Task]:
    """One task per bucket, up to date as long as its events, its tokens' ids and breaks and its codes' parents are.

    Args:
        inputs: per bucket, the hashes of its events and of the items that have a vector in `stores`.
        stores: by modality, the store whose vectors its tokens carry.
    """
    tree = ReleaseLayout(context.staging / "release")
    vocabulary = read_frame(tree.vocabulary(name))
    parents = parents_of(tree, profile)
    aside = uncounted_subjects(tree, profile)
    needed = {
        bucket: [slice_hash(tree, name, bucket, profile, vocabulary, aside), parents_hash(tree, bucket, parents)]
        for bucket in inputs
    }
    return [
        make_task(
            STAGE,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=profile.token_rules(),
            inputs=[hashes, *needed[bucket]],
            params=Params(bucket=bucket, profile=name, settings=profile.model_dump(mode="json"), stores=dict(stores)),
            carrying=partial(_carrying, context, name, bucket, profile, vocabulary, parents, stores, needed[bucket]),
        )
        for bucket, hashes in inputs.items()
    ]


def _carrying(
    context: RunContext,
    name: str,
    bucket: int,
    profile: ProfileConfig,
    vocabulary: pl.DataFrame,
    parents: pl.DataFrame | None,
    stores: Mapping[str, str],
    needed: list[str | None],
) -> Carrying:
    """A subject's tokens depend on the rules, and on the ids and breaks of the tokens that its bucket may need: those
    that the release before needed are to be what they were.

    Args:
        needed: hashes of what the bucket may need, and of its codes' parents.
    """
    tree, former, before = ReleaseLayout(context.staging / "release"), context.former_tree, UNKNOWN
    rules = [profile.token_rules(), sorted(stores.items())]
    if former is not None and former.token_counts(name, bucket).is_file():
        with suppress(TimeloomError):
            aside = uncounted_subjects(former, profile)
            before = slice_hash(tree, name, bucket, profile, vocabulary, aside, former)
    relative = ReleaseLayout(Path())
    return Carrying(
        [*rules, *needed],
        [*rules, before, parents_hash_before(context, bucket, parents)],
        [*reads(bucket, items=True), str(relative.vocabulary(name)), str(relative.quantiles(name))],
    )


def run(params: Params, base: Path, former: Former | None = None) -> Result:
    """Writes one bucket's timelines."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    profile, stores = ProfileConfig.model_validate(params["settings"]), params["stores"]
    made: Counts = {"tokens": 0, "unknown": 0, "largest_id": 0, "values_without_quantiles": 0}
    now, kept = Contents.of_frame(read_frame(tree.contents(bucket))), None
    if former is not None:
        before = Contents.of_frame(read_frame(former.tree.contents(bucket)))
        others = subjects_of_other_items(tree, former.tree, bucket, stores)
        kept = KeptCells.of(now, before, former.tree.timeline(name, bucket), others)
    subjects = None if kept is None else now.subjects[kept.changed]
    firsts = now.subjects[now.starts]
    tables = (
        cell
        for timeline in timelines(tree, bucket, name, profile, stores, subjects, firsts)
        for cell in _counted(timeline, made).cells(firsts)
    )
    path = tree.timeline(name, bucket)
    if kept is None or former is None:
        rows = _write(path, tables)
    else:
        rows = kept.write(path, tables, _write)
        _count_kept(kept, made)
        if former.counts["values_without_quantiles"]:
            gone = np.setdiff1d(before.subjects, kept.kept_subjects)
            those = timelines(former.tree, bucket, name, profile, stores, gone)
            less = sum(timeline.without_breaks for timeline in those)
            made["values_without_quantiles"] += former.counts["values_without_quantiles"] - less
    return Result({str(path.relative_to(base)): rows}, made)


def _write(path: Path, tables: Iterable[pa.Table]) -> int:
    return write_tables(path, tables, TIMELINES, "timelines", ENCODINGS, fast=("token_id",))


def timelines(
    tree: ReleaseLayout,
    bucket: int,
    name: str,
    profile: ProfileConfig,
    stores: Mapping[str, str],
    subjects: I64 | None = None,
    firsts: I64 | None = None,
) -> Iterator[Encoded]:
    """A bucket's timelines, some subjects at a time.

    Args:
        subjects: ids, ascending, of those who are wanted; all where not given.
        firsts: ids, ascending, that a part may begin at; every one where not given.
    """
    ids = ids_of(tree, name)
    encoder = TimelineWriter(profile, ids, read_shared(tree.quantiles(name)))
    for chosen in chosen_parts(tree, bucket, profile, stores, ids, subjects, firsts):
        yield encoder.encode(chosen)


def _counted(encoded: Encoded, made: Counts) -> Encoded:
    made["tokens"] += len(encoded)
    made["unknown"] += int((encoded.ids == UNK).sum())
    made["largest_id"] = max(made["largest_id"], int(encoded.ids.max(initial=0)))
    made["values_without_quantiles"] += encoded.without_breaks
    return encoded


def _count_kept(kept: KeptCells, made: Counts) -> None:
    ids = kept.numbers("token_id")
    made["tokens"] += len(ids)
    made["unknown"] += int((ids == UNK).sum())
    made["largest_id"] = max(made["largest_id"], int(ids.max(initial=0)))


STAGE = Stage(
    "tokenize",
    version=7,
    run="pipelines.tokenize:run",
    after=("align", "embed", "vocabulary"),
    keys=("profiles",),
    plan=plan,
    settings_are=("token rules",),
    inputs_are=("events and items", "vocabulary of its codes", "parents of its codes"),
)
