"""vocabulary: tokens of train subjects → ids, dense, the same for ever; new tokens are appended.

Two steps: `count` per bucket, `fit` over all. Schema in: EVENTS, ITEMS, splits. Schema out: TOKEN_COUNTS, VOCABULARY.
"""

from pathlib import Path
from typing import Any

import polars as pl

from pipelines.config import ProfileConfig
from pipelines.engine import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.profiles import token_rows
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.schemas import TOKEN_COUNTS, VOCABULARY, read_frame, write_table
from warehouse.tokens import RESERVED, TYPE_NAMES, TokenType
from warehouse.vocabulary import vocabulary_hash

COUNT = Stage("count", 1, "pipelines.vocabulary:count")
FIT = Stage("vocabulary", 1, "pipelines.vocabulary:fit")


def plan_counts(
    context: RunContext, name: str, profile: ProfileConfig, inputs: dict[int, Any], splits: dict[int, str]
) -> list[Task]:
    """One task per bucket.

    Args:
        inputs: per bucket, the hashes of its events and items.
        splits: per bucket, the hash of its subjects' splits.
    """
    return [
        make_task(
            COUNT,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=profile.model_dump(exclude={"context"}),
            inputs=[hashes, splits.get(bucket)],
            params={"bucket": bucket, "profile": name, "settings": profile.model_dump(mode="json")},
        )
        for bucket, hashes in inputs.items()
    ]


def bucket_tokens(tree: ReleaseLayout, bucket: int, profile: ProfileConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`token_rows` of a bucket of a release."""
    items = read_frame(tree.items(bucket)).filter(pl.col("verdict") == "ok")
    return token_rows(read_frame(tree.events(bucket)), items, profile)


def count(params: dict[str, Any], base: Path) -> Result:
    """Counts a bucket's tokens by split."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    tokens, dropped = bucket_tokens(tree, bucket, ProfileConfig.model_validate(params["settings"]))
    counted = (
        tokens.join(read_frame(tree.subject_splits), on="subject_id")
        .group_by("split", "token", "type")
        .agg(pl.len().cast(pl.Int64).alias("count"))
        .with_columns(pl.col("type").replace_strict(_NAMES, return_dtype=pl.String))
        .sort("split", "token")
    )
    path = tree.token_counts(name, bucket)
    rows = write_table(path, counted, TOKEN_COUNTS, "token counts")
    left_out = {f"{namespace}|{reason}": events for namespace, reason, events in dropped.iter_rows()}
    return Result({str(path.relative_to(base)): rows}, {"dropped": left_out})


_NAMES = {int(kind): name for kind, name in TYPE_NAMES.items()}


def plan_fit(context: RunContext, name: str, counts: StageReport) -> Task:
    """One task over every bucket's counts and the vocabulary of the release before."""
    previous = context.inherited(ReleaseLayout(Path()).vocabulary(name))
    hashes = {path: digest for path, digest in counts.hashes().items() if f"/{name}/" in path}
    return make_task(
        FIT,
        name,
        context.staging,
        settings=None,
        inputs=[hashes, previous and previous.sha256],
        params={"profile": name, "counts": sorted(hashes), "previous": previous and str(previous.path)},
    )


def fit(params: dict[str, Any], base: Path) -> Result:
    """Fits the vocabulary on train: reserved ids, then what was known, then new tokens by count, ties by name."""
    counts = pl.concat([read_frame(base / path) for path in params["counts"]])
    known = read_frame(Path(params["previous"])).select("token_id", "token", "type") if params["previous"] else None
    vocabulary = extend(counts, known)
    path = ReleaseLayout(base).vocabulary(params["profile"])
    rows = write_table(path, vocabulary, VOCABULARY, "the vocabulary")
    outside = counts.join(vocabulary, on="token", how="anti")
    unknown = dict(outside.group_by("split").agg(pl.col("count").sum()).sort("split").iter_rows())
    totals = dict(counts.group_by("split").agg(pl.col("count").sum()).sort("split").iter_rows())
    return Result(
        {str(path.relative_to(base)): rows},
        {"size": rows, "hash": vocabulary_hash(vocabulary), "unknown": unknown, "tokens": totals},
    )


def extend(counts: pl.DataFrame, known: pl.DataFrame | None) -> pl.DataFrame:
    """VOCABULARY of train's tokens: a token keeps the id that it has."""
    reserved = pl.DataFrame(
        {
            "token_id": range(len(RESERVED)),
            "token": [token for token, _ in RESERVED],
            "type": [TYPE_NAMES[TokenType(kind)] for _, kind in RESERVED],
        },
        schema={"token_id": pl.UInt32, "token": pl.String, "type": pl.String},
    )
    old = known if known is not None else reserved
    train = counts.filter(pl.col("split") == "train").group_by("token", "type").agg(pl.col("count").sum())
    new = (
        train.join(old, on="token", how="anti")
        .sort(["count", "token"], descending=[True, False])
        .select((pl.int_range(pl.len(), dtype=pl.UInt32) + len(old)).cast(pl.UInt32).alias("token_id"), "token", "type")
    )
    totals = train.select("token", pl.col("count").alias("train_count"))
    return (
        pl.concat([old, new])
        .join(totals, on="token", how="left", maintain_order="left")
        .with_columns(pl.col("train_count").fill_null(0))
    )


def slice_hash(counts: Path, vocabulary: pl.DataFrame) -> str:
    """A hash of the ids of the tokens that one bucket has: what its timeline depends on."""
    tokens = read_frame(counts).select(pl.col("token").unique().sort())
    return vocabulary_hash(tokens.join(vocabulary, on="token"))
