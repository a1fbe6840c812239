"""Histories and prompts as a torch dataset: what a model reads of each label, with its outcome.

Sources: MEHRT §2.3 (a history is the last half context of tokens up to the prediction time; echo embeddings read it
twice and average over the second copy, as Springer et al. 2024); the multimodal EHR model §2.4 (the last L tokens that
end at a task's start, items strictly before it).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl
import torch
from torch.utils.data import IterableDataset, get_worker_info

from warehouse.arrays import I64, NO_TIME, Bools
from warehouse.embeddings.addresses import ArrayAddresses, no_marks
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.modalities import MODALITIES
from warehouse.parquet import read_frame
from warehouse.readers.batch import Batch
from warehouse.readers.collate import Items, item_fields
from warehouse.readers.item_vectors import pooled
from warehouse.readers.pinned import PinnedRelease
from warehouse.readers.retrieved_items import WindowItems
from warehouse.readers.tasks.labels import SHARES, Clock, Labels, check_clock, chosen_splits, read_labels, with_splits
from warehouse.readers.tasks.prompts import Prompt, PromptIds, prompt_of
from warehouse.readers.tasks.windows import BucketTokens, LateFacts, Taken, Windows, spans, take, windows
from warehouse.tokens import FIRST_IMAGE, PAD, TIMELINE_END, TokenType


@dataclass(frozen=True, eq=False, repr=False)
class ProbeBatch(Batch):
    """B labels with what was known of their subjects, one a row, from the left; a row is one segment, without targets.

    Attributes:
        outcome: (B,) bool, the labels.
        prediction_time_us: (B,) int64, microseconds since 1970.
        second_start: (B,) int64, where the second copy of an echo begins; -1 without echo.
        start: (B,) int64, the place of a prompt's start token; -1 where there is none.
    """

    outcome: torch.Tensor
    prediction_time_us: torch.Tensor
    second_start: torch.Tensor
    start: torch.Tensor

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(B,) int64, tokens of each row, of both copies of an echo; 0 for a subject without a token."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).long()

    @cached_property
    def second_copy(self) -> torch.Tensor:
        """(B, L) bool: the tokens of the second copy, whose states an echo embedding is the mean of."""
        begun = self.position_ids >= self.second_start[:, None]
        return self.real & begun & (self.second_start[:, None] >= 0)

    @cached_property
    def last(self) -> torch.Tensor:
        """(B,) int64, the place of each row's last token; 0 in an empty row."""
        return (self.lengths - 1).clamp(min=0)


class ProbeDataset(IterableDataset[ProbeBatch]):
    """The labels of a task with histories or prompts, in the order of buckets, subjects and times.

    Nothing is copied: a bucket's timelines are read, and each label is a range of them. Iterating gives batches of one
    label; every label is given once, by one of `world_size` ranks.
    """

    def __init__(
        self,
        release: PinnedRelease,
        profile: str,
        labels: Labels,
        *,
        length: int,
        echo: bool = False,
        prompt: Prompt | bool = False,
        front: bool = False,
        splits: Sequence[str] | str | None = None,
        few_shot: float | None = None,
        clock: Clock = "available_time",
        vectors: Literal["pooled"] | bool = "pooled",
        items_per_row: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        release.check_profile(profile)
        entry = release.manifest.profiles[profile]
        check_clock(clock)
        if entry.order != clock:
            raise TimeloomError(
                f"tokens of the profile {profile} stand by {entry.order}, so what was known is not told by {clock}",
                remedy=f'give clock="{entry.order}", or a profile whose order is {clock}',
            )
        if length < 1 or (items_per_row is not None and items_per_row < 1) or not 0 <= rank < world_size:
            raise TimeloomError(
                "length or items_per_row is below 1, or rank is not below world_size", remedy="give positive numbers"
            )
        self.release, self.profile, self.length, self.echo, self.front = release, profile, length, echo, front
        self.vectors, self.items_per_row = bool(vectors), items_per_row
        self.rank, self.world_size = rank, world_size
        self.names: list[str] = release_names(release, profile)
        self._end = self.names.index(TIMELINE_END) if TIMELINE_END in self.names else None
        if prompt is True:
            prompt = prompt_of(labels)
        self.prompt = prompt or None
        self._prompt_ids = None if self.prompt is None else PromptIds.of(self.prompt, self.names)
        self.labels = self._chosen(labels, entry.scheme, splits, few_shot, seed)
        self._unknown = entry.unknown
        self.encoders = release.manifest.encoders_of(profile)
        self._window = WindowItems(release, self.encoders) if items_per_row else None
        self._subjects = self.labels["subject_id"].to_numpy()
        self._times = self.labels["prediction_time"].to_physical().to_numpy()
        self._outcomes = self.labels["boolean_value"].to_numpy()
        self._home = bucket_of(self._subjects, release.manifest.buckets).astype(np.int64)

    def _chosen(
        self, labels: Labels, scheme: str, splits: Sequence[str] | str | None, share: float | None, seed: int
    ) -> pl.DataFrame:
        known = self.release.splits(scheme)
        shares = sorted({*SHARES, share}) if share is not None else SHARES
        rows = with_splits(read_labels(self.release, labels), known, seed, shares)
        if splits is not None:
            rows = rows.filter(pl.col("split").is_in(chosen_splits(splits)))
        if share is not None:
            rows = rows.filter((pl.col("split") != "train") | (pl.col("few_shot") <= share))
        return rows

    def __len__(self) -> int:
        """Labels, over all ranks."""
        return len(self._times)

    @property
    def stop_ids(self) -> torch.Tensor:
        """(k,) int64: tokens that end a prompt's continuation."""
        return torch.from_numpy(self._asked().stop)

    @property
    def positive_ids(self) -> torch.Tensor:
        """(k,) int64: those of them that make it positive."""
        return torch.from_numpy(self._asked().positive)

    @property
    def horizon_us(self) -> int:
        """Microseconds behind the prediction time at which a continuation ends."""
        self._asked()
        assert self.prompt is not None
        return round(self.prompt.horizon_days * 86_400_000_000)

    def _asked(self) -> PromptIds:
        if self._prompt_ids is None:
            raise TimeloomError("these are histories and no prompts", remedy="ask for prompts: release.prompts(...)")
        return self._prompt_ids

    def plan(self) -> pl.DataFrame:
        """Where each label's tokens stand: its columns of `labels`, and places in its subject's timeline.

        `first` and `end` are the range, `front` how many tokens of the timeline's front are taken besides, `start` the
        start token of a prompt; null where there is none. Rows without a token have an empty range.
        """
        found = [
            pl.DataFrame(
                {
                    "row": rows,
                    "first": plan.starts - begin,
                    "end": plan.ends - begin,
                    "front": plan.fronts,
                    "start": np.where(plan.start_tokens < 0, -1, plan.start_tokens - begin),
                }
            )
            for rows, tokens, plan, _ in self._buckets(0, 1)
            for begin in [tokens.starts[np.maximum(plan.place, 0)] if len(tokens.starts) else plan.starts]
        ]
        empty = pl.DataFrame(schema=dict.fromkeys(("row", "first", "end", "front", "start"), pl.Int64))
        places = pl.concat([empty, *found]).sort("row").drop("row")
        return self.labels.hstack(places.with_columns(pl.col("start").replace(-1, None)))

    def _buckets(self, rank: int, ranks: int) -> Iterator[tuple[I64, BucketTokens, Windows, LateFacts]]:
        """Of each bucket the numbers of its labels, its timelines, and where the labels' tokens are."""
        files = self.release.files
        edges = np.searchsorted(self._home, np.arange(self.release.manifest.buckets + 1))
        for bucket in range(rank, self.release.manifest.buckets, ranks):
            rows = np.arange(edges[bucket], edges[bucket + 1])
            if not len(rows):
                continue
            timeline = self.release.checked(files.timeline(self.profile, bucket))
            tokens = BucketTokens.read(timeline, self._end)
            subjects, times = self._subjects[rows], self._times[rows]
            place = tokens.places(subjects)
            events = self.release.checked_all([files.events(bucket)])
            late = LateFacts.of(
                tokens, np.unique(place[place >= 0]), events[0] if events else None, self.names, self._unknown
            )
            plan = windows(tokens, subjects, times, self.length, front=self.front, late=late, prompt=self._prompt_ids)
            for path in (timeline, *events):
                self.release.let_go(path)
            yield rows, tokens, plan, late

    def __iter__(self) -> Iterator[ProbeBatch]:
        return self.batches(1)

    def batches(self, batch_size: int) -> Iterator[ProbeBatch]:
        """Batches of `batch_size` labels, the last of a rank with what is left; as long as their longest row.

        Raises:
            TimeloomError: batch_size is below 1; a file of the release is missing or damaged.
        """
        if batch_size < 1:
            raise TimeloomError("batch_size is below 1", remedy="give a positive whole number")
        worker = get_worker_info()
        rank, ranks = self.rank, self.world_size
        if worker is not None:
            rank, ranks = rank * worker.num_workers + worker.id, ranks * worker.num_workers
        held: list[tuple[I64, Taken]] = []
        for rows, tokens, plan, late in self._buckets(rank, ranks):
            first = 0
            while first < len(rows):
                upto = min(len(rows), first + batch_size - sum(len(part) for part, _ in held))
                taken = take(tokens, plan, late, slice(first, upto), strict=self.prompt is not None)
                held.append((rows[first:upto], taken))
                first = upto
                if sum(len(part) for part, _ in held) == batch_size:
                    yield self._batch(held)
                    held = []
        if held:
            yield self._batch(held)

    def _batch(self, parts: list[tuple[I64, Taken]]) -> ProbeBatch:
        rows = np.concatenate([part for part, _ in parts])
        taken = _joined([part for _, part in parts])
        counts = taken.counts * 2 if self.echo else taken.counts
        number, length = len(rows), max(1, int(counts.max(initial=0)))
        # An echo's tokens stand twice, one copy behind the other.
        source = spans(np.cumsum(taken.counts) - taken.counts, taken.counts)
        if self.echo:
            first = np.cumsum(taken.counts) - taken.counts
            source = spans(np.repeat(first, 2), np.repeat(taken.counts, 2))
        where = spans(np.arange(number) * length, counts)
        segment, position = np.full((number, length), -1, np.int32), np.zeros((number, length), np.int64)
        segment.reshape(-1)[where], position.reshape(-1)[where] = 0, spans(np.zeros_like(counts), counts)
        items, dropped = self._items(rows, taken, source, where, length)
        edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return ProbeBatch(
            input_ids=torch.from_numpy(_padded(taken.ids, source, where, number, length, PAD)),
            pack_ids=torch.from_numpy(rows),
            cursor=(int(rows[-1]) + 1,),
            segment_ids=torch.from_numpy(segment),
            position_ids=torch.from_numpy(position),
            cu_seqlens=torch.from_numpy(edges),
            max_seqlen=int(counts.max(initial=0)),
            subject_ids=torch.from_numpy(self._subjects[rows]),
            segment_offset=torch.zeros(number, dtype=torch.int64),
            segments_per_pack=torch.ones(number, dtype=torch.int64),
            token_type=torch.from_numpy(_padded(taken.types, source, where, number, length, int(TokenType.SPECIAL))),
            time_us=torch.from_numpy(_padded(taken.times, source, where, number, length, NO_TIME)),
            loss_mask=torch.zeros(number, length, dtype=torch.bool),
            **item_fields(items),
            item_vectors={name: self._vectors(name, item, rows) for name, item in items.items()},
            item_units={},
            item_lengths={},
            items_dropped=dropped,
            outcome=torch.from_numpy(self._outcomes[rows]),
            prediction_time_us=torch.from_numpy(self._times[rows]),
            second_start=torch.from_numpy(taken.counts if self.echo else np.full(number, -1, np.int64)),
            start=torch.from_numpy(taken.start),
        )

    def _items(
        self, rows: I64, taken: Taken, source: I64, where: I64, length: int
    ) -> tuple[dict[str, Items], dict[str, int]]:
        """The items of image tokens, of both copies of an echo; or those of the rows' spans of time."""
        if self._window is not None and self.items_per_row is not None:
            timed = np.where(taken.times == NO_TIME, np.iinfo(np.int64).max, taken.times)
            starts = np.cumsum(taken.counts) - taken.counts
            first = np.full(len(rows), np.iinfo(np.int64).max)
            filled = taken.counts > 0
            if filled.any():
                first[filled] = np.minimum.reduceat(timed, starts[filled])
            first = np.where(first == np.iinfo(np.int64).max, NO_TIME, first)
            most = dict.fromkeys(self.encoders, self.items_per_row)
            return self._window.between(
                self._subjects[rows], first, self._times[rows], most, last_too=self.prompt is None
            )
        image: Bools = taken.types[source] == int(TokenType.IMAGE)
        flat, token = where[image], source[image]
        number = np.searchsorted(taken.images, token)
        items = {}
        for name, modality in MODALITIES.items():
            if name not in self.encoders:
                continue
            which = np.flatnonzero(taken.ids[token] == FIRST_IMAGE + modality.number)
            place = flat[which]
            items[name] = Items(
                [taken.image_keys[key] for key in number[which].tolist()],
                np.stack([place // length, place % length], axis=1),
                place // length,
                taken.times[token[which]],
                ArrayAddresses(no_marks(len(which)), np.arange(len(which))),
            )
        return items, {}

    def _vectors(self, modality: str, items: Items, rows: I64) -> torch.Tensor:
        encoder = self.encoders[modality]
        if not self.vectors:
            return torch.empty(0, encoder.dim)
        owners, buckets = self._subjects[rows][items.segment], self.release.manifest.buckets
        layout = self.release.layout
        return torch.from_numpy(pooled(layout, modality, encoder.store, encoder.dim, items, owners, buckets))


def release_names(release: PinnedRelease, profile: str) -> list[str]:
    """A profile's tokens, by id."""
    vocabulary = read_frame(release.checked(release.files.vocabulary(profile))).sort("token_id")
    names: list[str] = vocabulary["token"].to_list()
    return names


def _padded(values: np.ndarray, source: I64, where: I64, rows: int, length: int, padding: int) -> np.ndarray:
    whole = np.full((rows, length), padding, values.dtype)
    whole.reshape(-1)[where] = values[source]
    return whole


def _joined(parts: list[Taken]) -> Taken:
    """Rows of several buckets, one after the other."""
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.ids) for part in parts)])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("counts", "ids", "types", "times", "start")
    }
    images = np.concatenate([part.images + shift for part, shift in zip(parts, shifts, strict=False)])
    return Taken(**columns, images=images, image_keys=[key for part in parts for key in part.image_keys])
