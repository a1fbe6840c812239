"""The release profile: what is measured of a release tree, as small frames of aggregates that suites can judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from validation.measure.annotations import changed_lags, measure_codes, uncounted_conflicts
from validation.measure.budgets import list_budgets
from validation.measure.coverage import measure_coverage
from validation.measure.events import measure_events
from validation.measure.items import measure_items, read_items
from validation.measure.ledger import measure_ledger, read_ledger
from validation.measure.shards import measure_shards
from validation.measure.splits import disagreements, measure_splits, read_assignments, read_set_aside
from validation.measure.subjects import (
    measure_cohorts,
    measure_gaps,
    measure_histogram,
    measure_sets,
    read_subjects,
)
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ProfileEntry
from warehouse.schemas import SPLITS

AREAS = ("events", "ledger", "items", "splits", "shards")


@dataclass(frozen=True)
class Measurements:
    """Aggregates of one release; no row of it is a subject's. Columns: see the function named.

    Attributes:
        events: one row (measure_events). ledger: a row per table (measure_ledger). items: a row per modality and
            verdict (measure_items). splits: a row per scheme and split (measure_splits). shards: a row per profile,
            plan and split (measure_shards). These five are judged by validation.gate.judge.
        outcomes: the ledger as it stands, with every reason.
        marks: a row per source of events (count_marks). codes: a row per namespace (measure_codes).
        cohorts: Tables A1 and A2 (measure_cohorts). sets: Figure A1 (measure_sets). histogram: subjects by length.
        budgets: a row per token profile, plan and token budget (list_budgets).
        coverage: a row per token profile, namespace and split (measure_coverage).
        length_unit: `tokens of <profile>`, or `events` where no profile was made.
    """

    events: pl.DataFrame
    ledger: pl.DataFrame
    items: pl.DataFrame
    splits: pl.DataFrame
    shards: pl.DataFrame
    outcomes: pl.DataFrame
    marks: pl.DataFrame
    codes: pl.DataFrame
    cohorts: pl.DataFrame
    sets: pl.DataFrame
    histogram: pl.DataFrame
    budgets: pl.DataFrame
    coverage: pl.DataFrame
    length_unit: str


def profile_release(
    tree: ReleaseLayout,
    *,
    scheme: str,
    profiles: Mapping[str, ProfileEntry],
    buckets: int,
    fractions: Mapping[str, float] | None = None,
    others: Mapping[str, Mapping[str, float]] | None = None,
    latest: datetime | None = None,
    before: ReleaseLayout | None = None,
) -> Measurements:
    """Measures a staging tree or a published release; changes nothing.

    One bucket's columns are in memory at a time, and of all subjects a few numbers each.

    Args:
        scheme: the name of the first split scheme, that of Tables A1 and A2.
        profiles: the token profiles, as the manifest has them.
        buckets: the root's number of buckets.
        fractions: the scheme's splits, train first, with the share of the subjects that each should have; without
            them shares are not judged.
        others: the fractions of further schemes.
        latest: the last moment that an event may have, where dates are not shifted.
        before: the release that this one follows, whose lags and splits it must keep.

    Raises:
        TimeloomError: a file of the tree is damaged.
    """
    events = measure_events(tree, buckets, latest)
    ledger = read_ledger(tree)
    items = read_items(tree, buckets)
    first = next(iter(profiles), None)
    everyone = read_subjects(tree, first, buckets)
    schemes: dict[str, Mapping[str, float | None]] = {scheme: fractions or dict.fromkeys(SPLITS), **(others or {})}
    subjects = {
        name: everyone.join(read_assignments(tree, name).unique("subject_id"), on="subject_id", how="left")
        for name in schemes
    }
    measured = [
        measure_splits(
            subjects[name],
            name,
            targets,
            disagreements(tree, name, events.subjects, primary=name == scheme, before=before),
            read_set_aside(tree, name).height,
        )
        for name, targets in schemes.items()
    ]
    splits = list(schemes[scheme])
    return Measurements(
        events=events.summary.with_columns(
            pl.lit(uncounted_conflicts(events.sources, ledger)).alias("conflicts_uncounted"),
            pl.lit(changed_lags(tree, before) if before else 0).alias("lags_changed"),
        ),
        ledger=measure_ledger(tree, ledger, events.sources),
        items=measure_items(items, events.item_events),
        splits=pl.concat(measured),
        shards=measure_shards(tree, profiles, buckets, items),
        outcomes=ledger,
        marks=events.sources,
        codes=measure_codes(tree),
        cohorts=measure_cohorts(subjects[scheme], splits, measure_gaps(tree, first, buckets, subjects[scheme])),
        sets=measure_sets(subjects[scheme], splits),
        histogram=measure_histogram(subjects[scheme], splits),
        budgets=list_budgets(profiles),
        coverage=measure_coverage(tree, profiles),
        length_unit=f"tokens of {first}" if first else "events",
    )
