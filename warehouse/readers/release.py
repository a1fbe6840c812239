"""What trainers import: a release, pinned and checked. torch is imported by what gives tensors, not before."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.embeddings.store import EmbeddingStore
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file, xxh3_file
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, read_manifest
from warehouse.publish import current_release
from warehouse.schemas import EVENTS, ITEMS, SPLITS, read_frame
from warehouse.tokens import TokenType

if TYPE_CHECKING:
    import torch

    from warehouse.readers.batch import Batch, IdBatch, SegmentBatch
    from warehouse.readers.dataset import ShardDataset

REMEDY = "run `timeloom verify`, delete the damaged file and run again"


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
        vectors: `pooled` (True), one vector an item; `sequences`, its units too; False for none.
        items_per_segment: None for the items of the packs' image tokens; k for the k most recent of each segment's
            subject within the segment's time span, whether they have tokens or not.
    """

    plan: str
    budget: int | None
    rank: int
    world_size: int
    seed: int | None
    stage: int
    loss: str | Iterable[TokenType]
    vectors: Literal["pooled", "sequences"] | bool
    items_per_segment: int | None


@dataclass(frozen=True)
class Release:
    """One published release. It never changes, so a reader that holds it is not disturbed by the next night."""

    layout: Layout
    files: ReleaseLayout
    manifest: Manifest
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, root: Path | str, release: str | None = None) -> Self:
        """The release that `current` points at now, or the one named.

        Raises:
            TimeloomError: nothing is published, no such release, or its manifest is damaged.
        """
        layout = Layout(Path(root))
        if release is None:
            found = current_release(layout)
            if found is None:
                raise TimeloomError(f"{layout.root.name} has no published release", remedy="run `timeloom run` first")
        else:
            found = ReleaseLayout(layout.releases.resolve() / release)
            if not found.path.is_dir():
                raise TimeloomError(
                    f"there is no release {release}", remedy="see `timeloom status` for those there are"
                )
        return cls(layout, found, read_manifest(found.manifest))

    @property
    def path(self) -> Path:
        """The release's directory."""
        return self.files.path

    def events(self, split: str | None = None, scheme: str | None = None) -> pl.LazyFrame:
        """MEDS events (warehouse.schemas.EVENTS), a subject's rows together and by time; of one split, or of all.

        Args:
            scheme: whose splits are meant; the release's first where not given. A profile's is
                `manifest.profiles[name].scheme`: use that beside its shards, or train on what another scheme holds out.

        Raises:
            TimeloomError: no such split or scheme, or a file of the release is gone.
        """
        paths = self.present([self.files.events(bucket) for bucket in range(self.manifest.buckets)])
        events = pl.scan_parquet(paths) if paths else _empty(EVENTS)
        if split is None:
            return events
        subjects = self.splits(scheme).filter(pl.col("split") == check_split(split)).select("subject_id")
        return events.join(subjects.lazy(), on="subject_id", how="semi", maintain_order="left")

    def splits(self, scheme: str | None = None) -> pl.DataFrame:
        """subject_id and split of every subject that has one in a scheme; the release's first where not given.

        Raises:
            TimeloomError: no such scheme, or the file is damaged.
        """
        path = self.files.scheme_subjects(scheme or self.manifest.split_scheme)
        if self.relative(path) not in self.manifest.files:
            known = sorted(name.split("/")[1] for name in self.manifest.files if name.endswith("/" + path.name))
            raise TimeloomError(
                f"the release has no split scheme {scheme}", remedy=f"choose one of: {', '.join(known)}"
            )
        return read_frame(self.checked(path)).select("subject_id", "split")

    def items(self) -> pl.LazyFrame:
        """Every image found (warehouse.schemas.ITEMS), refused and failed ones included: see `verdict`.

        Raises:
            TimeloomError: a file of the release is gone.
        """
        paths = self.present([self.files.items(bucket) for bucket in range(self.manifest.buckets)])
        return pl.scan_parquet(paths) if paths else _empty(ITEMS)

    def vocabulary(self, profile: str) -> pl.DataFrame:
        """token_id, token, type and train_count, by token_id.

        Raises:
            TimeloomError: no such profile, or the file is damaged.
        """
        self.check_profile(profile)
        return read_frame(self.checked(self.files.vocabulary(profile))).sort("token_id")

    def vector(self, modality: str, item_key: str) -> npt.NDArray[Any]:
        """The stored array of one item: (1024,) for CT, (1536,) for slides; un-projected, un-normalised.

        Raises:
            TimeloomError: the release has no vector for that item, or the store is damaged.
        """
        wanted = (pl.col("modality") == modality) & (pl.col("item_key") == item_key) & (pl.col("verdict") == "ok")
        found = self.items().filter(wanted, pl.col("subject_id").is_not_null()).select("subject_id", "store").collect()
        if found.is_empty():
            raise TimeloomError(f"the release has no {modality} vector under this key", remedy="see release.items()")
        subject, store = found.row(0)
        return self.stored_vector(
            modality, store, int(bucket_of(np.array([subject]), self.manifest.buckets)[0]), item_key
        )

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

    def check_profile(self, profile: str) -> None:
        if profile not in self.manifest.profiles:
            known = ", ".join(self.manifest.profiles) or "none"
            raise TimeloomError(f"the release has no profile {profile}", remedy=f"choose one of: {known}")

    def relative(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _entry(self, path: Path) -> FileEntry:
        """The manifest's entry of a file that is there with its size; content unread."""
        name = self.relative(path)
        entry = self.manifest.files.get(name)
        if entry is None:
            raise TimeloomError(f"{name} is not part of the release", remedy="run `timeloom verify`")
        if not path.is_file():
            raise TimeloomError(f"{name} is missing from the release", remedy=REMEDY)
        if path.stat().st_size != entry.bytes:
            raise TimeloomError(
                f"{name} is truncated or was changed: its size differs from the manifest", remedy=REMEDY
            )
        return entry

    def present(self, paths: list[Path]) -> list[Path]:
        listed = [path for path in paths if self.relative(path) in self.manifest.files]
        for path in listed:
            self._entry(path)
        return listed

    def checked(self, path: Path) -> Path:
        """The path, its content compared with the manifest's checksum the first time: XXH3-128, or SHA-256."""
        name = self.relative(path)
        if name not in self._verified:
            entry = self._entry(path)
            if (sha256_file(path) != entry.sha256) if entry.xxh3 is None else (xxh3_file(path) != entry.xxh3):
                raise TimeloomError(f"{name} is corrupt: its checksum differs from the manifest", remedy=REMEDY)
            self._verified.add(name)
        return path

    def stored_vector(self, modality: str, store: str, bucket: int, key: str) -> npt.NDArray[Any]:
        path = self.layout.embedding_bucket(modality, store, bucket)
        try:
            return EmbeddingStore.open(path).get(key)
        except KeyError:
            name = "/".join(path.parts[-3:])
        raise TimeloomError(f"embedding store {name} lacks an item of the release", remedy="run `timeloom verify`")


def _empty(schema: Any) -> pl.LazyFrame:
    frame = pl.from_arrow(schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def check_split(split: str) -> str:
    if split not in SPLITS:
        raise TimeloomError(f"there is no split called {split}", remedy=f"choose one of {', '.join(SPLITS)}")
    return split
