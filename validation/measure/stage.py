"""measure: what other stages made → aggregates that the gate judges. Schema in: theirs. Schema out: MEASURES.

What is measured depends on files and on nothing that a stage said of them. A file that did not change is not measured
again, so judging a night costs what changed in it.
"""

import json
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from pipelines import pack
from pipelines.engine.context import counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.papers import labels
from pipelines.split import hashes_of
from pipelines.tokenize import Counts as TokenizeCounts
from validation.measure.probes.bucket import makers_of
from validation.measure.tasks import Facts, Params, Reading, carry_out, readings
from warehouse.files import sha256_json
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import LabelsEntry, ProfileEntry
from warehouse.parquet import read_frame

# Sums of hashes of texts are those of the polars that made them, and what breaks a schema is what meds says.
_LIBRARIES = [f"{name} {version(name)}" for name in ("meds", "polars")]
# Whose files are measured.
_MEASURED = ("embed", "align", "metadata", "split", "labels", "tokenize", "pack", "triplets", "graphs")


def plan(night: Night) -> list[Task]:
    """One task per bucket, per bucket's timelines of each profile, and per part of a shard; one for the whole."""
    hashes = {path: digest for name in _MEASURED for path, digest in night.report(name).hashes().items()}
    facts = facts_of(night)
    tasks = []
    for reading in readings(night.tree, facts):
        names = [str(path) for path in reading.inputs]
        # What a killed run with other settings left behind is removed before the night is judged.
        if all(name in hashes for name in names):
            tasks.append(_task(night, reading, [hashes[name] for name in names]))
    return tasks


def facts_of(night: Night) -> Facts:
    """What is measured depends on, as the night's manifest will have it."""
    profiles: dict[str, ProfileEntry] = pack.declare(night)["profiles"]
    tasks: dict[str, LabelsEntry] = labels.declare(night).get("labels", {})
    lengths = next(iter(profiles), None)
    return Facts(night.config.buckets, profiles, tasks, night.config.primary_scheme, lengths)


def _task(night: Night, reading: Reading, hashes: list[str]) -> Task:
    bucket = reading.params.get("bucket")
    splits: list[Any] = (
        [hashes_of(night, scheme).get(bucket) for scheme in reading.schemes] if bucket is not None else []
    )
    beside = [splits, *_beside(night, reading)]
    weight = sum((night.tree.path / path).stat().st_size for path in reading.inputs)
    return make_task(
        STAGE,
        reading.key,
        night.context.staging,
        settings=[reading.params, _LIBRARIES],
        inputs=[[str(path) for path in reading.inputs], hashes, beside],
        params=dict(reading.params),
        weight=weight,
    )


def _beside(night: Night, reading: Reading) -> list[Any]:
    """Hashes of those parts of the vocabularies and of the descriptions of codes that a bucket has anything to do with:
    both grow every night."""
    bucket = reading.params.get("bucket")
    if bucket is None:
        return []
    counts = night.report("tokenize").entries
    prefixes = [
        night.once(("prefixes of a vocabulary", name), partial(prefix_hashes, night.tree, name))[
            counts_of(counts[f"{name}-{bucket_name(bucket)}"], TokenizeCounts)["largest_id"]
        ]
        for name in reading.vocabularies
    ]
    if not reading.codes:
        return [prefixes]
    described = night.once("described codes", partial(read_frame, night.tree.codes))
    codes = read_frame(night.tree.codes_of(bucket)).select("code").join(described, on="code").sort("code")
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


def run(params: Params, base: Path) -> Result:
    """Measures one bucket, a bucket's timelines or a part of a shard."""
    tree = ReleaseLayout(base)
    return Result({str(path.relative_to(base)): rows for path, rows in carry_out(params, tree, tree).items()})


STAGE = Stage(
    "measure",
    version=1,
    run="validation.measure.stage:run",
    settings_are=("what is measured", "libraries"),
    inputs_are=("names of files", "files", "splits, vocabularies, codes"),
    after=(*_MEASURED, "vocabulary", "subset", "derive"),
    plan=plan,
)
