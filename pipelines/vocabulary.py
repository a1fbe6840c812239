"""vocabulary: what train's timelines hold → token ids and quantiles, the same for ever; new ones are appended.

Two steps: `count` per bucket, `fit` over all. Schema in: EVENTS, ITEMS, splits, metadata/codes.parquet. Schema out:
TOKEN_COUNTS, VALUE_COUNTS, VOCABULARY, QUANTILES, COVERAGE.
"""

import json
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from pipelines.count import VALUE_COUNTS, values_path
from pipelines.count import Counts as CountCounts
from pipelines.engine.context import RunContext, StageReport, counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.profiles.counting import LEFT_OUT
from pipelines.profiles.fitting import (
    covered,
    extend,
    fixed_tokens,
    fused_tokens,
    summed,
    with_values,
    without_the_rest,
)
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import fit as fit_quantiles
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json, write_json
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import TOKEN_COUNTS, VOCABULARY
from warehouse.vocabulary import COVERAGE, QUANTILES, vocabulary_hash


class Counts(TypedDict):
    """What a task tells: its vocabulary, and by split the tokens and those that the vocabulary lacks."""

    size: int
    hash: str
    version: int
    unknown: dict[str, int]
    tokens: dict[str, int]


class Params(TypedDict):
    """What a task is given: paths and settings."""

    profile: str
    settings: dict[str, Any]
    counts: list[str]
    values: list[str]
    left_out: list[list[Any]]
    previous: str | None
    quantiles: str | None


def record_path(tree: ReleaseLayout, name: str) -> Path:
    """What a vocabulary was fitted with: version, scheme and quantiles."""
    return tree.vocabulary(name).with_name("vocabulary.json")


def plan(night: Night) -> list[Task]:
    """One task per profile.

    Raises:
        TimeloomError: a vocabulary before was fitted for other splits or quantiles, or has a higher version.
    """
    counts = night.report("count")
    return [task_of(night.context, name, profile, counts) for name, profile in night.profiles]


def task_of(context: RunContext, name: str, profile: ProfileConfig, counts: StageReport) -> Task:
    """One task over every bucket's counts, and the vocabulary and quantiles of the release before.

    Raises:
        TimeloomError: the vocabulary before was fitted for other splits or quantiles, or has a higher version.
    """
    relative = ReleaseLayout(Path())
    settings = {"version": profile.vocabulary_version, "scheme": profile.scheme, "quantiles": profile.quantiles}
    known = _known(context, name, settings)
    parts = {key: entry for key, entry in counts.entries.items() if key.rpartition("-")[0] == name}
    hashes = {path: file.sha256 for entry in parts.values() for path, file in entry.files.items()}
    left_out = pl.DataFrame(
        [row for entry in parts.values() for row in counts_of(entry, CountCounts)["left_out"]],
        schema=LEFT_OUT,
        orient="row",
    )
    keys = ["split", "namespace", "reason"]
    summed = left_out.group_by(keys).agg(pl.col("count").sum()).sort(keys)
    return make_task(
        STAGE,
        name,
        context.staging,
        settings=[profile.token_rules(), settings],
        inputs=[hashes, [list(row) for row in summed.iter_rows()]],
        continued={
            str(relative.vocabulary(name)): known["vocabulary"][1] if "vocabulary" in known else None,
            str(relative.quantiles(name)): known["quantiles"][1] if "quantiles" in known else None,
        },
        params=Params(
            profile=name,
            settings=profile.model_dump(mode="json"),
            counts=sorted(path for path in hashes if not path.endswith(".values.parquet")),
            values=sorted(path for path in hashes if path.endswith(".values.parquet")),
            left_out=[list(row) for row in summed.iter_rows()],
            previous=known["vocabulary"][0] if "vocabulary" in known else None,
            quantiles=known["quantiles"][0] if "quantiles" in known else None,
        ),
    )


def _known(context: RunContext, name: str, settings: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Path and hash of the vocabulary and quantiles to append to; none where there are none, or all is fitted anew."""
    relative = ReleaseLayout(Path())
    record, vocabulary, quantiles = context.inherited(
        record_path(relative, name), relative.vocabulary(name), relative.quantiles(name)
    )
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
    found = {"vocabulary": vocabulary, "quantiles": quantiles}
    return {key: (str(entry.path), entry.sha256) for key, entry in found.items() if entry is not None}


def run(params: Params, base: Path) -> Result:
    """Fits the vocabulary on train: reserved ids, then what was known, then new tokens by count, ties by name."""
    tree, name = ReleaseLayout(base), params["profile"]
    profile = ProfileConfig.model_validate(params["settings"])
    counts = summed([read_frame(base / path) for path in params["counts"]], ["split", "token", "type"], TOKEN_COUNTS)
    values = summed(
        [read_frame(base / path) for path in params["values"]], ["split", "code", "unit", "value"], VALUE_COUNTS
    )
    known = read_frame(Path(params["previous"])).select("token_id", "token", "type") if params["previous"] else None
    quantiles = read_frame(Path(params["quantiles"])) if params["quantiles"] else empty_frame(QUANTILES)
    quantiles = fit_quantiles(
        values.filter(pl.col("split") == "train"), quantiles, profile.quantiles, profile.min_values
    )
    chosen, below = without_the_rest(counts, known, profile)
    tokens, without = with_values(chosen, values, quantiles, profile)
    vocabulary = extend(tokens, known, fixed_tokens(profile, quantiles))
    left_out = pl.DataFrame(params["left_out"], schema=LEFT_OUT, orient="row")
    coverage = covered(tokens, vocabulary, pl.concat([left_out, below, without]))
    record = {"version": profile.vocabulary_version, "scheme": profile.scheme, "quantiles": profile.quantiles}
    write_json(record_path(tree, name), record)
    rows = {
        record_path(tree, name): None,
        tree.vocabulary(name): write_table(tree.vocabulary(name), vocabulary, VOCABULARY, "the vocabulary"),
        tree.quantiles(name): write_table(tree.quantiles(name), quantiles, QUANTILES, "quantiles"),
        tree.coverage(name): write_table(tree.coverage(name), coverage, COVERAGE, "coverage"),
    }
    by_split = tokens.group_by("split").agg(pl.col("count").sum()).sort("split")
    unknown = tokens.join(vocabulary, on="token", how="anti").group_by("split").agg(pl.col("count").sum()).sort("split")
    return Result(
        {str(path.relative_to(base)): number for path, number in rows.items()},
        Counts(
            size=len(vocabulary),
            hash=vocabulary_hash(vocabulary),
            version=profile.vocabulary_version,
            unknown=dict(unknown.iter_rows()),
            tokens=dict(by_split.iter_rows()),
        ),
    )


def slice_hash(
    tree: ReleaseLayout,
    name: str,
    bucket: int,
    profile: ProfileConfig,
    vocabulary: pl.DataFrame,
    uncounted: pl.Series,
    counted: ReleaseLayout | None = None,
) -> str:
    """A hash of the ids and breaks that one bucket's timelines may need, and of no others.

    Args:
        uncounted: subjects whose tokens nobody counted, as `uncounted_subjects` gives them; theirs may be any.
        counted: the release whose bucket is asked for; `tree` where not given.
    """
    counted = counted or tree
    if len(uncounted) and uncounted.is_in(read_frame(counted.contents(bucket))["subject_id"].implode()).any():
        known = read_frame(tree.quantiles(name))
        return sha256_json([vocabulary_hash(vocabulary), [known[column].to_list() for column in known.columns]])
    tokens = read_frame(counted.token_counts(name, bucket)).select(pl.col("token").unique())
    breaks = None
    wanted = [tokens, fixed_tokens(profile, empty_frame(QUANTILES)).select("token")]
    if profile.values != "codes_only":
        pairs = read_frame(values_path(counted, name, bucket)).select("code", "unit").unique()
        quantiles = read_frame(tree.quantiles(name)).join(pairs, on=["code", "unit"], how="semi", nulls_equal=True)
        breaks = [quantiles[column].to_list() for column in ("code", "unit", "breaks")]
        if profile.values == "fused":
            wanted.append(fused_tokens(quantiles["code"], profile).select("token"))
    found = pl.concat(wanted).unique().join(vocabulary, on="token")
    return sha256_json([vocabulary_hash(found), breaks])


def uncounted_subjects(tree: ReleaseLayout, profile: ProfileConfig) -> pl.Series:
    """The subjects of a release that have no split in the profile's scheme: `count` leaves them out."""
    path = tree.split_quarantine(str(profile.scheme))
    return read_frame(path)["subject_id"] if path.is_file() else pl.Series("subject_id", dtype=pl.Int64)


STAGE = Stage(
    "vocabulary",
    version=2,
    run="pipelines.vocabulary:run",
    after=("count",),
    keys=("profiles",),
    plan=plan,
    lasting=("vocabularies/*/*",),
    settings_are=("token rules", "settings"),
    inputs_are=("counts", "left out"),
)
