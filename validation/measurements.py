"""Everything that is measured of a release: small frames of aggregates, which the gate judges and the report shows."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from validation.areas import registry
from validation.measure.annotations import list_codes
from validation.measure.cohort.strata import measure_strata
from validation.measure.cohort.subjects import measure_cohorts, measure_gaps, measure_histogram, measure_sets
from validation.measure.examples.triplets import count_copies, read_funnel
from validation.measure.measured_release import MeasuredRelease
from validation.measure.profiles.budgets import list_budgets


@dataclass(frozen=True)
class Measurements:
    """Aggregates of one release; no row of it is a subject's. Columns: see the function named.

    Attributes:
        areas: the frame of each area, by its name: what the gate judges.
        outcomes: the ledger as it stands, with every reason.
        annotations: a row per source of events (count_annotations). codes: a row per namespace (measure_codes).
        cohorts: Tables A1 and A2 (measure_cohorts). sets: Figure A1 (measure_sets). histogram: subjects by length.
        budgets: a row per token profile, plan and token budget (list_budgets).
        coverage: a row per token profile, namespace and split (measure_coverage).
        tokenised: a row per token profile, namespace and split (measure_tokenised).
        attrition: a row per task of labels, rule and split (read_attrition).
        funnel: a row per source, step and rule of triplets (read_funnel).
        copies: a row per modality and method (count_copies).
        strata, task_strata: patients of splits, and labels of tasks, by sex, age and the like (measure_strata).
        length_unit: `tokens of <profile>`, or `events` where the release has no token profile.
    """

    areas: Mapping[str, pl.DataFrame]
    outcomes: pl.DataFrame
    annotations: pl.DataFrame
    codes: pl.DataFrame
    cohorts: pl.DataFrame
    sets: pl.DataFrame
    histogram: pl.DataFrame
    budgets: pl.DataFrame
    coverage: pl.DataFrame
    tokenised: pl.DataFrame
    attrition: pl.DataFrame
    funnel: pl.DataFrame
    copies: pl.DataFrame
    strata: pl.DataFrame
    task_strata: pl.DataFrame
    length_unit: str


def measure_release(release: MeasuredRelease) -> Measurements:
    """Measures a staging tree or a published release; changes nothing.

    What was measured of the buckets is added up; of all subjects a few numbers each are in memory.

    Raises:
        TimeloomError: a file of the tree is damaged.
    """
    tree, profile, scheme = release.tree, release.first_profile, release.primary_scheme
    gaps = measure_gaps(release.measures, profile)
    areas = {area.name: area.measure(release) for area in registry.AREAS}
    subjects, splits = release.subjects_of_schemes[scheme], list(release.schemes[scheme])
    strata, task_strata = measure_strata(release.measures)
    return Measurements(
        areas=areas,
        outcomes=release.ledger,
        annotations=release.events.sources,
        codes=list_codes(release.measures),
        cohorts=measure_cohorts(subjects, splits, gaps),
        sets=measure_sets(subjects, splits),
        histogram=measure_histogram(subjects, splits),
        budgets=list_budgets(release.profiles),
        coverage=release.coverage,
        tokenised=release.tokenised,
        attrition=release.attrition,
        funnel=read_funnel(tree, release.buckets),
        copies=count_copies(tree),
        strata=strata,
        task_strata=task_strata,
        length_unit=f"tokens of {profile}" if profile else "events",
    )
