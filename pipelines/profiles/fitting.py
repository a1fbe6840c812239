"""From counts to a vocabulary: what is kept, in which order, and what the rest becomes."""

import polars as pl
import pyarrow as pa

from pipelines.profiles.codes import begins_with
from pipelines.profiles.intervals import interval_tokens
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import Breaks, value_tokens
from warehouse.parquet import empty_frame
from warehouse.tokens import RESERVED, TIMELINE_END, TYPE_NAMES, TokenType


def summed(frames: list[pl.DataFrame], keys: list[str], schema: pa.Schema) -> pl.DataFrame:
    every = pl.concat([empty_frame(schema), *(frame.select(schema.names) for frame in frames)])
    return every.group_by(keys).agg(pl.col("count").sum()).sort(keys)


def without_the_rest(
    counts: pl.DataFrame, known: pl.DataFrame | None, profile: ProfileConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Counts without the codes that are not among a rule's `top`, and those as LEFT_OUT.

    What the vocabulary has stays; free places go to train's most frequent codes, ties by name.
    """
    beyond = [pl.Series(dtype=pl.String)]
    have = pl.DataFrame(schema={"token": pl.String}) if known is None else known.select("token")
    for key, rule in profile.codes.items():
        if rule.top is None:
            continue
        finer = [code for code in profile.codes if code.startswith(f"{key}/")]
        of_rule = begins_with("token", [key]) & ~begins_with("token", finer)
        # A fused value's token holds no place; a code that ends like one has a slash behind it.
        fused = pl.col("token").str.contains(r"//Q\d+$") if profile.values == "fused" else pl.lit(False)
        old = have.filter(of_rule & ~fused)
        others = counts.filter(of_rule).join(old, on="token", how="anti")
        train = pl.when(pl.col("split") == "train").then("count").otherwise(0).sum()
        ranked = others.group_by("token").agg(train.alias("train")).sort(["train", "token"], descending=[True, False])
        free = max(rule.top - len(old), 0)
        beyond.append(ranked.filter((pl.int_range(pl.len()) >= free) | (pl.col("train") == 0))["token"])
    outside = pl.col("token").is_in(pl.concat(beyond).implode())
    left_out = (
        counts.filter(outside)
        .group_by("split", _namespace().alias("namespace"))
        .agg(pl.col("count").sum())
        .select("split", "namespace", pl.lit("not_among_top").alias("reason"), "count")
    )
    return counts.filter(~outside), left_out.sort("split", "namespace")


def _namespace() -> pl.Expr:
    return pl.col("token").str.split("/").list.first()


def with_values(
    counts: pl.DataFrame, values: pl.DataFrame, quantiles: pl.DataFrame, profile: ProfileConfig
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Counts with the tokens of values, and the values without breaks as LEFT_OUT."""
    values = values.join(counts.select(pl.col("token").alias("code")).unique(), on="code", how="semi")
    rows = values.join(
        quantiles.select("code", "unit").with_row_index("row"), on=["code", "unit"], how="left", nulls_equal=True
    )
    without = (
        rows.filter(pl.col("row").is_null())
        .group_by("split", pl.col("code").str.split("/").list.first().alias("namespace"))
        .agg(pl.col("count").sum())
        .select("split", "namespace", pl.lit("value_without_quantiles").alias("reason"), "count")
        .sort("split", "namespace")
    )
    found = rows.drop_nulls("row")
    bins = Breaks(quantiles).bins(found["value"].to_numpy(), found["row"].cast(pl.Int64).to_numpy())
    name = pl.Series("value_token", value_tokens(profile.quantiles), pl.String).gather(pl.Series(bins, dtype=pl.UInt32))
    found = found.with_columns(name)
    kind = pl.lit(TYPE_NAMES[TokenType.STRUCTURED]).alias("type")
    if profile.values == "fused":
        fused = pl.col("code") + "//" + pl.col("value_token").str.split("/").list.last()
        parts = [
            found.select("split", fused.alias("token"), kind, "count"),
            found.select("split", pl.col("code").alias("token"), kind, -pl.col("count")),
        ]
    else:
        parts = [found.select("split", pl.col("value_token").alias("token"), kind, "count")]
    keys = ["split", "token", "type"]
    every = pl.concat([counts, *(part.select(counts.columns) for part in parts)])
    return every.group_by(keys).agg(pl.col("count").sum()).sort(keys), without


def fixed_tokens(profile: ProfileConfig, quantiles: pl.DataFrame) -> pl.DataFrame:
    """Tokens that the rules themselves name, seen or not, with their types: they get their ids at once.

    So the ids that a bucket's values may lead to change only when its own quantiles do.
    """
    tokens = [(token, TokenType.INTERVAL) for token in interval_tokens(profile.intervals)]
    if profile.timeline_end:
        tokens.append((TIMELINE_END, TokenType.STRUCTURED))
    names = value_tokens(profile.quantiles)
    if profile.values == "pair":
        tokens += [(token, TokenType.STRUCTURED) for token in names]
    named = [(token, TYPE_NAMES[kind]) for token, kind in tokens]
    fixed = pl.DataFrame(named, schema={"token": pl.String, "type": pl.String}, orient="row")
    if profile.values == "fused":
        fixed = pl.concat([fixed, fused_tokens(quantiles["code"], profile)])
    return fixed


def fused_tokens(codes: pl.Series, profile: ProfileConfig) -> pl.DataFrame:
    """Every token, with its type, that fused values of codes can have."""
    suffixes = pl.DataFrame({"suffix": [f"//{token.rpartition('/')[2]}" for token in value_tokens(profile.quantiles)]})
    every = codes.unique().sort().rename("code").to_frame().join(suffixes, how="cross")
    kind = pl.lit(TYPE_NAMES[TokenType.STRUCTURED]).alias("type")
    return every.select((pl.col("code") + pl.col("suffix")).alias("token"), kind)


def extend(counts: pl.DataFrame, known: pl.DataFrame | None, fixed: pl.DataFrame | None = None) -> pl.DataFrame:
    """VOCABULARY of train's tokens: a token keeps the id that it has.

    Args:
        counts: columns of TOKEN_COUNTS.
        known: columns token_id, token and type of the vocabulary before.
        fixed: columns token and type, of tokens that get an id whatever train has.
    """
    reserved = pl.DataFrame(
        {
            "token_id": range(len(RESERVED)),
            "token": [token for token, _ in RESERVED],
            "type": [TYPE_NAMES[TokenType(kind)] for _, kind in RESERVED],
        },
        schema={"token_id": pl.UInt32, "token": pl.String, "type": pl.String},
    )
    old = known if known is not None else reserved
    train = counts.filter(pl.col("split") == "train").select("token", "type", "count")
    if fixed is not None:
        train = pl.concat([train, fixed.select("token", "type", pl.lit(0, pl.Int64).alias("count"))])
    train = train.group_by("token", "type").agg(pl.col("count").sum())
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


def covered(counts: pl.DataFrame, vocabulary: pl.DataFrame, left_out: pl.DataFrame) -> pl.DataFrame:
    """COVERAGE of counted tokens and of what was left out."""
    known = pl.col("token").is_in(vocabulary["token"].implode())
    names = [TYPE_NAMES[kind] for kind in (TokenType.INTERVAL, TokenType.SPECIAL)]
    tokens = (
        counts.filter(~pl.col("type").is_in(names) & (pl.col("count") > 0))
        .group_by(
            "split",
            _namespace().alias("namespace"),
            pl.when(known).then(pl.lit("token")).otherwise(pl.lit("unknown")).alias("outcome"),
        )
        .agg(pl.col("count").sum())
        .with_columns(pl.lit("").alias("reason"))
    )
    dropped = left_out.with_columns(pl.lit("dropped").alias("outcome"))
    keys = ["split", "namespace", "outcome", "reason"]
    every = pl.concat([frame.select(*keys, "count") for frame in (tokens, dropped)])
    return every.group_by(keys).agg(pl.col("count").sum()).sort(keys)
