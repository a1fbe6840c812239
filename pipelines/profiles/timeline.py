"""One bucket's events to its subjects' timelines: rows are chosen, put in order and written as ids, by arrays alone.

The order of tokens: `[BOS]`, demographics without a time, then the events, each behind its interval token; images after
what is recorded at their time (MEHRT §2.1; equal times are hidden from it), values behind their codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.profiles.demographics import BIRTH, Demographics, demographics_of
from pipelines.profiles.events import Part, order_of
from pipelines.profiles.intervals import between, interval_tokens
from pipelines.profiles.lexicon import Ids, Lexicon, ValueLookup
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import compared
from warehouse.arrays import I32, I64, NO_TIME, U8, U32, Bools
from warehouse.errors import TimeloomError
from warehouse.tokens import BOS, TIMELINE_END, UNK, TokenType


@dataclass(frozen=True)
class Chosen:
    """The rows of a part that become tokens.

    Attributes:
        rows: places of the events that stand in the timelines (m,), ascending.
        coded: places of the events that stand or fall with their code (n,), as a mask.
        left_out: reason, and the rows that it left out for another cause than their code.
    """

    part: Part
    lexicon: Lexicon
    rows: I64
    demographics: Demographics
    coded: Bools
    left_out: list[tuple[str, I64]]

    def groups(self, rows: I64) -> tuple[I64, I64]:
        """Of each row its groups of tokens: (places among `rows` (k,), groups (k,))."""
        code = self.part.code.place[rows]
        first = self.lexicon.first[code]
        if not self.lexicon.several:
            return np.arange(len(rows)), first
        count = np.where(self.lexicon.image[code], 1, self.lexicon.count[code])
        places = np.repeat(np.arange(len(rows)), count)
        return places, first[places] + np.arange(len(places)) - (np.cumsum(count) - count)[places]


def choose(part: Part, lexicon: Lexicon, usable: pl.Series, profile: ProfileConfig) -> Chosen:
    """Tells the events that become tokens from those that are left out.

    Args:
        usable: keys of the items that have a vector.

    Raises:
        TimeloomError: an image of a modality that has no token.
    """
    code = part.code.place
    left_out: list[tuple[str, I64]] = []
    image = part.kind.is_text("image")
    wanted = lexicon.wanted[code]
    pictures = _images(part, lexicon, image, usable, left_out)
    birth = part.code.is_text(BIRTH)
    _note(left_out, "becomes_age", np.flatnonzero(birth))
    fact = lexicon.demographic[code]
    other = ~(image | birth)
    if lexicon.image.any():
        # Only an item's own event stands for an image: no other has a key that would lead to its vector.
        no_image = other & lexicon.image[code]
        _note(left_out, "image_code_without_image", np.flatnonzero(no_image))
        other &= ~no_image
    facts = np.flatnonzero(fact & wanted & other)
    if profile.static == "none":
        _note(left_out, "demographic_not_in_profile", facts)
        facts = facts[:0]
    demographics = demographics_of(part, facts, lexicon.facts, profile)
    _note(left_out, "repeated_demographic", demographics.repeated)
    stays = wanted & other & ~fact
    if part.value is not None and lexicon.only_numeric.any():
        empty = stays & lexicon.only_numeric[code] & ~np.isfinite(part.value)
        _note(left_out, "no_number", np.flatnonzero(empty))
        stays &= ~empty
    stays[pictures] = True
    stays[demographics.timed] = True
    return Chosen(part, lexicon, np.flatnonzero(stays), demographics, other, left_out)


def _note(left_out: list[tuple[str, I64]], reason: str, rows: I64) -> None:
    if len(rows):
        left_out.append((reason, rows))


def _images(part: Part, lexicon: Lexicon, image: Bools, usable: pl.Series, left_out: list[tuple[str, I64]]) -> I64:
    rows: I64 = np.flatnonzero(image)
    if not len(rows):
        return rows
    known = np.append(part.item_key.distinct.is_in(usable.implode()).to_numpy(), False)
    usable_rows = known[part.item_key.place[rows]]
    _note(left_out, "image_without_vector", rows[~usable_rows])
    rows = rows[usable_rows]
    if not lexicon.image[part.code.place[rows]].all():
        raise TimeloomError("images of some modality have no token", remedy="report this: a stage broke its contract")
    return rows


@dataclass(frozen=True)
class Encoded:
    """Timelines as ids, a subject's tokens together and in order.

    Attributes:
        subject: ids (s,), and `lengths` (s,) the number of each one's tokens.
        ids, types, times: (t,); times in µs, NO_TIME where there is none.
        image_places: places of image tokens (i,), and `image_keys` their items.
        without_breaks: values that no quantile is known for.
    """

    subject: I64
    lengths: I64
    ids: U32
    types: U8
    times: I64
    image_places: I64
    image_keys: pl.Series
    without_breaks: int

    def __len__(self) -> int:
        return len(self.ids)

    def table(self) -> pa.Table:
        """Columns of TIMELINES."""
        keys = pa.array(np.zeros(len(self), np.int32), mask=_outside(len(self), self.image_places))
        if len(self.image_places):
            places = np.zeros(len(self), np.int32)
            places[self.image_places] = np.arange(len(self.image_places))
            keys = pa.array(places, mask=_outside(len(self), self.image_places))
        distinct = pa.array(self.image_keys.to_list() or [""], pa.string())
        return pa.table(
            {
                "subject_id": np.repeat(self.subject, self.lengths),
                "token_id": self.ids,
                "type": self.types,
                "time": pa.array(self.times, pa.timestamp("us"), mask=self.times == NO_TIME),
                "item_key": pa.DictionaryArray.from_arrays(keys, distinct),
            }
        )

    def cells(self, firsts: I64) -> Iterator[pa.Table]:
        """As `table`, a cell of subjects at a time.

        Args:
            firsts: the first subject of each cell, ascending.
        """
        cell = np.searchsorted(firsts, self.subject, side="right")
        begins = np.flatnonzero(np.append(True, cell[1:] != cell[:-1])) if len(cell) else np.zeros(0, np.int64)
        tokens = np.append(0, np.cumsum(self.lengths))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(cell)], strict=False):
            first, last = tokens[begin], tokens[end]
            low, high = np.searchsorted(self.image_places, [first, last])
            yield replace(
                self,
                subject=self.subject[begin:end],
                lengths=self.lengths[begin:end],
                ids=self.ids[first:last],
                types=self.types[first:last],
                times=self.times[first:last],
                image_places=self.image_places[low:high] - first,
                image_keys=self.image_keys[low:high],
            ).table()


def _outside(length: int, places: I64) -> Bools:
    mask = np.ones(length, np.bool_)
    mask[places] = False
    return mask


class TimelineWriter:
    """Writes timelines out.

    Args:
        ids: the vocabulary.
        quantiles: columns of QUANTILES; looked at where the profile tells values.
    """

    def __init__(self, profile: ProfileConfig, ids: Ids, quantiles: pl.DataFrame) -> None:
        self._profile, self._ids, self._quantiles = profile, ids, quantiles
        self._intervals = ids.of(pl.Series(interval_tokens(profile.intervals), dtype=pl.String))
        self._end = ids.of(pl.Series([TIMELINE_END]))
        self._lexicon: Lexicon | None = None
        self._values: ValueLookup | None = None

    def _look_up(self, lexicon: Lexicon) -> None:
        """What is the same for all parts of a bucket."""
        if lexicon is not self._lexicon:
            self._lexicon = lexicon
            self._tokens = self._ids.of(lexicon.tokens)
            self._facts = self._ids.of(lexicon.facts.tokens)
            self._types = np.repeat(lexicon.types, lexicon.length)
            self._types[self._tokens == UNK] = TokenType.SPECIAL
            if self._profile.values != "codes_only":
                self._values = ValueLookup(lexicon, self._profile, self._quantiles, self._ids)

    def encode(self, chosen: Chosen) -> Encoded:
        """A part's timelines."""
        part, lexicon, profile = chosen.part, chosen.lexicon, self._profile
        self._look_up(lexicon)
        ordered, at = order_of(part, chosen.rows, profile.order, images_first=profile.image_position == "first")
        rows, groups = ordered, lexicon.first[part.code.place[ordered]]
        if lexicon.several:
            places, groups = chosen.groups(ordered)
            rows, at = ordered[places], at[places]
        subject = part.subject[rows]
        number = lexicon.length[groups]
        with_value, value_ids, without = self._told_values(part, lexicon, rows, groups)
        pictured = np.flatnonzero(lexicon.types[groups] == TokenType.IMAGE) if lexicon.image.any() else rows[:0]
        gap_place, gap_times = gaps(subject, at, pictured, profile)
        lengths = number + gap_times if profile.intervals != "none" else number
        if profile.values == "pair" and len(with_value):
            lengths = lengths.copy()
            lengths[with_value] += 1
        # A subject's tokens in three: what stands in front, its rows, its end.
        subjects, end = len(part.subjects), int(profile.timeline_end)
        of_prefix = chosen.demographics.subject
        front = 1 + np.bincount(of_prefix, minlength=subjects)
        upto = np.concatenate([[0], np.cumsum(lengths)])
        events = np.searchsorted(subject, np.arange(subjects + 1, dtype=np.int32))
        whole = front + upto[events[1:]] - upto[events[:-1]] + end
        begin = np.cumsum(whole) - whole
        start = upto[:-1] + np.repeat(begin + front - upto[events[:-1]], np.diff(events))

        out, kinds = np.empty(int(whole.sum()), np.uint32), np.empty(int(whole.sum()), np.uint8)
        behind = start + gap_times if profile.intervals != "none" else start
        if len(groups):
            # No group is without a token.
            out[behind], kinds[behind] = self._tokens[lexicon.start][groups], self._types[lexicon.start][groups]
        longer = np.flatnonzero(number > 1)
        for place in range(1, int(lexicon.length.max(initial=0))):
            longer = longer[number[longer] > place]
            spot, flat = behind[longer] + place, lexicon.start[groups[longer]] + place
            out[spot], kinds[spot] = self._tokens[flat], self._types[flat]
        spot = behind[with_value] + number[with_value] - (profile.values == "fused")
        out[spot] = value_ids
        kinds[spot] = np.where(value_ids == UNK, TokenType.SPECIAL, TokenType.STRUCTURED)
        marked = np.flatnonzero(gap_times)
        times = gap_times[marked]
        spot = np.repeat(start[marked] - (np.cumsum(times) - times), times) + np.arange(int(times.sum()))
        out[spot] = self._intervals[np.repeat(gap_place[marked], times)]
        kinds[spot] = TokenType.INTERVAL
        out[begin], kinds[begin] = BOS, TokenType.SPECIAL
        spot = (begin + 1 - (np.cumsum(front - 1) - (front - 1)))[of_prefix] + np.arange(len(of_prefix))
        out[spot] = self._facts[chosen.demographics.token]
        kinds[spot] = np.where(out[spot] == UNK, TokenType.SPECIAL, TokenType.DEMOGRAPHIC)
        if end:
            out[begin + whole - 1], kinds[begin + whole - 1] = self._end, TokenType.STRUCTURED
        return Encoded(
            subject=part.subjects,
            lengths=whole,
            ids=out,
            types=kinds,
            times=_times(at, lengths, subject, front, events, end),
            image_places=behind[pictured],
            image_keys=part.item_key.distinct.gather(part.item_key.place[rows[pictured]]),
            without_breaks=without,
        )

    def _told_values(self, part: Part, lexicon: Lexicon, rows: I64, groups: I64) -> tuple[I64, U32, int]:
        """The places (v,) of rows with value tokens, these tokens (v,), and how many values had no breaks."""
        if self._values is None or part.value is None or part.unit is None:
            return rows[:0], np.empty(0, np.uint32), 0
        holding = np.flatnonzero(lexicon.values[groups] & np.isfinite(part.value[rows]))
        found = self._values.rows_of(groups[holding], part.unit.take(rows[holding]))
        known = found >= 0
        with_value, found = holding[known], found[known]
        numbers = compared(part, rows[with_value])
        return with_value, self._values.tokens(groups[with_value], found, numbers), len(holding) - len(with_value)


def _times(at: I64, lengths: I64, subject: I32, front: I64, events: I64, end: int) -> I64:
    """Times (t,): none in front; a subject's end has the time of its last event.

    Args:
        events: of each subject the number of rows before it, and at last all (s + 1,).
    """
    # One more row a subject stands for its front, and one for its end.
    extra, subjects = 1 + end, np.arange(len(front))
    size = len(at) + extra * len(front)
    value, repeats = np.empty(size, np.int64), np.empty(size, np.int64)
    event_places = np.arange(1, len(at) + 1) + extra * subject if end else np.arange(1, len(at) + 1) + subject
    value[event_places], repeats[event_places] = at, lengths
    fronts = events[:-1] + extra * subjects
    value[fronts], repeats[fronts] = NO_TIME, front
    if end:
        ends = events[1:] + extra * subjects + 1
        value[ends], repeats[ends] = value[ends - 1], 1
    return np.repeat(value, repeats)


def gaps(subject: I32, at: I64, images: I64, profile: ProfileConfig) -> tuple[I64, I64]:
    """Of each row, which interval token stands before it and how many times (m,); nothing (0,) without intervals.

    An image gets no interval token and does not split an interval, so that a timeline without its images equals that
    of a subject who has no images.

    Args:
        images: which rows are images (i,).
    """
    if profile.intervals == "none" or not len(at):
        return at[:0], at[:0]
    not_images: I64 | slice = np.flatnonzero(_outside(len(at), images)) if len(images) else slice(None)
    times, subjects = at[not_images], subject[not_images]
    since = np.zeros(len(times), np.int64)
    since[1:] = np.where((subjects[1:] == subjects[:-1]) & (times[:-1] != NO_TIME), times[1:] - times[:-1], 0)
    apart = np.zeros(len(at), np.int64)
    apart[not_images] = since
    return between(apart, profile.intervals)
