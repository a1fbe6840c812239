"""Where in a bucket's timelines each label's tokens lie: plans over timelines, by arrays alone and without polars, as
readers' workers are forked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from warehouse.arrays import I64, NO_TIME, U8, Bools, numbers_of
from warehouse.errors import REPAIR, TimeloomError
from warehouse.parquet import row_groups
from warehouse.readers.tasks.prompts import PromptIds
from warehouse.tokens import TokenType

# The attribute of the age at a subject's first event, which no event of its own tells.
AGE = "DEMO/AGE"
# The end of a span of time that takes an instant in, or not.
LEFT, RIGHT = "left", "right"


def spans(starts: I64, counts: I64) -> I64:
    """start, start + 1, … for each start, one after the other: (sum of counts,)."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


@dataclass(frozen=True)
class BucketTokens:
    """A bucket's timelines, end to end.

    Attributes:
        subjects: ids (s,), ascending.
        starts, ends: (s,) each subject's first token, and the place behind its last; that its timeline ends is no
            token, as nobody knew it.
        ids, types, times: (t,); times in µs, NO_TIME where there is none; ascending in a subject.
        image_places: places of image tokens (i,), ascending.
        image_keys: their items.
    """

    subjects: I64
    starts: I64
    ends: I64
    ids: npt.NDArray[np.uint32]
    types: U8
    times: I64
    image_places: I64
    image_keys: pa.Array

    @classmethod
    def read(cls, path: Path, end_id: int | None) -> "BucketTokens":
        """Args:
        path: its content was compared with its checksum.
        end_id: the token of a timeline's end, if the profile has one.

        Raises:
            TimeloomError: the file is corrupt.
        """
        columns = ["subject_id", "token_id", "type", "time"]
        try:
            table = pq.read_table(path, columns=columns, use_threads=False, page_checksum_verification=True)
            types = table["type"].to_numpy()
            images = np.flatnonzero(types == int(TokenType.IMAGE))
            keys = pa.array([], pa.string())
            if len(images):
                named = pq.read_table(path, columns=["item_key"], use_threads=False)["item_key"]
                keys = named.take(pa.array(images)).combine_chunks().cast(pa.string())
        except (OSError, pa.ArrowException) as error:
            raise TimeloomError(f"cannot read {path.parent.name}/{path.name}", remedy=REPAIR) from error
        subject, ids = table["subject_id"].to_numpy(), table["token_id"].to_numpy()
        starts = np.flatnonzero(np.append(True, subject[1:] != subject[:-1])[: len(subject)])
        ends = np.append(starts[1:], len(subject))[: len(starts)]
        if end_id is not None and len(ends):
            ends = ends - (ids[ends - 1] == end_id)
        times = numbers_of(table["time"].cast(pa.int64()), NO_TIME)
        return cls(subject[starts], starts, ends, ids, types, times, images, keys)

    def places(self, subject_ids: I64) -> I64:
        """Of each subject (n,) its place, -1 without a timeline."""
        if not len(self.subjects):
            return np.full(len(subject_ids), -1, np.int64)
        place = np.minimum(np.searchsorted(self.subjects, subject_ids), len(self.subjects) - 1)
        found: I64 = np.where(self.subjects[place] == subject_ids, place, -1)
        return found

    def upto(self, place: I64, times: I64, side: str) -> I64:
        """Where each subject's (n,) first token stands that is not before a time (LEFT), or is after it (RIGHT)."""
        low, high = self.starts[place].copy(), self.ends[place].copy()
        while (open_rows := low < high).any():
            middle = (low + high) >> 1
            at = self.times[np.minimum(middle, len(self.times) - 1)]
            before = at < times if side == LEFT else at <= times
            low = np.where(open_rows & before, middle + 1, low)
            high = np.where(open_rows & ~before, middle, high)
        return low


@dataclass(frozen=True)
class LateFacts:
    """Tokens in front of timelines that tell a fact which was known later than the subject's first label.

    A timeline's front tells the first value that is ever known; before it was known, its place is empty, or holds the
    token of an unknown value.

    Attributes:
        places: of the tokens (f,), ascending.
        known: when each fact was first known, in µs (f,).
        instead: ids that stand there before (f,), 0 for none.
        instead_from: when those are right from, in µs (f,).
    """

    places: I64
    known: I64
    instead: I64
    instead_from: I64

    @classmethod
    def of(
        cls, tokens: BucketTokens, wanted: I64, events: Path | None, names: list[str], unknown: tuple[str, ...]
    ) -> "LateFacts":
        """Args:
        wanted: places of subjects, ascending, distinct.
        events: the bucket's events; their content was compared with its checksum.
        names: the vocabulary, by id.
        unknown: attributes that stand as unknown where no value does.
        """
        front = _front(tokens, wanted)
        none = np.empty(0, np.int64)
        if not len(front) or events is None:
            return cls(none, none, none, none)
        # What there is to say of a token is said once for each id, and spread.
        distinct, token = np.unique(tokens.ids[front].astype(np.int64), return_inverse=True)
        facts = [names[number] for number in distinct]
        attributes = [_attribute(name) for name in facts]
        nothing = [f"{attribute}/UNKNOWN" for attribute in attributes]
        asked = sorted({*facts, *nothing})
        owner = np.searchsorted(tokens.starts, front, side="right") - 1
        known = _first_known(events, tokens.subjects, asked)
        numbers = {name: number for number, name in enumerate(names)}
        of_fact = np.array([asked.index(name) for name in facts], np.int64)[token]
        of_unknown = np.array([asked.index(name) for name in nothing], np.int64)[token]
        always = np.array([attribute in unknown for attribute in attributes], np.bool_)[token]
        fact = known[owner, of_fact]
        instead = np.array([numbers.get(name, 0) for name in nothing], np.int64)[token]
        instead_from = np.where(always, NO_TIME, known[owner, of_unknown])
        # The age is that at the first event: who has none yet has no age.
        aged = np.array([attribute == AGE for attribute in attributes], np.bool_)[token]
        behind = np.minimum(tokens.upto(owner, np.full(len(owner), NO_TIME), RIGHT), len(tokens.ids) - 1)
        fact = np.where(aged & (fact == _NEVER), tokens.times[behind], fact)
        # What no event tells was known always, as what has no time.
        late = (fact != NO_TIME) & (fact != _NEVER)
        return cls(front[late], fact[late], instead[late], instead_from[late])

    def counts(self, starts: I64, ends: I64, times: I64) -> I64:
        """How many tokens of each range (n,) have nothing in their place at a time."""
        low, high = np.searchsorted(self.places, starts), np.searchsorted(self.places, ends)
        rows = np.repeat(np.arange(len(starts)), high - low)
        facts = spans(low, high - low)
        absent = (self.known[facts] > times[rows]) & ~self._stands(facts, times[rows])
        return np.bincount(rows, weights=absent, minlength=len(starts)).astype(np.int64)

    def as_known(self, places: I64, times: I64, ids: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Bools]:
        """Ids of tokens (m,) as they were known at times (m,), and which were there at all."""
        kept = np.ones(len(places), np.bool_)
        if not len(self.places):
            return ids, kept
        facts = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        late = (self.places[facts] == places) & (self.known[facts] > times)
        stands = late & self._stands(facts, times)
        kept[late & ~stands] = False
        return np.where(stands, self.instead[facts], ids), kept

    def _stands(self, facts: I64, times: I64) -> Bools:
        """Whether the token of an unknown value stood in the place of facts (m,) at times (m,)."""
        stands: Bools = (self.instead[facts] > 0) & (self.instead_from[facts] <= times)
        return stands


_NEVER = np.iinfo(np.int64).max


def _front(tokens: BucketTokens, wanted: I64) -> I64:
    """Places of the demographic tokens without a time of some subjects."""
    starts = tokens.starts[wanted]
    ends = tokens.upto(wanted, np.full(len(wanted), NO_TIME), RIGHT)
    places = spans(starts, ends - starts)
    found: I64 = places[tokens.types[places] == int(TokenType.DEMOGRAPHIC)]
    return found


def _attribute(token: str) -> str:
    """`DEMO/SEX` of `DEMO/SEX/F`, `MARITAL_STATUS` of `MARITAL_STATUS/SINGLE`."""
    parts = token.split("/", 2)
    return "/".join(parts[:2]) if parts[0] == "DEMO" and len(parts) > 1 else parts[0]


def _first_known(path: Path, subjects: I64, codes: list[str]) -> I64:
    """(s, c) when each code was first known of each subject: NO_TIME for always, the latest there is for never."""
    known = np.full(len(subjects) * len(codes), _NEVER)
    try:
        with pq.ParquetFile(path, read_dictionary=["code"], page_checksum_verification=True) as file:
            for groups in row_groups(file):
                columns = ["subject_id", "code", "time", "available_time"]
                table = file.read_row_groups(groups, columns=columns, use_threads=False)
                column = table["code"].unify_dictionaries().combine_chunks()
                asked = pc.index_in(column.dictionary.cast(pa.string()), value_set=pa.array(codes, pa.string()))
                code = np.asarray(asked.fill_null(-1))[np.asarray(column.indices)]
                owner = table["subject_id"].to_numpy()
                place = np.minimum(np.searchsorted(subjects, owner), len(subjects) - 1)
                which = np.flatnonzero((code >= 0) & (subjects[place] == owner))
                time, available = (
                    numbers_of(table[name].cast(pa.int64()), NO_TIME) for name in ("time", "available_time")
                )
                when = np.where(available == NO_TIME, time, available)
                np.minimum.at(known, (place * len(codes) + code)[which], when[which])
    except (OSError, pa.ArrowException) as error:
        raise TimeloomError(f"cannot read {path.parent.name}/{path.name}", remedy=REPAIR) from error
    return known.reshape(len(subjects), len(codes))


@dataclass(frozen=True)
class Windows:
    """The tokens of labels (n,) of one bucket, as ranges of its tokens; what stands there and was not known is left out
    when they are taken.

    Attributes:
        place: of each label's subject, -1 without a timeline.
        times: prediction times in µs.
        fronts: (n,) how many tokens of a subject's front are taken besides, from its first.
        starts, ends: the range.
        start_tokens: the place of a prompt's start token, -1 where there is none.
        room: how many tokens the range may have.
    """

    place: I64
    times: I64
    fronts: I64
    starts: I64
    ends: I64
    start_tokens: I64
    room: I64


def windows(
    tokens: BucketTokens,
    subject_ids: I64,
    times: I64,
    length: int,
    *,
    front: bool,
    late: LateFacts,
    prompt: PromptIds | None,
) -> Windows:
    """The last `length` tokens that each label's subject had at its prediction time.

    Args:
        front: keeps what stands in front of a timeline, in place of as many of the tokens before the last.
        prompt: ends them at a start; a label without one has no tokens.
    """
    place = tokens.places(subject_ids)
    has_tokens = place >= 0
    safe = np.where(has_tokens, place, 0)
    if not len(tokens.subjects):
        empty = np.zeros(len(place), np.int64)
        return Windows(place, times, empty, empty, empty, empty - 1, empty)
    ends = tokens.upto(safe, times, RIGHT)
    start_tokens = np.full(len(place), -1, np.int64)
    if prompt is not None:
        start_tokens, ends = _cut(tokens, tokens.upto(safe, times, LEFT), ends, prompt)
    ends, start_tokens = np.where(has_tokens, ends, tokens.starts[safe]), np.where(has_tokens, start_tokens, -1)
    begin = tokens.starts[safe]
    behind = tokens.upto(safe, np.full(len(safe), NO_TIME), RIGHT) if front else begin
    behind = np.minimum(behind, ends)
    absent = late.counts(begin, behind, times)
    # Of a front that fills all there is room for, the end is kept.
    whole = behind - begin - absent < length
    fronts = np.where(whole, behind - begin, 0)
    room = length - np.where(whole, fronts - absent, 0)
    hidden = late.counts(begin, ends, times)
    if prompt is not None:
        hidden = hidden + _images_at(tokens, safe, times, ends)
    return Windows(place, times, fronts, np.maximum(begin + fronts, ends - room - hidden), ends, start_tokens, room)


def _cut(tokens: BucketTokens, first: I64, last: I64, prompt: PromptIds) -> tuple[I64, I64]:
    """The start token (n,) among the tokens of a moment, and where the prompt ends; -1 and its first without one."""
    if not len(prompt.start):
        return np.full(len(first), -1, np.int64), last
    counts = last - first
    rows, places = np.repeat(np.arange(len(first)), counts), spans(first, counts)
    ids = tokens.ids[places].astype(np.int64)
    start = np.full(len(first), -1, np.int64)
    # The last of several: places ascend in a row.
    begun = np.isin(ids, prompt.start)
    start[rows[begun]] = places[begun]
    if isinstance(prompt.following, int):
        ends = np.minimum(start + 1 + prompt.following, last)
    else:
        ends = start + 1
        further = np.isin(ids, prompt.following) & (places > start[rows])
        np.maximum.at(ends, rows[further], places[further] + 1)
    begin = tokens.starts[np.maximum(np.searchsorted(tokens.starts, first, side="right") - 1, 0)]
    return start, np.where(start >= 0, ends, begin)


def _images_at(tokens: BucketTokens, place: I64, times: I64, ends: I64) -> I64:
    """How many images stand before each end at its own moment."""
    first = np.searchsorted(tokens.image_places, np.minimum(tokens.upto(place, times, LEFT), ends))
    return np.searchsorted(tokens.image_places, ends) - first


@dataclass(frozen=True)
class Taken:
    """Tokens of rows (n,), end to end.

    Attributes:
        counts: (n,) tokens of each row.
        ids, types, times: (t,).
        images: places of image tokens among them (i,), ascending; `image_keys` their items.
        start: the start token's place in its row (n,), -1 where there is none.
    """

    counts: I64
    ids: I64
    types: U8
    times: I64
    images: I64
    image_keys: list[str]
    start: I64


def take(tokens: BucketTokens, found: Windows, late: LateFacts, rows: slice, *, strict: bool) -> Taken:
    """The tokens of some labels, in order.

    Args:
        strict: no image of the prediction time itself.
    """
    place = np.maximum(found.place[rows], 0)
    begin = tokens.starts[place] if len(tokens.starts) else place
    fronts, starts, ends = found.fronts[rows], found.starts[rows], found.ends[rows]
    number = len(place)
    # Two ranges a row, its front and its last tokens.
    sizes = np.stack([fronts, ends - starts], axis=1).reshape(-1)
    places = spans(np.stack([begin, starts], axis=1).reshape(-1), sizes)
    row = np.repeat(np.repeat(np.arange(number), 2), sizes)
    of_front = np.repeat(np.tile([True, False], number), sizes)
    times = found.times[rows][row]
    ids, kept = late.as_known(places, times, tokens.ids[places].astype(np.int64))
    if strict:
        kept &= (tokens.types[places] != int(TokenType.IMAGE)) | (tokens.times[places] < times)
    # Of the last tokens, so many as there is room for.
    last = kept & ~of_front
    left = np.bincount(row, weights=last, minlength=number).astype(np.int64)
    before = np.cumsum(last) - np.repeat(np.cumsum(left) - left, np.bincount(row, minlength=number))
    kept &= of_front | (before > (left - found.room[rows])[row])
    places, row = places[kept], row[kept]
    counts = np.bincount(row, minlength=number).astype(np.int64)
    edges = np.cumsum(counts) - counts
    start = np.full(number, -1, np.int64)
    begun = np.flatnonzero(places == found.start_tokens[rows][row])
    start[row[begun]] = begun - edges[row[begun]]
    images = np.flatnonzero(tokens.types[places] == int(TokenType.IMAGE))
    keys = tokens.image_keys.take(pa.array(np.searchsorted(tokens.image_places, places[images]))).to_pylist()
    return Taken(counts, ids[kept], tokens.types[places], tokens.times[places], images, keys, start)
