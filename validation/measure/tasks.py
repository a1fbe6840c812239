"""What is to be measured of a release: one task a bucket, a bucket's timelines, or a part of a shard.

A task reads files of the release and nothing that a stage said of them, so that what it finds is as good as if the
whole release had been read by one process. The night runs tasks as a stage, `verify` and tests run them all anew.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from validation.measure.annotations import measure_codes, read_listed, repeated_codes
from validation.measure.cohort.splits import read_assignments
from validation.measure.cohort.strata import strata_of_bucket, tally_strata
from validation.measure.cohort.subjects import MODALITY_SETS, read_sets
from validation.measure.files.events import EventCounts, EventsFile
from validation.measure.files.graphs import GraphAudit
from validation.measure.files.labels import LabelAudit
from validation.measure.files.timelines import IntervalMeasures, TimelineMeasures, read_tokens
from validation.measure.files.triplets import TripletAudit
from validation.measure.meds_schemas import breaks
from validation.measure.probes.bucket import Probed, probe_bucket
from validation.measure.reading import existing, gather
from validation.measure.shards.parts import Place, measure_part, parts_of, usable_items
from validation.measure.tally import Tally
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import LabelsEntry, PlanEntry, ProfileEntry
from warehouse.parquet import write_table
from warehouse.schemas import ITEMS, MEASURES, SPLITS

# A plan as the shards must be laid; what it made of the timelines is judged, so it does not count.
_OF_PLAN = {"context", "mode", "subjects", "images", "groups", "loss"}
RELEASE = "release"
# By area whose rows are subjects', in which order they stand.
ORDERS = {
    "subjects": ["subject_id"],
    "lengths": ["subject_id"],
    "timelines": ["with_images", "last", "subject_id"],
    "losses": ["plan", "subject_id"],
}


@dataclass(frozen=True)
class Facts:
    """What is measured depends on, apart from the files.

    Attributes:
        profiles: the token profiles, as the manifest has them.
        labels: the tasks that are labelled, as the manifest has them.
        scheme: the split scheme of Tables A1 and A2.
        lengths: the token profile that these are about; None where there is none.
    """

    buckets: int
    profiles: Mapping[str, ProfileEntry]
    labels: Mapping[str, LabelsEntry]
    scheme: str
    lengths: str | None


class Params(TypedDict, total=False):
    """What a task is given; which keys it has, its `kind` decides."""

    kind: str
    bucket: int
    schemes: list[str]
    clocks: dict[str, str]
    tasks: list[str]
    probed: dict[str, dict[str, Any]]
    profile: str
    plans: dict[str, dict[str, Any]]
    intervals: str | None
    path: str
    plan: str
    split: str
    part: int
    buckets: list[int]
    stores: dict[str, str]


@dataclass(frozen=True)
class Reading:
    """One task.

    Attributes:
        inputs: the files that it reads, relative to the tree.
        schemes: whose splits of the bucket's subjects it reads.
        vocabularies: of which profiles it reads the names of the tokens that its timelines have.
        codes: whether it reads the descriptions of the bucket's codes.
    """

    key: str
    params: Params
    inputs: tuple[Path, ...]
    schemes: tuple[str, ...] = ()
    vocabularies: tuple[str, ...] = ()
    codes: bool = False


def readings(tree: ReleaseLayout, facts: Facts) -> Iterator[Reading]:
    """Everything that is measured of a tree whose stages have run."""
    yield _of_release(tree)
    for bucket in range(facts.buckets):
        if tree.events(bucket).is_file():
            yield _of_events(tree, facts, bucket)
    for bucket in range(facts.buckets):
        yield from _of_probes(tree, facts, bucket)
    for bucket in range(facts.buckets):
        if tree.events(bucket).is_file():
            yield _of_strata(tree, facts, bucket)
    for profile in facts.profiles:
        for bucket in range(facts.buckets):
            if tree.timeline(profile, bucket).is_file():
                yield _of_timelines(tree, facts, profile, bucket)
        for name in facts.profiles[profile].plans:
            for split in SPLITS:
                yield from _of_shards(tree, facts, profile, name, split)


def _of_release(tree: ReleaseLayout) -> Reading:
    files = existing([tree.codes, tree.subject_splits, tree.quarantine])
    return Reading(RELEASE, Params(kind=RELEASE), _relative(tree, files))


def _of_events(tree: ReleaseLayout, facts: Facts, bucket: int) -> Reading:
    schemes = sorted({profile.scheme for profile in facts.profiles.values()})
    audited = [tree.graph_visits(bucket), tree.graph_nodes(bucket), tree.graph_edges(bucket)]
    audited += [tree.labels(name, bucket) for name in facts.labels]
    triplets = [tree.triplets(bucket), tree.items(bucket)] if tree.triplets(bucket).is_file() else []
    clocks = {name: str(task.rules["clock"]) for name, task in facts.labels.items()}
    return Reading(
        f"events-{bucket_name(bucket)}",
        Params(kind="events", bucket=bucket, schemes=schemes, clocks=clocks),
        _relative(tree, existing([tree.events(bucket), *audited, *triplets])),
        tuple(schemes),
    )


def _of_probes(tree: ReleaseLayout, facts: Facts, bucket: int) -> Iterator[Reading]:
    clocks = {name: str(task.rules["clock"]) for name, task in facts.labels.items()}
    labels = existing(tree.labels(name, bucket) for name in clocks)
    if not labels:
        return
    profiles = {
        name: {"order": profile.order, "unknown": list(profile.unknown)}
        for name, profile in facts.profiles.items()
        if profile.order in clocks.values()
    }
    files = [*labels, tree.events(bucket), tree.items(bucket), *(tree.timeline(name, bucket) for name in profiles)]
    yield Reading(
        f"probes-{bucket_name(bucket)}",
        Params(kind="probes", bucket=bucket, clocks=clocks, probed=profiles),
        _relative(tree, existing(files)),
        vocabularies=tuple(profiles),
        codes=True,
    )


def _of_strata(tree: ReleaseLayout, facts: Facts, bucket: int) -> Reading:
    labels = existing(tree.labels(name, bucket) for name in facts.labels)
    return Reading(
        f"strata-{bucket_name(bucket)}",
        Params(kind="strata", bucket=bucket, schemes=[facts.scheme], tasks=list(facts.labels)),
        _relative(tree, [tree.events(bucket), *labels]),
        (facts.scheme,),
    )


def _of_timelines(tree: ReleaseLayout, facts: Facts, profile: str, bucket: int) -> Reading:
    measured = profile == facts.lengths
    plans = {
        name: plan.model_dump(mode="json", include=_OF_PLAN) for name, plan in facts.profiles[profile].plans.items()
    }
    files = [tree.timeline(profile, bucket), *([tree.subjects(bucket)] if measured else [])]
    return Reading(
        f"timelines-{profile}-{bucket_name(bucket)}",
        Params(
            kind="timelines", bucket=bucket, profile=profile, plans=plans, intervals=facts.scheme if measured else None
        ),
        _relative(tree, existing(files)),
        (facts.scheme,) if measured else (),
    )


def _of_shards(tree: ReleaseLayout, facts: Facts, profile: str, name: str, split: str) -> Iterator[Reading]:
    entry = facts.profiles[profile]
    plan = entry.plans[name]
    folder = tree.shard(profile, split, 0, name).parent
    for path in sorted(folder.glob("*.parquet")):
        group = int(path.stem) % plan.groups
        buckets = list(range(facts.buckets * group // plan.groups, facts.buckets * (group + 1) // plan.groups))
        files = [path, *existing(map(tree.items, buckets))]
        for part in range(parts_of(path)):
            yield Reading(
                f"shards-{profile}.{name}-{split}-{path.stem}-{part:04d}",
                Params(
                    kind="shards",
                    path=str(path.relative_to(tree.path)),
                    profile=profile,
                    plan=name,
                    plans={name: plan.model_dump(mode="json", include=_OF_PLAN)},
                    split=split,
                    part=part,
                    buckets=buckets,
                    stores=dict(entry.stores),
                ),
                _relative(tree, files),
            )


def _relative(tree: ReleaseLayout, files: list[Path]) -> tuple[Path, ...]:
    return tuple(path.relative_to(tree.path) for path in files)


def unmeasured(tree: ReleaseLayout, facts: Facts, place: ReleaseLayout) -> list[str]:
    """Keys of what is to be measured of a tree and of which nothing lies below `measures/` of a place: zeros are left
    out of what is counted, so that nothing would be judged as nothing wrong."""
    return [reading.key for reading in readings(tree, facts) if not place.measures(*place_of(reading.params)).is_file()]


def place_of(params: Params) -> tuple[str, ...]:
    """Area and folders of the file that a task leaves, whatever it finds."""
    kind = params["kind"]
    if kind == RELEASE:
        return "counts", RELEASE
    if kind == "timelines":
        return "timelines", params["profile"], bucket_name(params["bucket"])
    if kind == "shards":
        return "shards", f"{params['profile']}.{params['plan']}", params["split"], _part_name(params)
    return "counts", bucket_name(params["bucket"]) if kind == "events" else f"{kind}-{bucket_name(params['bucket'])}"


def _part_name(params: Params) -> str:
    return f"{Path(params['path']).stem}-{params['part']:04d}"


def area_of(params: Params) -> tuple[str, ...]:
    """The areas that a task's files belong to."""
    return {
        RELEASE: ("counts",),
        "probes": ("counts",),
        "strata": ("counts",),
        "events": ("counts", "subjects", "keys"),
        "timelines": ("timelines", "losses", "lengths", "gaps"),
        "shards": ("shards", "segments"),
    }[params["kind"]]


Tables = dict[tuple[str, ...], pl.DataFrame]


def carry_out(params: Params, tree: ReleaseLayout, into: ReleaseLayout) -> dict[Path, int]:
    """Measures, and writes what is found; gives each file's rows.

    Args:
        tree: what is measured.
        into: the tree below whose `measures/` the files are put.

    Raises:
        TimeloomError: a file is damaged.
    """
    return write_measures(measured(params, tree), into)


def measured(params: Params, tree: ReleaseLayout) -> Tables:
    """What a task finds, by area and folders.

    Raises:
        TimeloomError: a file is damaged.
    """
    kinds = {
        RELEASE: _release, "events": _events, "probes": _probes, "strata": _strata, "timelines": _timelines,
        "shards": _shards,
    }  # fmt: skip
    found: Tables = kinds[params["kind"]](params, tree)
    return {place: frame.sort(ORDERS[place[0]]) if place[0] in ORDERS else frame for place, frame in found.items()}


def write_measures(tables: Tables, into: ReleaseLayout) -> dict[Path, int]:
    """Writes tables below the `measures/` of a tree; gives each file's rows."""
    return {
        (path := into.measures(area, *folders)): write_table(path, frame, MEASURES[area], f"measures of {area}")
        for (area, *folders), frame in tables.items()
    }


def _release(params: Params, tree: ReleaseLayout) -> Tables:
    tally = Tally()
    tally.count("events", {"repeated_codes": repeated_codes(tree)})
    tally.add("codes", measure_codes(tree), of="namespace")
    tally.add("quarantine", read_listed(tree), of="table", within="reason")
    for name in breaks(tree):
        tally.count("meds", {"schema_breaks": 1}, of=name)
    return {place_of(params): tally.table()}


def _events(params: Params, tree: ReleaseLayout) -> Tables:
    bucket = params["bucket"]
    schemes = {scheme: read_assignments(tree, scheme).unique("subject_id") for scheme in params["schemes"]}
    counts = EventCounts(bucket, schemes)
    audits: list[LabelAudit | GraphAudit | TripletAudit] = []
    labels = LabelAudit(tree, bucket, params["clocks"])
    if labels.asked:
        audits.append(labels)
    if tree.graph_visits(bucket).is_file():
        audits.append(GraphAudit(tree, bucket))
    if tree.triplets(bucket).is_file():
        audits.append(TripletAudit(tree, bucket))
    file = EventsFile(tree.events(bucket), visits=any(not isinstance(audit, LabelAudit) for audit in audits))
    for part in file.parts():
        counts.add(part)
        for audit in audits:
            audit.add(part)
    for audit in audits:
        audit.count(counts.tally)
    if file.breaks:
        counts.tally.count("meds", {"schema_breaks": 1}, of=f"data/{bucket_name(bucket)}.parquet")
    tables = counts.tables()
    if tables["keys"].is_empty():
        del tables["keys"]
    return {(area, bucket_name(bucket)): frame for area, frame in tables.items()}


def _probes(params: Params, tree: ReleaseLayout) -> Tables:
    bucket, tally = params["bucket"], Tally()
    profiles = {name: Probed(facts["order"], tuple(facts["unknown"])) for name, facts in params["probed"].items()}
    tally.add("probes", probe_bucket(tree, bucket, profiles, params["clocks"]), of="of")
    return {place_of(params): tally.table()}


def _strata(params: Params, tree: ReleaseLayout) -> Tables:
    bucket, tally = params["bucket"], Tally()
    splits = read_assignments(tree, *params["schemes"]).unique("subject_id")
    tally_strata(tally, *strata_of_bucket(tree, bucket, splits, params["tasks"]))
    return {place_of(params): tally.table()}


def _timelines(params: Params, tree: ReleaseLayout) -> Tables:
    profile, bucket = params["profile"], params["bucket"]
    measures: list[TimelineMeasures | IntervalMeasures] = [TimelineMeasures(_plans(params))]
    if params["intervals"] is not None:
        splits = read_assignments(tree, params["intervals"]).unique("subject_id")
        sets = read_sets(tree, [bucket]).select("subject_id", (pl.col("set") != MODALITY_SETS[0]).alias("imaging"))
        measures.append(IntervalMeasures(sets.join(splits, on="subject_id")))
    for tokens in read_tokens(tree.timeline(profile, bucket)):
        for measure in measures:
            measure.add(tokens)
    tables = {area: frame for measure in measures for area, frame in measure.tables().items()}
    return {(area, profile, bucket_name(bucket)): frame for area, frame in tables.items()}


def _shards(params: Params, tree: ReleaseLayout) -> Tables:
    columns = ["item_key", "subject_id", "modality", "verdict", "store"]
    items = usable_items(gather(map(tree.items, params["buckets"]), ITEMS, columns), params["stores"])
    plan, split = params["plan"], params["split"]
    place = Place(tree.path / params["path"], params["profile"], plan, _plans(params)[plan], split)
    tables = measure_part(place, params["part"], items)
    name = f"{params['profile']}.{plan}"
    return {(area, name, split, _part_name(params)): frame for area, frame in tables.items()}


def _plans(params: Params) -> dict[str, PlanEntry]:
    return {name: PlanEntry.model_validate(plan) for name, plan in params["plans"].items()}
