"""derive: one bucket's events → events that labels alone are made of. Schema in: EVENTS. Schema out: DERIVED.

Stages of acute kidney injury, lines of therapy, neutropenic fever by codes and by values. They stand in a folder of
their own, and in no timeline, vocabulary or shard: they are worked out in hindsight, so that a model that saw them
would know the answer.
"""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from extractors.events.times import PRECISIONS
from pipelines.carrying.subjects import Changes, carried, mended, reads
from pipelines.engine.former import Former
from pipelines.engine.task import Carrying, Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.tasks import fever, kidney, lines
from pipelines.tasks.codes import read_mappings
from pipelines.tasks.facts import Facts, read_facts
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import DerivedConfig
from warehouse.arrays import I64
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import DERIVED

ORDER = ["subject_id", "time", "code", "available_time", "numeric_value", "time_precision"]
LISTS = ("creatinine", "antineoplastic", "neutropenia", "pancytopenia", "fever", "neutrophils", "temperature")
MEASURED = ("creatinine", "neutrophils", "temperature")


class Counts(TypedDict):
    """What a task tells: derived events by kind, and what became of measured values."""

    derived: dict[str, int]
    creatinine: dict[str, int]
    neutrophils: dict[str, int]
    temperature: dict[str, int]


class Params(TypedDict):
    """What a task is given: paths and settings."""

    bucket: int
    settings: dict[str, Any]
    codes: dict[str, Any]


def label_codes(night: Night) -> LabelCodes:
    """The lists of codes over the release that is being built; for stages after `metadata`."""
    night.report("metadata")
    return night.once("label codes", lambda: LabelCodes.of(night.tree, night.config.labels))


def ready(night: Night) -> None:
    """Reads the site's mappings: a file that is wrong should not be found out after hours of work.

    Raises:
        TimeloomError: a mapping is missing, or lacks a column.
    """
    if night.config.labels.tasks:
        read_mappings(night.config.labels.mappings)


def plan(night: Night) -> list[Task]:
    """One task per bucket, up to date as long as its events and the kinds of its codes are."""
    config = night.config.labels
    if not config.tasks:
        return []
    events = night.report("align").hashes()
    codes = label_codes(night)
    settings = config.derived.model_dump(mode="json")
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=settings,
            inputs=[events[str(ReleaseLayout(Path()).events(bucket))], rules_of(night, bucket)[-1]],
            params=Params(bucket=bucket, settings=settings, codes=codes.params),
            carrying=partial(_carrying, night, bucket),
        )
        for bucket in range(night.config.buckets)
    ]


def _carrying(night: Night, bucket: int) -> Carrying:
    return Carrying(rules_of(night, bucket), rules_before(night, bucket), reads(bucket))


def rules_of(night: Night, bucket: int) -> list[Any]:
    """What a subject's derived events depend on besides the subject's events."""
    codes = label_codes(night)
    return [*_settings(night), night.once(("derive", bucket), lambda: codes.hash_of(bucket, LISTS))]


def rules_before(night: Night, bucket: int) -> list[Any]:
    """As `rules_of`, for the codes of the release before."""
    codes, former = label_codes(night), night.context.former_tree
    before = night.once(("derive before", bucket), lambda: codes.hash_before(former, bucket, LISTS))
    return [*_settings(night), before]


def _settings(night: Night) -> list[Any]:
    return [STAGE.version, night.config.labels.derived.model_dump(mode="json")]


def run(params: Params, base: Path, former: Former | None = None) -> Result:
    """Writes one bucket's derived events."""
    tree, bucket = ReleaseLayout(base), params["bucket"]
    rules = DerivedConfig.model_validate(params["settings"])

    codes = LabelCodes.of_params(params["codes"], tree)

    members = codes.members_of(bucket, LISTS, tree=tree)
    changes = Changes.of(tree, former.tree, bucket) if former is not None else None
    if former is None or changes is None:
        frame, counts = derived_events(tree, bucket, members, rules)
    else:
        frame, now = derived_events(tree, bucket, members, rules, changes.now)
        frame = carried(read_frame(former.tree.derived(bucket)), frame, changes, ORDER)
        members = codes.members_of(bucket, LISTS, tree=former.tree)
        before = values_of(former.tree, bucket, members, rules, changes.before)
        counts = Counts(
            derived=_kinds(frame),
            creatinine=mended(former.counts["creatinine"], before["creatinine"], now["creatinine"]),
            neutrophils=mended(former.counts["neutrophils"], before["neutrophils"], now["neutrophils"]),
            temperature=mended(former.counts["temperature"], before["temperature"], now["temperature"]),
        )
    path = tree.derived(bucket)
    return Result({str(path.relative_to(base)): write_table(path, frame, DERIVED, "derived events")}, counts)


def derived_events(
    tree: ReleaseLayout, bucket: int, members: pl.DataFrame, rules: DerivedConfig, subjects: I64 | None = None
) -> tuple[pl.DataFrame, Counts]:
    """A bucket's derived events, columns of DERIVED in the order of subject, time and code; and what is said of them.

    Args:
        members: `code`, `list`, `node` of the bucket's codes.
        subjects: ids, ascending, of those who are wanted; all where not given.
    """
    facts = read_facts(tree.events(bucket), members["code"].unique(), values=True, subjects=subjects)
    of: dict[str, list[str]] = {name: members.filter(pl.col("list") == name)["code"].to_list() for name in LISTS}
    holds = {name: facts.holds(of[name]) for name in LISTS}
    found = [empty_frame(DERIVED)]
    used: Counter[str] = Counter()
    if holds["creatinine"].any():
        stages, used = kidney.kdigo_stages(facts, np.flatnonzero(holds["creatinine"]), rules.kdigo)
        found.append(_events(facts, stages, kidney.CODE, "stage"))
    if holds["antineoplastic"].any():
        agents = lines.agents_of(members.filter(pl.col("list") == "antineoplastic"))
        drugs = np.flatnonzero(holds["antineoplastic"])
        begun = lines.lines_of_therapy(facts, drugs, agents, rules.lines.days, rules.lines.most)
        found.append(_events(facts, begun, lines.CODE, "line"))
    low = holds["neutropenia"]
    if rules.neutropenic_fever.pancytopenia:
        low = low | holds["pancytopenia"]
    pairs = fever.neutropenic_fever(facts.rows, low, holds["fever"], rules.neutropenic_fever.days)
    found.append(_events(facts, pairs, fever.CODE))
    measured = {name: Counter[str]() for name in ("neutrophils", "temperature")}
    if any(holds[name].any() for name in measured):
        neutrophils, temperature = (np.flatnonzero(holds[name]) for name in measured)
        pairs, measured = fever.febrile_neutropenia(facts, neutrophils, temperature, rules.neutropenic_fever)
        found.append(_events(facts, pairs, fever.CODE_OF_VALUES))
    events = pl.concat(found).sort(ORDER)
    return events, Counts(
        derived=_kinds(events),
        creatinine=mended(used, {}, {}),
        neutrophils=mended(measured["neutrophils"], {}, {}),
        temperature=mended(measured["temperature"], {}, {}),
    )


def _kinds(events: pl.DataFrame) -> dict[str, int]:
    """How many derived events there are of each kind."""
    kinds = events["code"].str.replace(r"//\d+$", "").value_counts().sort("code")
    return {str(kind): int(number) for kind, number in kinds.iter_rows()}


def values_of(
    tree: ReleaseLayout, bucket: int, members: pl.DataFrame, rules: DerivedConfig, subjects: I64 | None = None
) -> dict[str, Counter[str]]:
    """What `derived_events` says of measured values, without deriving anything; arguments are the same."""
    of = {name: members.filter(pl.col("list") == name)["code"] for name in MEASURED}
    codes = pl.concat(list(of.values())).unique()
    facts = read_facts(tree.events(bucket), codes, values=True, subjects=subjects)
    creatinine, neutrophils, temperature = (np.flatnonzero(facts.holds(of[name])) for name in MEASURED)
    _, _, used = kidney.in_mg_dl(facts, creatinine, rules.kdigo)
    return {"creatinine": used, **fever.reasons_of(facts, neutrophils, temperature, rules.neutropenic_fever)}


def _events(facts: Facts, frame: pl.DataFrame, code: str, number: str | None = None) -> pl.DataFrame:
    """Columns of DERIVED of `subject` (a place), `time`, `available`, `precision`, and a number that ends the code."""
    names = pl.Series([*PRECISIONS, None], dtype=pl.String)
    precision = frame["precision"].to_numpy()
    value = pl.lit(None, pl.Int64) if number is None else pl.col(number)
    kind = pl.lit(code) if number is None else pl.concat_str(pl.lit(code), pl.col(number).cast(pl.String))
    return frame.select(
        pl.Series("subject_id", facts.subjects[frame["subject"].to_numpy()]),
        pl.col("time").cast(pl.Datetime("us")),
        kind.alias("code"),
        value.cast(pl.Float32).alias("numeric_value"),
        pl.col("available").cast(pl.Datetime("us")).alias("available_time"),
        names[np.minimum(precision, len(PRECISIONS))].alias("time_precision"),
    )


STAGE = Stage(
    "derive",
    version=4,
    run="pipelines.papers.derive:run",
    after=("align", "metadata"),
    keys=("labels",),
    plan=plan,
    ready=ready,
    settings_are=("derived",),
    inputs_are=("events", "lists of codes"),
)
