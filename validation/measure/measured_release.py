"""What areas are measured from: a release tree, and the frames that several areas need, each read once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from pipelines.limits import LimitsConfig
from validation.measure.anew import measure_anew
from validation.measure.cohort.splits import read_assignments
from validation.measure.cohort.subjects import read_subjects
from validation.measure.contents import Holdings, contents_of, read_holdings, table_names
from validation.measure.events import EventMeasures, measure_events
from validation.measure.examples.labels import read_attrition
from validation.measure.items import read_items
from validation.measure.ledger import read_ledger
from validation.measure.losses import Earlier, measure_losses, releases_before
from validation.measure.measures import Measures
from validation.measure.profiles.coverage import measure_coverage
from validation.measure.profiles.tokenised import measure_tokenised
from validation.measure.tasks import Facts
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import ContentEntry, LabelsEntry, Manifest, ProfileEntry
from warehouse.schemas import SPLITS


@dataclass(frozen=True)
class MeasuredRelease:
    """A staging tree or a published release, as areas measure it. A damaged file raises TimeloomError.

    Attributes:
        buckets: the root's number of buckets.
        profiles: the token profiles, as the manifest has them.
        schemes: of each split scheme its splits, train first, with the share of the subjects that each should have;
            None for a share that is not judged. The first scheme is the one of MEDS tools and of Tables A1 and A2.
        before: the release that this one follows, whose lags and splits it must keep.
        sources: keys of the manifest's `sources`, which tell the table of each raw file.
        limits: what is held against the releases before and between tables.
        earlier: what the releases before hold, the parent first.
        accepted: names of what may be lost.
        labels: the tasks that are labelled, as the manifest has them.
        declared: what the manifest says that the release holds; None where it does not say so.
        taken: what was measured of it, by the night's stage or anew; measured by this process where None.
    """

    tree: ReleaseLayout
    buckets: int
    profiles: Mapping[str, ProfileEntry]
    schemes: Mapping[str, Mapping[str, float | None]]
    before: ReleaseLayout | None = None
    sources: Collection[str] = ()
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    earlier: Sequence[Earlier] = ()
    accepted: Collection[str] = ()
    declared: Sequence[ContentEntry] | None = None
    labels: Mapping[str, LabelsEntry] = field(default_factory=dict)
    taken: Measures | None = None

    @property
    def primary_scheme(self) -> str:
        return next(iter(self.schemes))

    @property
    def first_profile(self) -> str | None:
        """The token profile that lengths are about; None where the release has none.

        It is the first of the configuration; a manifest has them by their names, but a release that was measured says
        of which one.
        """
        measured = [name for name in self.profiles if any(self.tree.measures("lengths", name, "*").parent.glob("*"))]
        return next(iter(measured or self.profiles), None)

    @property
    def facts(self) -> Facts:
        """What is measured depends on, apart from the files."""
        return Facts(self.buckets, self.profiles, self.labels, self.primary_scheme, self.first_profile)

    @cached_property
    def measures(self) -> Measures:
        """What is summed up to judge the release."""
        return self.taken or measure_anew(self.tree, self.facts)

    @cached_property
    def events(self) -> EventMeasures:
        return measure_events(self.tree, self.buckets, self.measures)

    @cached_property
    def event_subjects(self) -> pl.DataFrame:
        """`subject_id`, `bucket`, `known` of every subject in every file of data/."""
        return self.measures.of("subjects")

    @cached_property
    def ledger(self) -> pl.DataFrame:
        return read_ledger(self.tree)

    @cached_property
    def holdings(self) -> Holdings:
        """What tables and modalities hold, see `read_holdings`."""
        return read_holdings(self.measures, self.items)

    @cached_property
    def coverage(self) -> pl.DataFrame:
        """A row per token profile, namespace and split, see `measure_coverage`."""
        return measure_coverage(self.tree, self.profiles)

    @cached_property
    def tokenised(self) -> pl.DataFrame:
        """A row per token profile, namespace and split, see `measure_tokenised`."""
        return measure_tokenised(self.tree, self.profiles, self.measures)

    @cached_property
    def contents(self) -> list[ContentEntry]:
        """What the manifest says that the release holds, part by part."""
        found = contents_of(self.holdings, self.ledger, self.coverage, table_names(self.sources))
        for (profile,), part in self.tokenised.group_by("profile", maintain_order=True):
            counts = {name: int(part[name].sum()) for name in ("clinical", "in_tokens")}
            found.append(ContentEntry(kind="profile", name=str(profile), counts=counts))
        return found

    @cached_property
    def losses(self) -> pl.DataFrame:
        """A row per part and measure of which there is less than before, see `measure_losses`."""
        rules = {name: profile.rules_hash for name, profile in self.profiles.items()}
        return measure_losses(self.contents, self.earlier, rules, self.accepted, self.limits)

    @cached_property
    def attrition(self) -> pl.DataFrame:
        """A row per task, rule and split, see `read_attrition`."""
        return read_attrition(self.tree, self.buckets)

    @cached_property
    def items(self) -> pl.DataFrame:
        return read_items(self.tree, self.buckets)

    @cached_property
    def subjects(self) -> pl.DataFrame:
        """A row per subject, see `read_subjects`."""
        return read_subjects(self.tree, self.first_profile, self.buckets, self.measures)

    @cached_property
    def subjects_of_schemes(self) -> dict[str, pl.DataFrame]:
        """`subjects` with `split`, for each scheme; null for a subject without a split."""
        return {
            scheme: self.subjects.join(
                read_assignments(self.tree, scheme).unique("subject_id"), on="subject_id", how="left"
            )
            for scheme in self.schemes
        }


def earlier_releases(layout: Layout, parent: Manifest, window: int) -> list[Earlier]:
    """The releases that the next one is compared with, the parent first.

    A parent that does not say what it holds, as an older timeloom published it, is measured.

    Raises:
        TimeloomError: a file of such a parent is damaged.
    """
    contents = parent.contents
    if not contents:
        contents = tuple(published_release(ReleaseLayout(layout.releases / parent.release_id), parent, None).contents)
    before = releases_before(layout, parent, window)
    return [Earlier.of(parent, contents), *map(Earlier.of, before)]


def published_release(
    tree: ReleaseLayout, manifest: Manifest, before: ReleaseLayout | None, taken: Measures | None = None
) -> MeasuredRelease:
    """A published release, with every split scheme that is in use; shares of splits are not judged.

    Args:
        before: the release before, where it is still kept.
        taken: what was measured of it.
    """
    names = dict.fromkeys([manifest.split_scheme, *(profile.scheme for profile in manifest.profiles.values())])
    return MeasuredRelease(
        tree=tree,
        buckets=manifest.buckets,
        profiles=manifest.profiles,
        schemes={name: dict.fromkeys(SPLITS) for name in names},
        before=before,
        sources=manifest.sources,
        declared=manifest.contents or None,
        labels=manifest.labels,
        taken=taken,
    )
