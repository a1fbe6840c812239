"""tokenize: one bucket's events → its subjects' timelines as token ids. Schema in: EVENTS. Schema out: TIMELINES."""

from pathlib import Path
from typing import Any

import polars as pl

from pipelines.config import ProfileConfig
from pipelines.engine import Result, RunContext, Stage, Task, make_task
from pipelines.vocabulary import bucket_tokens, slice_hash
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.schemas import TIMELINES, read_frame, write_table
from warehouse.tokens import UNK, TokenType

STAGE = Stage("tokenize", 1, "pipelines.tokenize:run")


def plan(context: RunContext, name: str, profile: ProfileConfig, inputs: dict[int, Any]) -> list[Task]:
    """One task per bucket, up to date as long as its events and the ids of its own tokens are.

    Args:
        inputs: per bucket, the hashes of its events and items.
    """
    tree = ReleaseLayout(context.staging / "release")
    vocabulary = read_frame(tree.vocabulary(name))
    return [
        make_task(
            STAGE,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=profile.model_dump(exclude={"context"}),
            inputs=[hashes, slice_hash(tree.token_counts(name, bucket), vocabulary)],
            params={"bucket": bucket, "profile": name, "settings": profile.model_dump(mode="json")},
        )
        for bucket, hashes in inputs.items()
    ]


def run(params: dict[str, Any], base: Path) -> Result:
    """Writes one bucket's timelines."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    tokens, _ = bucket_tokens(tree, bucket, ProfileConfig.model_validate(params["settings"]))
    timeline = encode(tokens, read_frame(tree.vocabulary(name)))
    path = tree.timeline(name, bucket)
    rows = write_table(path, timeline, TIMELINES, "timelines")
    return Result({str(path.relative_to(base)): rows}, {"tokens": rows})


def encode(tokens: pl.DataFrame, vocabulary: pl.DataFrame) -> pl.DataFrame:
    """Tokens as ids; one that train does not have is UNK, of type special, so that no loss falls on it."""
    unknown = pl.col("token_id").is_null()
    return (
        tokens.join(vocabulary.select("token_id", "token"), on="token", how="left", maintain_order="left")
        .with_columns(
            pl.when(unknown).then(pl.lit(int(TokenType.SPECIAL), pl.UInt8)).otherwise("type").alias("type"),
            pl.col("token_id").fill_null(UNK),
        )
        .select("subject_id", "token_id", "type", "time", "item_key")
    )
