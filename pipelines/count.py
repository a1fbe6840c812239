"""count: events of one bucket → how often each token of a profile occurs. Schema out: TOKEN_COUNTS and value counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from pipelines.engine.context import RunContext
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.profiles.choosing import chosen_parts, parents_hash, parents_of
from pipelines.profiles.counting import Counts as TokenCounts
from pipelines.profiles.counting import count_part
from pipelines.profiles.rules import ProfileConfig
from pipelines.split import hashes_of
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
    return [
        make_task(
            STAGE,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=[profile.token_rules(), profile.scheme],
            inputs=[hashes, splits.get(bucket), parents_hash(tree, bucket, parents)],
            params=Params(bucket=bucket, profile=name, settings=profile.model_dump(mode="json"), stores=dict(stores)),
        )
        for bucket, hashes in inputs.items()
    ]


def run(params: Params, base: Path) -> Result:
    """Counts a bucket's tokens and values by split."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])
    splits = read_frame(tree.subject_splits if profile.scheme is None else tree.scheme_subjects(profile.scheme))
    splits = splits.select("subject_id", "split")
    parts = chosen_parts(tree, bucket, profile, params["stores"])
    counts = TokenCounts.together([count_part(chosen, splits, profile) for chosen in parts])
    path = tree.token_counts(name, bucket)
    files: dict[str, int | None] = {}
    files[str(path.relative_to(base))] = write_table(path, counts.tokens, TOKEN_COUNTS, "token counts")
    if profile.values != "codes_only":
        path = values_path(tree, name, bucket)
        files[str(path.relative_to(base))] = write_table(path, counts.values, VALUE_COUNTS, "value counts")
    return Result(files, Counts(left_out=[list(row) for row in counts.left_out.iter_rows()]))


def values_path(tree: ReleaseLayout, name: str, bucket: int) -> Path:
    """A bucket's value counts."""
    return tree.token_counts(name, bucket).with_name(f"{bucket_name(bucket)}.values.parquet")


STAGE = Stage(
    "count",
    3,
    "pipelines.count:run",
    after=("align", "embed", "split"),
    keys=("profiles",),
    plan=plan,
    settings_are=("token rules", "scheme"),
    inputs_are=("events and items", "splits", "parents of its codes"),
)
