"""tokenize: one bucket's events → its subjects' timelines as token ids. Schema in: EVENTS. Schema out: TIMELINES."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from pipelines.engine.context import RunContext
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.profiles.choosing import chosen_parts, parents_hash, parents_of
from pipelines.profiles.lexicon import Ids
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Encoded, TimelineWriter
from pipelines.vocabulary import slice_hash
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, write_tables
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
    return [
        make_task(
            STAGE,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=profile.token_rules(),
            inputs=[
                hashes,
                slice_hash(tree, name, bucket, profile, vocabulary),
                parents_hash(tree, bucket, parents),
            ],
            params=Params(bucket=bucket, profile=name, settings=profile.model_dump(mode="json"), stores=dict(stores)),
        )
        for bucket, hashes in inputs.items()
    ]


def run(params: Params, base: Path) -> Result:
    """Writes one bucket's timelines."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])
    made: Counts = {"tokens": 0, "unknown": 0, "largest_id": 0, "values_without_quantiles": 0}
    tables = (_counted(timeline, made) for timeline in timelines(tree, bucket, name, profile, params["stores"]))
    path = tree.timeline(name, bucket)
    rows = write_tables(path, tables, TIMELINES, "timelines", ENCODINGS, fast=("token_id",))
    return Result({str(path.relative_to(base)): rows}, made)


def timelines(
    tree: ReleaseLayout, bucket: int, name: str, profile: ProfileConfig, stores: Mapping[str, str]
) -> Iterator[Encoded]:
    """A bucket's timelines, some subjects at a time."""
    ids = Ids(read_frame(tree.vocabulary(name)))
    encoder = TimelineWriter(profile, ids, read_frame(tree.quantiles(name)))
    for chosen in chosen_parts(tree, bucket, profile, stores, ids):
        yield encoder.encode(chosen)


def _counted(encoded: Encoded, made: Counts) -> pa.Table:
    made["tokens"] += len(encoded)
    made["unknown"] += int((encoded.ids == UNK).sum())
    made["largest_id"] = max(made["largest_id"], int(encoded.ids.max(initial=0)))
    made["values_without_quantiles"] += encoded.without_breaks
    return encoded.table()


STAGE = Stage(
    "tokenize",
    version=5,
    run="pipelines.tokenize:run",
    after=("align", "embed", "vocabulary"),
    keys=("profiles",),
    plan=plan,
    settings_are=("token rules",),
    inputs_are=("events and items", "vocabulary of its codes", "parents of its codes"),
)
