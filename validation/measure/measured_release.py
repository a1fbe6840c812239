"""What areas are measured from: a release tree, and the frames that several areas need, each read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import polars as pl

from validation.measure.events import EventMeasures, event_subjects, measure_events
from validation.measure.items import read_items
from validation.measure.ledger import read_ledger
from validation.measure.splits import read_assignments
from validation.measure.subjects import read_subjects
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest, ProfileEntry
from warehouse.schemas import SPLITS


@dataclass(frozen=True)
class MeasuredRelease:
    """A staging tree or a published release, as areas measure it. A damaged file raises TimeloomError.

    Attributes:
        buckets: the root's number of buckets.
        profiles: the token profiles, as the manifest has them.
        schemes: of each split scheme its splits, train first, with the share of the subjects that each should have;
            None for a share that is not judged. The first scheme is the one of MEDS tools and of Tables A1 and A2.
        latest: the last moment that an event may have, where dates are not shifted.
        before: the release that this one follows, whose lags and splits it must keep.
    """

    tree: ReleaseLayout
    buckets: int
    profiles: Mapping[str, ProfileEntry]
    schemes: Mapping[str, Mapping[str, float | None]]
    latest: datetime | None = None
    before: ReleaseLayout | None = None

    @property
    def primary_scheme(self) -> str:
        return next(iter(self.schemes))

    @property
    def first_profile(self) -> str | None:
        """The token profile that lengths are about; None where the release has none."""
        return next(iter(self.profiles), None)

    @cached_property
    def events(self) -> EventMeasures:
        return measure_events(self.tree, self.buckets, self.latest)

    @cached_property
    def event_subjects(self) -> pl.DataFrame:
        """`subject_id`, `bucket` of every subject in every file of data/."""
        return event_subjects(self.tree, self.buckets)

    @cached_property
    def ledger(self) -> pl.DataFrame:
        return read_ledger(self.tree)

    @cached_property
    def items(self) -> pl.DataFrame:
        return read_items(self.tree, self.buckets)

    @cached_property
    def subjects(self) -> pl.DataFrame:
        """A row per subject, see `read_subjects`."""
        return read_subjects(self.tree, self.first_profile, self.buckets)

    @cached_property
    def subjects_of_schemes(self) -> dict[str, pl.DataFrame]:
        """`subjects` with `split`, for each scheme; null for a subject without a split."""
        return {
            scheme: self.subjects.join(
                read_assignments(self.tree, scheme).unique("subject_id"), on="subject_id", how="left"
            )
            for scheme in self.schemes
        }


def published_release(tree: ReleaseLayout, manifest: Manifest, before: ReleaseLayout | None) -> MeasuredRelease:
    """A published release, with every split scheme that is in use; shares of splits are not judged.

    Args:
        before: the release before, where it is still kept.
    """
    names = dict.fromkeys([manifest.split_scheme, *(profile.scheme for profile in manifest.profiles.values())])
    return MeasuredRelease(
        tree=tree,
        buckets=manifest.buckets,
        profiles=manifest.profiles,
        schemes={name: dict.fromkeys(SPLITS) for name in names},
        before=before,
    )
