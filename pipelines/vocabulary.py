"""vocabulary: what train's timelines hold → token ids and quantiles, the same for ever; new ones are appended.

Two steps: `count` per bucket, `fit` over all. Schema in: EVENTS, ITEMS, splits, metadata/codes.parquet. Schema out:
TOKEN_COUNTS, VALUE_COUNTS, VOCABULARY, QUANTILES, COVERAGE.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.engine.run_stage import Result, RunContext, Stage, StageReport, Task, make_task
from pipelines.profiles.codes import begins_with
from pipelines.profiles.counting import LEFT_OUT, Counts, count_part
from pipelines.profiles.events import read_parts
from pipelines.profiles.intervals import interval_tokens
from pipelines.profiles.lexicon import Ids, make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Chosen, choose
from pipelines.profiles.values import Breaks, value_tokens
from pipelines.profiles.values import fit as fit_quantiles
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json, write_json
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.schemas import TOKEN_COUNTS, VOCABULARY, empty_frame, read_frame, write_table
from warehouse.tokens import RESERVED, TIMELINE_END, TYPE_NAMES, TokenType
from warehouse.vocabulary import COVERAGE, QUANTILES, vocabulary_hash

COUNT = Stage("count", 2, "pipelines.vocabulary:count")
FIT = Stage("vocabulary", 2, "pipelines.vocabulary:fit")
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


def plan_counts(
    context: RunContext, name: str, profile: ProfileConfig, inputs: dict[int, Any], splits: dict[int, str]
) -> list[Task]:
    """One task per bucket.

    Args:
        inputs: per bucket, the hashes of its events and items.
        splits: per bucket, the hash of its subjects' splits in the profile's scheme.
    """
    tree = ReleaseLayout(context.staging / "release")
    parents = parents_of(tree, profile)
    return [
        make_task(
            COUNT,
            f"{name}-{bucket_name(bucket)}",
            context.staging,
            settings=[profile.token_rules(), profile.scheme],
            inputs=[hashes, splits.get(bucket), parents_hash(tree, bucket, parents)],
            params={"bucket": bucket, "profile": name, "settings": profile.model_dump(mode="json")},
        )
        for bucket, hashes in inputs.items()
    ]


def parents_of(tree: ReleaseLayout, profile: ProfileConfig) -> pl.DataFrame | None:
    """metadata/codes.parquet where the profile asks for parents."""
    if not any(rule.parents for rule in profile.codes.values()) or not tree.codes.is_file():
        return None
    return read_frame(tree.codes).select("code", "parent_codes").drop_nulls("parent_codes")


def parents_hash(tree: ReleaseLayout, bucket: int, parents: pl.DataFrame | None) -> str | None:
    """A hash of the parents of a bucket's own codes."""
    if parents is None:
        return None
    own = read_frame(tree.codes_of(bucket)).select("code").join(parents, on="code").sort("code")
    return sha256_json([own["code"].to_list(), own["parent_codes"].to_list()])


def chosen_parts(tree: ReleaseLayout, bucket: int, profile: ProfileConfig, ids: Ids | None = None) -> Iterator[Chosen]:
    """A bucket's events that become tokens, some subjects at a time."""
    usable = read_frame(tree.items(bucket)).filter(pl.col("verdict") == "ok")["item_key"]
    codes = read_frame(tree.codes_of(bucket))["code"].sort()
    lexicon = make_lexicon(codes, profile, parents_of(tree, profile), ids)
    values = profile.values != "codes_only" or any(rule.only_numeric for rule in profile.codes.values())
    for part in read_parts(tree.events(bucket), codes, values=values):
        yield choose(part, lexicon, usable, profile)


def count(params: dict[str, Any], base: Path) -> Result:
    """Counts a bucket's tokens and values by split."""
    tree, bucket, name = ReleaseLayout(base), params["bucket"], params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])
    splits = read_frame(tree.subject_splits if profile.scheme is None else tree.scheme_subjects(profile.scheme))
    splits = splits.select("subject_id", "split")
    parts = chosen_parts(tree, bucket, profile)
    counts = Counts.together([count_part(chosen, splits, profile) for chosen in parts])
    path = tree.token_counts(name, bucket)
    files: dict[str, int | None] = {}
    files[str(path.relative_to(base))] = write_table(path, counts.tokens, TOKEN_COUNTS, "token counts")
    if profile.values != "codes_only":
        path = values_path(tree, name, bucket)
        files[str(path.relative_to(base))] = write_table(path, counts.values, VALUE_COUNTS, "value counts")
    return Result(files, {"left_out": [list(row) for row in counts.left_out.iter_rows()]})


def values_path(tree: ReleaseLayout, name: str, bucket: int) -> Path:
    """A bucket's value counts."""
    return tree.token_counts(name, bucket).with_name(f"{bucket_name(bucket)}.values.parquet")


def record_path(tree: ReleaseLayout, name: str) -> Path:
    """What a vocabulary was fitted with: version, scheme and quantiles."""
    return tree.vocabulary(name).with_name("vocabulary.json")


def plan_fit(context: RunContext, name: str, profile: ProfileConfig, counts: StageReport) -> Task:
    """One task over every bucket's counts, and the vocabulary and quantiles of the release before.

    Raises:
        TimeloomError: the vocabulary before was fitted for other splits or quantiles, or has a higher version.
    """
    settings = {"version": profile.vocabulary_version, "scheme": profile.scheme, "quantiles": profile.quantiles}
    known = _known(context, name, settings)
    own = {key: entry for key, entry in counts.entries.items() if key.rpartition("-")[0] == name}
    hashes = {path: file.sha256 for entry in own.values() for path, file in entry.files.items()}
    left_out = pl.DataFrame(
        [row for entry in own.values() for row in entry.counts["left_out"]], schema=LEFT_OUT, orient="row"
    )
    keys = ["split", "namespace", "reason"]
    summed = left_out.group_by(keys).agg(pl.col("count").sum()).sort(keys)
    return make_task(
        FIT,
        name,
        context.staging,
        settings=[profile.token_rules(), settings],
        inputs=[hashes, [list(row) for row in summed.iter_rows()], {key: one[1] for key, one in known.items()}],
        params={
            "profile": name,
            "settings": profile.model_dump(mode="json"),
            "counts": sorted(path for path in hashes if not path.endswith(".values.parquet")),
            "values": sorted(path for path in hashes if path.endswith(".values.parquet")),
            "left_out": [list(row) for row in summed.iter_rows()],
            "previous": known["vocabulary"][0] if "vocabulary" in known else None,
            "quantiles": known["quantiles"][0] if "quantiles" in known else None,
        },
    )


def _known(context: RunContext, name: str, settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Path and hash of the vocabulary and quantiles to append to; none where there are none, or all is fitted anew."""
    relative = ReleaseLayout(Path())
    record, vocabulary = context.inherited(record_path(relative, name)), context.inherited(relative.vocabulary(name))
    if vocabulary is None:
        return {}
    before = json.loads(record.path.read_text()) if record is not None else {**settings, "version": 1}
    if before["version"] < settings["version"]:
        return {}
    if before["version"] > settings["version"]:
        raise TimeloomError(
            f"the vocabulary of {name} has version {before['version']}",
            remedy=f"set profiles.{name}.vocabulary_version to {before['version']}, or higher for new ids",
        )
    for key in ("scheme", "quantiles"):
        if before[key] != settings[key]:
            raise TimeloomError(
                f"the vocabulary of {name} was fitted with {key} {before[key]}, not {settings[key]}",
                remedy=f"raise profiles.{name}.vocabulary_version for a new one, or use another profile name",
            )
    quantiles = context.inherited(relative.quantiles(name))
    found = {"vocabulary": vocabulary, "quantiles": quantiles}
    return {key: (str(one.path), one.sha256) for key, one in found.items() if one is not None}


def fit(params: dict[str, Any], base: Path) -> Result:
    """Fits the vocabulary on train: reserved ids, then what was known, then new tokens by count, ties by name."""
    tree, name = ReleaseLayout(base), params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])
    counts = _sum([read_frame(base / path) for path in params["counts"]], ["split", "token", "type"], TOKEN_COUNTS)
    values = _sum(
        [read_frame(base / path) for path in params["values"]], ["split", "code", "unit", "value"], VALUE_COUNTS
    )
    known = read_frame(Path(params["previous"])).select("token_id", "token", "type") if params["previous"] else None
    quantiles = read_frame(Path(params["quantiles"])) if params["quantiles"] else empty_frame(QUANTILES)
    quantiles = fit_quantiles(
        values.filter(pl.col("split") == "train"), quantiles, profile.quantiles, profile.min_values
    )
    chosen, below = without_the_rest(counts, known, profile)
    told, without = with_values(chosen, values, quantiles, profile)
    vocabulary = extend(told, known, fixed_tokens(profile, quantiles))
    left_out = pl.DataFrame(params["left_out"], schema=LEFT_OUT, orient="row")
    coverage = covered(told, vocabulary, pl.concat([left_out, below, without]))
    record = {"version": profile.vocabulary_version, "scheme": profile.scheme, "quantiles": profile.quantiles}
    write_json(record_path(tree, name), record)
    rows = {
        record_path(tree, name): None,
        tree.vocabulary(name): write_table(tree.vocabulary(name), vocabulary, VOCABULARY, "the vocabulary"),
        tree.quantiles(name): write_table(tree.quantiles(name), quantiles, QUANTILES, "quantiles"),
        tree.coverage(name): write_table(tree.coverage(name), coverage, COVERAGE, "coverage"),
    }
    by_split = told.group_by("split").agg(pl.col("count").sum()).sort("split")
    unknown = told.join(vocabulary, on="token", how="anti").group_by("split").agg(pl.col("count").sum()).sort("split")
    return Result(
        {str(path.relative_to(base)): number for path, number in rows.items()},
        {
            "size": len(vocabulary),
            "hash": vocabulary_hash(vocabulary),
            "version": profile.vocabulary_version,
            "unknown": dict(unknown.iter_rows()),
            "tokens": dict(by_split.iter_rows()),
        },
    )


def _sum(frames: list[pl.DataFrame], keys: list[str], schema: pa.Schema) -> pl.DataFrame:
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
        finer = [one for one in profile.codes if one.startswith(f"{key}/")]
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
        told = pl.col("code") + "//" + pl.col("value_token").str.split("/").list.last()
        parts = [
            found.select("split", told.alias("token"), kind, "count"),
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


def slice_hash(tree: ReleaseLayout, name: str, bucket: int, profile: ProfileConfig, vocabulary: pl.DataFrame) -> str:
    """A hash of the ids and breaks that one bucket's timelines may need, and of no others."""
    tokens = read_frame(tree.token_counts(name, bucket)).select(pl.col("token").unique())
    breaks = None
    wanted = [tokens, fixed_tokens(profile, empty_frame(QUANTILES)).select("token")]
    if profile.values != "codes_only":
        pairs = read_frame(values_path(tree, name, bucket)).select("code", "unit").unique()
        own = read_frame(tree.quantiles(name)).join(pairs, on=["code", "unit"], how="semi", nulls_equal=True)
        breaks = [own[column].to_list() for column in ("code", "unit", "breaks")]
        if profile.values == "fused":
            wanted.append(fused_tokens(own["code"], profile).select("token"))
    found = pl.concat(wanted).unique().join(vocabulary, on="token")
    return sha256_json([vocabulary_hash(found), breaks])
