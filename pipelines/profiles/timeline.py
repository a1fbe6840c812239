"""One bucket's events to its subjects' timelines: rows are chosen, put in order and written out as ids, by arrays alone.

The order of tokens: `[BOS]`, demographics without a time, then the events, each behind its interval token; images after
what is recorded at their time (MEHRT §2.1; equal times are hidden from it), values behind their codes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.profiles.demographics import BIRTH, Demographics, attribute_of, demographics_of
from pipelines.profiles.events import I64, NO_TIME, Mask, Part, order_of
from pipelines.profiles.intervals import between, interval_tokens
from pipelines.profiles.lexicon import U8, U32, Ids, Lexicon, ValueLookup
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import compared
from warehouse.errors import TimeloomError
from warehouse.tokens import BOS, TIMELINE_END, UNK, TokenType


@dataclass(frozen=True)
class Chosen:
    """The rows of a part that become tokens.

    Attributes:
        rows: places of the events that stand in the timelines (m,), ascending.
        left_out: reason, and the rows that it left out.
    """

    part: Part
    lexicon: Lexicon
    rows: I64
    demographics: Demographics
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
    wanted = lexicon.reasons.is_null().to_numpy()[code]
    pictures = _images(part, lexicon, image, usable, left_out)
    birth = part.code.is_text(BIRTH)
    _note(left_out, "becomes_age", np.flatnonzero(birth))
    fact = lexicon.demographic[code]
    other = ~(image | birth)
    for reason in lexicon.reasons.drop_nulls().unique().sort():
        of_reason = (lexicon.reasons == reason).fill_null(False).to_numpy()
        _note(left_out, reason, np.flatnonzero(of_reason[code] & other))
    facts = np.flatnonzero(fact & wanted & other)
    if profile.static == "none":
        _note(left_out, "demographic_not_in_profile", facts)
        facts = facts[:0]
    own = pl.Series("token", [None], dtype=pl.String).new_from_index(0, len(lexicon.codes))
    heads = lexicon.groups["token"].gather(lexicon.first[lexicon.count > 0])
    own = own.scatter(np.flatnonzero(lexicon.count > 0), heads) if len(heads) else own
    if profile.static == "none":
        told = Demographics(pl.DataFrame(schema={"subject": pl.Int32, "token": pl.String}), facts, facts)
    else:
        told = demographics_of(part, facts, own, profile, profile.demographics)
    _note(left_out, "repeated_demographic", told.repeated)
    stays = wanted & other & ~fact
    if part.value is not None and lexicon.only_numeric.any():
        empty = stays & lexicon.only_numeric[code] & np.isnan(part.value)
        _note(left_out, "no_number", np.flatnonzero(empty))
        stays &= ~empty
    stays[pictures] = True
    stays[told.timed] = True
    return Chosen(part, lexicon, np.flatnonzero(stays), told, left_out)


def _note(left_out: list[tuple[str, I64]], reason: str, rows: I64) -> None:
    if len(rows):
        left_out.append((reason, rows))


def _images(part: Part, lexicon: Lexicon, image: Mask, usable: pl.Series, left_out: list[tuple[str, I64]]) -> I64:
    rows = np.flatnonzero(image)
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


def _outside(length: int, places: I64) -> Mask:
    mask = np.ones(length, np.bool_)
    mask[places] = False
    return mask


def encode(chosen: Chosen, profile: ProfileConfig, ids: Ids, quantiles: pl.DataFrame) -> Encoded:
    """Writes a part's timelines out.

    Args:
        quantiles: columns of QUANTILES; looked at where the profile tells values.
    """
    part, lexicon = chosen.part, chosen.lexicon
    ordered, at = order_of(part, chosen.rows, profile.order, images_first=profile.image_position == "first")
    places, groups = chosen.groups(ordered)
    rows, at = (ordered, at) if len(places) == len(ordered) else (ordered[places], at[places])
    subject = part.subject[rows]
    number = lexicon.length[groups]
    value_ids, valued, without = _value_ids(chosen, rows, groups, profile, quantiles, ids)
    pair = profile.values == "pair"
    gap_place, gap_times = _gaps(subject, at, profile)
    # A subject's tokens in three: what stands in front, its rows, its end.
    subjects = np.arange(len(part.subjects))
    prefix = chosen.demographics.prefix
    front = 1 + np.bincount(prefix["subject"].to_numpy(), minlength=len(subjects))
    lengths = number + gap_times + (valued if pair else 0)
    of_rows = np.bincount(subject, lengths, len(subjects)).astype(np.int64) if len(rows) else np.zeros_like(subjects)
    whole = front + of_rows + int(profile.timeline_end)
    begin = np.cumsum(whole) - whole
    total = int(whole.sum())
    start = (
        np.cumsum(lengths)
        - lengths
        + (np.cumsum(front + int(profile.timeline_end)) - int(profile.timeline_end))[subject]
    )

    out = np.empty(total, np.uint32)
    kinds = np.empty(total, np.uint8)
    flat = ids.of(lexicon.tokens)
    behind = start + gap_times
    for place in range(int(lexicon.length.max(initial=0))):
        here = np.flatnonzero(number > place) if place or (lexicon.length != 1).any() else slice(None)
        out[behind[here] + place] = flat[lexicon.start[groups[here]] + place]
        kinds[behind[here] + place] = lexicon.types[groups[here]]
    if valued.any():
        told = np.flatnonzero(valued)
        spot = behind[told] + number[told] - (0 if pair else 1)
        out[spot] = value_ids
        kinds[spot] = TokenType.STRUCTURED
    if profile.intervals != "none":
        marked = np.flatnonzero(gap_times)
        repeated = np.repeat(marked, gap_times[marked])
        steps = np.arange(len(repeated)) - np.repeat(
            np.cumsum(gap_times[marked]) - gap_times[marked], gap_times[marked]
        )
        out[start[repeated] + steps] = ids.of(pl.Series(interval_tokens(profile.intervals)))[gap_place[repeated]]
        kinds[start[repeated] + steps] = TokenType.INTERVAL
    out[begin] = BOS
    kinds[begin] = TokenType.SPECIAL
    of_prefix = prefix["subject"].to_numpy()
    spot = begin[of_prefix] + 1 + np.arange(len(prefix)) - (np.cumsum(front - 1) - (front - 1))[of_prefix]
    out[spot] = ids.of(prefix["token"])
    kinds[spot] = TokenType.DEMOGRAPHIC
    times = _times(subject, at, lengths, front, len(subjects), end=profile.timeline_end)
    if profile.timeline_end:
        out[begin + whole - 1] = ids.of(pl.Series([TIMELINE_END]))
        kinds[begin + whole - 1] = TokenType.STRUCTURED
    kinds[out == UNK] = TokenType.SPECIAL
    pictured = np.flatnonzero(lexicon.image[part.code.place[rows]] & (lexicon.types[groups] == TokenType.IMAGE))
    return Encoded(
        subject=part.subjects,
        lengths=whole,
        ids=out,
        types=kinds,
        times=times,
        image_places=behind[pictured],
        image_keys=part.item_key.distinct.gather(part.item_key.place[rows[pictured]]),
        without_breaks=without,
    )


def _times(subject: np.ndarray, at: I64, lengths: I64, front: I64, subjects: int, *, end: bool) -> I64:
    """Times (t,): none in front; a subject's end has the time of its last event."""
    # One more row a subject stands for its front, and one for its end.
    extra = 2 if end else 1
    own = np.arange(len(at)) + extra * subject + 1
    size = len(at) + extra * subjects
    value, repeats = np.full(size, NO_TIME), np.empty(size, np.int64)
    value[own], repeats[own] = at, lengths
    fronts = np.searchsorted(subject, np.arange(subjects)) + extra * np.arange(subjects)
    repeats[fronts] = front
    if end:
        ends = np.searchsorted(subject, np.arange(subjects), side="right") + extra * np.arange(subjects) + 1
        value[ends] = value[ends - 1]
        repeats[ends] = 1
    return np.repeat(value, repeats)


def _gaps(subject: np.ndarray, at: I64, profile: ProfileConfig) -> tuple[I64, I64]:
    """Of each row, which interval token stands before it and how many times (m,)."""
    nothing = np.zeros(len(at), np.int64)
    if profile.intervals == "none" or not len(at):
        return nothing, nothing
    apart = np.zeros(len(at), np.int64)
    apart[1:] = np.where((subject[1:] == subject[:-1]) & (at[:-1] != NO_TIME), at[1:] - at[:-1], 0)
    return between(apart, profile.intervals)


def _value_ids(
    chosen: Chosen, rows: I64, groups: I64, profile: ProfileConfig, quantiles: pl.DataFrame, ids: Ids
) -> tuple[U32, Mask, int]:
    """Ids of the values that are told (v,), the rows that tell one (m,), and how many had no breaks."""
    part = chosen.part
    told = np.zeros(len(rows), np.bool_)
    if profile.values == "codes_only" or part.value is None or part.unit is None:
        return np.empty(0, np.uint32), told, 0
    holding = np.flatnonzero(chosen.lexicon.groups["values"].to_numpy()[groups] & ~np.isnan(part.value[rows]))
    lookup = ValueLookup(part, chosen.lexicon, profile, quantiles, ids)
    found = lookup.rows_of(groups[holding], part.unit.place[rows[holding]])
    known = found >= 0
    holding = holding[known]
    told[holding] = True
    numbers = compared(part, rows[holding])
    return lookup.tokens(groups[holding], found[known], numbers), told, int((~known).sum())
