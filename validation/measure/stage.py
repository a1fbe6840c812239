"""measure: what other stages made → aggregates that the gate judges. Schema in: theirs. Schema out: MEASURES.

What is measured depends on files and on nothing that a stage said of them. A file that did not change is not measured
again, and of a bucket that changed those subjects alone whose rows are others, so judging a night costs what changed in
it.
"""

import json
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from pipelines import pack
from pipelines.engine.context import counts_of
from pipelines.engine.former import Former
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.papers import labels
from pipelines.split import hashes_of
from pipelines.tokenize import Counts as TokenizeCounts
from validation.measure.carried import carried
from validation.measure.probes.bucket import makers_of
from validation.measure.tasks import Facts, Params, Reading, measured, readings, write_measures
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import LabelsEntry, ProfileEntry
from warehouse.parquet import read_frame

# Sums of hashes of texts are those of the polars that made them, and what breaks a schema is what meds says.
_LIBRARIES = [f"{name} {version(name)}" for name in ("meds", "polars")]
# Whose files are measured.
_MEASURED = ("embed", "align", "metadata", "split", "labels", "tokenize", "pack", "triplets", "graphs")


class TaskParams(TypedDict):
    """What a task is given.

    Attributes:
        parts: what is measured, all of one bucket, or one thing.
        inputs: the files that are read, relative to the tree.
    """

    parts: list[Params]
    inputs: list[str]


def plan(night: Night) -> list[Task]:
    """One task per bucket, and one per part of a shard; one for the whole."""
    hashes = {path: digest for name in _MEASURED for path, digest in night.report(name).hashes().items()}
    together: dict[str, list[Reading]] = {}
    for reading in readings(night.tree, facts_of(night)):
        # What a killed run with other settings left behind is removed before the night is judged.
        if all(str(path) in hashes for path in reading.inputs):
            bucket = reading.params.get("bucket")
            key = reading.key if bucket is None else f"bucket-{bucket_name(bucket)}"
            together.setdefault(key, []).append(reading)
    return [_task(night, key, parts, hashes) for key, parts in together.items()]


def facts_of(night: Night) -> Facts:
    """What is measured depends on, as the night's manifest will have it."""
    profiles: dict[str, ProfileEntry] = pack.declare(night)["profiles"]
    tasks: dict[str, LabelsEntry] = labels.declare(night).get("labels", {})
    lengths = next(iter(profiles), None)
    return Facts(night.config.buckets, profiles, tasks, night.config.primary_scheme, lengths)


def _task(night: Night, key: str, parts: list[Reading], hashes: Mapping[str, str]) -> Task:
    names = list(dict.fromkeys(str(path) for reading in parts for path in reading.inputs))
    bucket = parts[0].params.get("bucket")
    params = [reading.params for reading in parts]
    schemes = sorted({scheme for reading in parts for scheme in reading.schemes})
    splits: list[Any] = [hashes_of(night, scheme).get(bucket) for scheme in schemes] if bucket is not None else []
    beside = [_beside(night, reading) for reading in parts] if bucket is not None else []
    return make_task(
        STAGE,
        key,
        night.context.staging,
        settings=[params, _LIBRARIES],
        inputs=[names, [hashes[name] for name in names], [splits, beside]],
        params=TaskParams(parts=params, inputs=names),
        weight=sum((night.tree.path / name).stat().st_size for name in names),
        carrying=None if bucket is None else partial(_carrying, night, parts, names, schemes, beside),
    )


def _carrying(
    night: Night, parts: list[Reading], names: list[str], schemes: list[str], beside: list[list[Any] | None]
) -> Carrying:
    """All that is measured of a subject depends on these, besides the subject's rows and splits."""
    rules = [[reading.params for reading in parts], _LIBRARIES, names, schemes]
    relative = ReleaseLayout(Path())
    profiles = {profile for reading in parts for profile in reading.vocabularies}
    read = [*map(relative.scheme_subjects, schemes), *map(relative.vocabulary, sorted(profiles)), relative.codes]
    return Carrying(
        [*rules, beside],
        [*rules, [_beside(night, reading, before=True) for reading in parts]],
        [*names, *map(str, read)],
    )


def _beside(night: Night, reading: Reading, *, before: bool = False) -> list[Any] | None:
    """Hashes of those parts of the vocabularies and of the descriptions of codes that a bucket has anything to do with:
    both grow every night.

    Args:
        before: of this night's, those that the bucket had to do with in the release before; None where nobody can tell.
    """
    bucket = reading.params["bucket"]
    previous, former = night.context.previous, night.context.former_tree
    prefixes = []
    for name in reading.vocabularies:
        key = f"{name}-{bucket_name(bucket)}"
        entries = night.report("tokenize").entries
        entry = entries[key] if not before else previous.tasks.get(f"tokenize/{key}") if previous else None
        known = night.once(("prefixes of a vocabulary", name), partial(prefix_hashes, night.tree, name))
        largest = counts_of(entry, TokenizeCounts)["largest_id"] if entry is not None else len(known)
        if before and largest >= len(known):
            return None
        prefixes.append(known[largest])
    if not reading.codes:
        return [prefixes]
    described = night.once("described codes", partial(read_frame, night.tree.codes))
    tree = former if before else night.tree
    if tree is None or (before and not tree.codes_of(bucket).is_file()):
        return None
    try:
        held = read_frame(tree.codes_of(bucket)).select("code")
    except TimeloomError:
        if before:
            return None  # damaged since it was published: nobody can tell
        raise
    codes = held.join(described, on="code").sort("code")
    return [prefixes, sha256_json([codes["code"].to_list(), codes["parent_codes"].to_list()])]


def prefix_hashes(tree: ReleaseLayout, profile: str) -> list[str]:
    """By id the hash of a vocabulary's tokens up to it, of what they are, and of whether any code of the release makes
    them: a code of another bucket may do so.

    Raises:
        TimeloomError: the vocabulary or the codes are damaged.
    """
    made = pl.Series("made", makers_of(tree, profile, ()).base >= 0)
    tokens = read_frame(tree.vocabulary(profile)).sort("token_id").select("token_id", "token", "type", made)
    seen, digests = sha256(), []
    for row in tokens.iter_rows():
        seen.update(json.dumps(row).encode())
        digests.append(seen.hexdigest())
    return digests


def run(params: TaskParams, base: Path, former: Former | None = None) -> Result:
    """Measures a bucket, by its changed subjects alone where that will do, or a part of a shard, or the whole."""
    tree, parts = ReleaseLayout(base), params["parts"]
    tables = carried(parts, params["inputs"], tree, former, base.parent) if former is not None else None
    if tables is None:
        tables = {place: frame for part in parts for place, frame in measured(part, tree).items()}
    written = write_measures(tables, tree)
    return Result({str(path.relative_to(base)): rows for path, rows in written.items()})


STAGE = Stage(
    "measure",
    version=2,
    run="validation.measure.stage:run",
    settings_are=("what is measured", "libraries"),
    inputs_are=("names of files", "files", "splits, vocabularies, codes"),
    after=(*_MEASURED, "vocabulary", "subset", "derive"),
    plan=plan,
)
