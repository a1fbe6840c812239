"""What trainers import: a release, pinned and checked. torch is imported by what gives tensors, not before."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.configuration import is_address
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.parquet import read_frame
from warehouse.readers.pinned import PinnedRelease, check_split
from warehouse.readers.stored import StoredFiles
from warehouse.schemas import COPIES, EVENTS, ITEMS, TEXTS
from warehouse.tokens import TokenType

if TYPE_CHECKING:
    import torch

    from warehouse.readers.batch import Batch, IdBatch, SegmentBatch
    from warehouse.readers.dataset import ShardDataset
    from warehouse.readers.graphs import VisitGraphs
    from warehouse.readers.tasks.features import Features
    from warehouse.readers.tasks.labels import Clock, Labels
    from warehouse.readers.tasks.probes import ProbeDataset
    from warehouse.readers.tasks.prompts import Prompt
    from warehouse.readers.triplets import Triplets


_Kind = Literal["pooled", "sequences"] | bool


class ShardOptions(TypedDict, total=False):
    """How a split's packs are read.

    Attributes:
        plan: how timelines were laid into packs; the manifest names a profile's plans.
        budget: only the first tiers of a plan with token budgets: 0 for its smallest budget. None reads all.
        rank, world_size: this process among those that share the packs.
        seed: of the shuffle; None reads in the stored order.
        stage: of a curriculum; each stage shuffles anew.
        loss: `mehrt` (images, padding and specials are no targets), `multimodal` (nor are demographics), or the token
            types that are targets.
        vectors: `pooled` (True), one vector an item; `sequences`, its units too; False for none. Or a mapping that says
            it by modality; one that is not named has none.
        items_per_segment: None for the items of the packs' image tokens; k for the k most recent a modality of each
            segment's subject within the segment's time span, whether they have tokens or not. Or a mapping that says k
            by modality; one that is not named has no items.
        encoders: by modality, the encoder whose vectors are attached, where that is not the one that the profile names.
            An item without a vector of the encoder is none of the batch's; its token stays.
    """

    plan: str
    budget: int | None
    rank: int
    world_size: int
    seed: int | None
    stage: int
    loss: str | Iterable[TokenType]
    vectors: _Kind | Mapping[str, _Kind]
    items_per_segment: int | Mapping[str, int] | None
    encoders: Mapping[str, str]


class RowOptions(TypedDict, total=False):
    """Which labels are read, and how.

    Attributes:
        front: keeps what stands in front of a timeline, its start and demographics, in place of the oldest tokens.
        splits: of the profile's scheme; None for all labels.
        few_shot: of train only that share of the labelled subjects: 0.01, 0.05 and 0.1 are nested.
        clock: `available_time`; `time` for a profile whose tokens stand by it.
        vectors: whether items' vectors are read.
        items_per_row: None for the items of image tokens; k for the k most recent of each modality, tokens or not.
        rank, world_size: this process among those that share the labels.
        seed: of few-shot subsets.
    """

    front: bool
    splits: Sequence[str] | str | None
    few_shot: float | None
    clock: "Clock"
    vectors: Literal["pooled"] | bool
    items_per_row: int | None
    rank: int
    world_size: int
    seed: int


class FeatureOptions(TypedDict, total=False):
    """How features are made.

    Attributes:
        scheme: whose train the codes are of; the release's first where not given.
        splits: whose labels are wanted; None for all.
        least_share: codes of a smaller share of train's subjects are left out.
        clock: a fact counts from when it could be known, or from its `time`.
        modalities: whose mean vectors are made; all that the release has where not given.
        encoders: by modality, the encoder whose vectors they are the mean of, where it has several.
        attributes: what demographic facts begin with: `DEMO/SEX`, `DEMO/ETHNICITY`.
        without: beginnings of codes that are not counted.
        shares: of few-shot subsets.
        seed: of folds and few-shot subsets.
    """

    scheme: str | None
    splits: Sequence[str] | str | None
    least_share: float
    clock: "Clock"
    modalities: Sequence[str] | None
    encoders: Mapping[str, str]
    attributes: Sequence[str]
    without: Sequence[str]
    shares: Sequence[float]
    seed: int


CACHE_BYTES = 100 << 30


class Release(PinnedRelease):
    """One published release. It never changes, so a reader that holds it is not disturbed by the next night."""

    @classmethod
    def open(
        cls,
        root: Path | str,
        release: str | None = None,
        *,
        cache: Path | str | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> "Release":
        """The release that `current` points at now, or the one named: any that is still kept.

        `timeloom gc` leaves it alone until this process ends, or `close` is called.

        Args:
            root: a warehouse's folder; or the address that `timeloom push` was given, such as s3://bucket/prefix, from
                where files are fetched when they are needed (docs/object-stores.md).
            release: its id.
            cache: of an address, a folder on a fast local disk that files are fetched to. Processes share it.
            cache_bytes: what the folder may hold; what was not used for longest goes first, what is in use stays.

        Raises:
            TimeloomError: nothing is published, no such release, or its manifest is damaged; an address lacks a cache,
                or cannot be reached.
        """
        if is_address(root):
            return StoredRelease.fetched(root, release, cache, cache_bytes)
        if cache is not None:
            raise TimeloomError("a warehouse on this machine needs no cache", remedy="leave cache= out")
        return super().open(root, release)

    def events(self, split: str | None = None, scheme: str | None = None) -> pl.LazyFrame:
        """MEDS events (warehouse.schemas.EVENTS), a subject's rows together and by time; of one split, or of all.

        Each file is compared with its checksum before the frame is given, once a process: the first call reads them
        all, as fast as the disk gives them, and holds nothing.

        Args:
            scheme: whose splits are meant; the release's first where not given. A profile's is
                `manifest.profiles[name].scheme`: use that beside its shards, or train on what another scheme holds out.

        Raises:
            TimeloomError: no such split or scheme, or a file of the release is gone or damaged.
        """
        paths = self.checked_all(self.files.events(bucket) for bucket in range(self.manifest.buckets))
        events = pl.scan_parquet(paths) if paths else _empty(EVENTS)
        if split is None:
            return events
        subjects = self.splits(scheme).filter(pl.col("split") == check_split(split)).select("subject_id")
        return events.join(subjects.lazy(), on="subject_id", how="semi", maintain_order="left")

    def items(self, profile: str | None = None) -> pl.LazyFrame:
        """Every image found (warehouse.schemas.ITEMS), refused and failed ones included: see `verdict`.

        One row an image; where a modality has several encoders, one for each of them, as an image may have a vector of
        one and not of another. Files are compared with their checksums as by `events`.

        Args:
            profile: one row an image: that of the encoder whose vectors the profile's tokens carry.

        Raises:
            TimeloomError: no such profile, or a file of the release is gone or damaged.
        """
        paths = self.checked_all(self.files.items(bucket) for bucket in range(self.manifest.buckets))
        items = pl.scan_parquet(paths) if paths else _empty(ITEMS)
        if profile is None:
            return items
        self.check_profile(profile)
        stores = {name: entry.store for name, entry in self.manifest.encoders_of(profile).items()}
        carried = pl.col("modality").replace_strict(stores, default=None, return_dtype=pl.String)
        return items.filter(pl.col("store").is_null() | (pl.col("store") == carried))

    def texts(self) -> pl.LazyFrame:
        """The texts of usable items (warehouse.schemas.TEXTS), in a release that keeps some; else no row.

        Files are compared with their checksums as by `events`.

        Raises:
            TimeloomError: a file of the release is gone or damaged.
        """
        paths = self.checked_all(self.files.texts(bucket) for bucket in range(self.manifest.buckets))
        return pl.scan_parquet(paths) if paths else _empty(TEXTS)

    def graphs(self) -> "VisitGraphs":
        """The graphs of visits, in a release that has them; see warehouse.readers.graphs.VisitGraphs.

        Raises:
            TimeloomError: the release has none.
        """
        from warehouse.readers.graphs import VisitGraphs

        return VisitGraphs(self)

    def triplets(self) -> "Triplets":
        """Images, text and record of studies, in a release that has them; see warehouse.readers.triplets.Triplets.

        Raises:
            TimeloomError: the release has none.
        """
        from warehouse.readers.triplets import Triplets

        return Triplets(self)

    def copies(self) -> pl.DataFrame:
        """Items that have copies (warehouse.schemas.COPIES), in a release in which they were looked for; else no row.

        Raises:
            TimeloomError: the file is damaged.
        """
        paths = self.checked_all([self.files.copies])
        return read_frame(paths[0]) if paths else _empty(COPIES).collect()

    def vocabulary(self, profile: str) -> pl.DataFrame:
        """token_id, token, type and train_count, by token_id.

        Raises:
            TimeloomError: no such profile, or the file is damaged.
        """
        self.check_profile(profile)
        return read_frame(self.checked(self.files.vocabulary(profile))).sort("token_id")

    def vector(self, modality: str, item_key: str, encoder: str | None = None) -> npt.NDArray[Any]:
        """The stored array of one item: (1024,) for CT, (1536,) for slides; un-projected, un-normalised.

        Args:
            encoder: whose vector, where the modality has several encoders.

        Raises:
            TimeloomError: the release has no vector for that item, no such encoder, or several and none is named; or
                the store is damaged.
        """
        store = self.manifest.encoder(modality, encoder).store
        wanted = (pl.col("store") == store) & (pl.col("item_key") == item_key) & (pl.col("verdict") == "ok")
        found = self.items().filter(wanted, pl.col("subject_id").is_not_null()).select("subject_id").collect()
        if found.is_empty():
            raise TimeloomError(f"the release has no {modality} vector under this key", remedy="see release.items()")
        (subject,) = found.row(0)
        return self.stored_vector(
            modality, store, int(bucket_of(np.array([subject]), self.manifest.buckets)[0]), item_key
        )

    def labels(self, labels: "Labels", scheme: str | None = None, seed: int = 0) -> pl.DataFrame:
        """Labels with the split of each subject, its fold (0 to 4, train and tuning) and its few-shot subset.

        Args:
            labels: a task of the release, a path of MEDS label files, or a frame with their columns.
            scheme: whose splits are meant; the release's first where not given.
            seed: of folds and subsets; `few_shot` is the smallest share that a train subject is in.

        Raises:
            TimeloomError: no such task, file or scheme, or a column is missing or null.
        """
        from warehouse.readers.tasks.labels import read_labels, with_splits

        return with_splits(read_labels(self, labels), self.splits(scheme), seed)

    def features(self, labels: "Labels", **options: Unpack["FeatureOptions"]) -> "Features":
        """What models of tables read for labels: counts of codes, demographics, mean vectors; see docs/probes.md.

        Args:
            labels: as `labels` takes them.
            options: see FeatureOptions.

        Raises:
            TimeloomError: no such task, scheme, split or modality.
        """
        from warehouse.readers.tasks.features import Features

        return Features(self, labels, **options)

    def histories(
        self, profile: str, labels: "Labels", *, context: int, echo: bool = False, **options: Unpack["RowOptions"]
    ) -> "ProbeDataset":
        """The last half `context` of tokens that each label's subject had at the prediction time.

        Args:
            labels: as `labels` takes them.
            context: tokens that the model takes.
            echo: rows hold the history twice, one copy behind the other.
            options: see RowOptions.

        Raises:
            TimeloomError: no such profile, task or split, or a clock that the profile's tokens do not stand by.
        """
        from warehouse.readers.tasks.probes import ProbeDataset

        return ProbeDataset(self, profile, labels, length=context // 2, echo=echo, **options)

    def prompts(
        self,
        profile: str,
        labels: "Labels",
        *,
        length: int,
        prompt: "Prompt | None" = None,
        **options: Unpack["RowOptions"],
    ) -> "ProbeDataset":
        """The last `length` tokens up to a task's start event, with items that are strictly earlier.

        Args:
            labels: as `labels` takes them.
            prompt: what a prompt ends at and what ends its continuation; that of the task where not given.
            options: see RowOptions.

        Raises:
            TimeloomError: as `histories`; the task has no prompt, or the profile no token of its start.
        """
        from warehouse.readers.tasks.probes import ProbeDataset

        return ProbeDataset(self, profile, labels, length=length, prompt=prompt or True, **options)

    def intervals(self, profile: str) -> pl.DataFrame:
        """How long each interval token of a profile stands for; see warehouse.readers.tasks.intervals."""
        from warehouse.readers.tasks.intervals import interval_table

        return interval_table(self, profile)

    @overload
    def shards(
        self, profile: str, *, split: str, fields: Literal["full"] = "full", **options: Unpack["ShardOptions"]
    ) -> "ShardDataset[Batch]": ...
    @overload
    def shards(
        self, profile: str, *, split: str, fields: Literal["segments"], **options: Unpack["ShardOptions"]
    ) -> "ShardDataset[SegmentBatch]": ...
    @overload
    def shards(
        self, profile: str, *, split: str, fields: Literal["ids"], **options: Unpack["ShardOptions"]
    ) -> "ShardDataset[IdBatch]": ...
    def shards(
        self,
        profile: str,
        *,
        split: str,
        fields: Literal["full", "segments", "ids"] = "full",
        **options: Unpack["ShardOptions"],
    ) -> "ShardDataset[Any]":
        """The packs of a split, for one of `world_size` ranks. Opens no file: the manifest knows every pack.

        Args:
            profile: token profile, e.g. `mehrt`.
            split: train, tuning or held_out.
            fields: `full`; `segments`, ids and segment boundaries; `ids`, ids alone.
            options: see ShardOptions.

        Raises:
            TimeloomError: no such profile, split, plan, budget or loss; a shard is missing or truncated.
        """
        from warehouse.readers.dataset import ShardDataset

        return ShardDataset(self, profile, split, fields=fields, **options)

    def visible_items(self, batch: "Batch", modality: str, k: int = 8) -> "torch.Tensor":
        """Strictly-before mask for cross-attention: see warehouse.readers.visibility.visible_items."""
        from warehouse.readers import visibility

        return visibility.visible_items(batch, modality, k)

    def visible_by_modality(self, batch: "Batch", k: int | Mapping[str, int] = 8) -> "dict[str, torch.Tensor]":
        """The masks of `visible_items` of every modality that the batch has, or of those that `k` names."""
        from warehouse.readers import visibility

        most = k if isinstance(k, Mapping) else dict.fromkeys(batch.item_positions, k)
        return {modality: visibility.visible_items(batch, modality, number) for modality, number in most.items()}


class StoredRelease(StoredFiles, Release):
    """A release in an object store; made by `Release.open`."""


def _empty(schema: Any) -> pl.LazyFrame:
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
