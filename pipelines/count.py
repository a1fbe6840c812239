"""count: events of one bucket → how often each token of a profile occurs. Schema out: TOKEN_COUNTS and value counts."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import polars as pl
import pyarrow as pa

from pipelines.carrying.subjects import Changes, reads, splits_of
from pipelines.engine.context import RunContext
from pipelines.engine.former import Former
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.profiles.choosing import chosen_parts, lexicon_of, parents_hash, parents_hash_before, parents_of
from pipelines.profiles.counting import LEFT_OUT, VALUES, count_part
from pipelines.profiles.counting import Counts as TokenCounts
from pipelines.profiles.lexicon import Lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.split import hashes_of
from warehouse.arrays import I64
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import TOKEN_COUNTS

# A bucket's numbers of one code and unit, by split; only where the profile tells values.
VALUE_COUNTS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("unit", pa.string()),
        pa.field("value", pa.float32(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)


class Counts(TypedDict):
    """Which tokens a profile leaves out, and how often."""

    left_out: list[list[Any]]


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
        for task in tasks_of(
            night.context,
            name,
            profile,
            night.bucket_inputs(profile),
            hashes_of(night, str(profile.scheme)),
            night.stores_of(profile),
        )
    ]


def tasks_of(
    context: RunContext,
    name: str,
    profile: ProfileConfig,
    inputs: dict[int, Any],
    splits: dict[int, str],
    stores: Mapping[str, str],
) -> list[Task]:
    """One task per bucket.

    Args:
        inputs: per bucket, the hashes of its events and of the items that have a vector in `stores`.
        splits: per bucket, the hash of its subjects' splits in the profile's scheme.
        stores: by modality, the store whose vectors the profile's tokens carry.
    """
    tree = ReleaseLayout(context.staging / "release")
    parents = parents_of(tree, profile)
    rules = [profile.token_rules(), profile.scheme, sorted(stores.items())]
    of_bucket = {bucket: parents_hash(tree, bucket, parents) for bucket in inputs}

    def carrying(bucket: int) -> Carrying:
        return Carrying(
            rules=[*rules, of_bucket[bucket]],
            before=[*rules, parents_hash_before(context, bucket, parents)],
            reads=reads(bucket, scheme=str(profile.scheme), items=True),
        )

    return [
        make_task(
            STAGE,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=[profile.token_rules(), profile.scheme],
            inputs=[hashes, splits.get(bucket), of_bucket[bucket]],
            carrying=partial(carrying, bucket),
            params=Params(bucket=bucket, profile=name, settings=profile.model_dump(mode="json"), stores=dict(stores)),
        )
        for bucket, hashes in inputs.items()
    ]


def run(params: Params, base: Path, former: Former | None = None) -> Result:
    """Counts a bucket's tokens and values by split."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])

    def counted(tree: ReleaseLayout, lexicon: Lexicon, subjects: I64 | None = None) -> TokenCounts:
        splits = splits_of(tree, profile.scheme)
        parts = chosen_parts(tree, bucket, profile, params["stores"], subjects=subjects, lexicon=lexicon)
        return TokenCounts.together([count_part(chosen, splits, profile) for chosen in parts])

    changes = None
    if former is not None and profile.scheme is not None:
        changes = Changes.of(tree, former.tree, bucket, stores=params["stores"], scheme=profile.scheme)
    if former is None or changes is None:
        counts = counted(tree, lexicon_of(tree, bucket, profile))
    else:
        lexicon = lexicon_of(tree, bucket, profile, former=former.tree)
        before, now = counted(former.tree, lexicon, changes.before), counted(tree, lexicon, changes.now)
        counts = _former_counts(former, name, bucket, profile).mended(before, now)
    path = tree.token_counts(name, bucket)
    files: dict[str, int | None] = {}
    files[str(path.relative_to(base))] = write_table(path, counts.tokens, TOKEN_COUNTS, "token counts")
    if profile.values != "codes_only":
        path = values_path(tree, name, bucket)
        files[str(path.relative_to(base))] = write_table(path, counts.values, VALUE_COUNTS, "value counts")
    return Result(files, Counts(left_out=[list(row) for row in counts.left_out.iter_rows()]))


def _former_counts(former: Former, name: str, bucket: int, profile: ProfileConfig) -> TokenCounts:
    """What the release before has counted."""
    values = pl.DataFrame(schema=VALUES)
    if profile.values != "codes_only":
        values = read_frame(values_path(former.tree, name, bucket))
    left_out = pl.DataFrame(former.counts["left_out"], schema=LEFT_OUT, orient="row")
    return TokenCounts(read_frame(former.tree.token_counts(name, bucket)), values, left_out)


def values_path(tree: ReleaseLayout, name: str, bucket: int) -> Path:
    """A bucket's value counts."""
    return tree.token_counts(name, bucket).with_name(f"{bucket_name(bucket)}.values.parquet")


STAGE = Stage(
    "count",
    4,
    "pipelines.count:run",
    after=("align", "embed", "split"),
    keys=("profiles",),
    plan=plan,
    settings_are=("token rules", "scheme"),
    inputs_are=("events and items", "splits", "parents of its codes"),
)
