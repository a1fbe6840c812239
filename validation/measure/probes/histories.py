"""Histories of labels, made as readers make them and held against the events, token by token."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from validation.measure.probes.known import Asked, Known, in_order
from validation.measure.reading import existing
from warehouse.arrays import I64, NO_TIME, Bools
from warehouse.layout import ReleaseLayout
from warehouse.readers.tasks.windows import AGE, RIGHT, BucketTokens, LateFacts, Windows, spans, windows
from warehouse.tokens import TIMELINE_END, TokenType


@dataclass(frozen=True)
class Makers:
    """Which codes the tokens of a profile can come from, as far as their names tell.

    Attributes:
        names: the vocabulary, by id.
        base: of each id the number of what its token is a part of or has a value of, -1 where no code begins so.
        bases: how many of these there are.
        maker, made: code and base (m,), by code: an event of the code may make a token of that base.
        code: of each id the place of the code that has its name, -1 for none.
        aged, stated: whether each id's token is an age, and whether it says anything but that a value is unknown.
        end: the token of a timeline's end.
        unknown: attributes that stand as unknown where no value does.
    """

    names: list[str]
    base: I64
    bases: int
    maker: I64
    made: I64
    code: I64
    aged: Bools
    stated: Bools
    end: int | None
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, vocabulary: pl.DataFrame, described: pl.DataFrame, unknown: tuple[str, ...]) -> "Makers":
        """Args:
        vocabulary: VOCABULARY.
        described: each code of the release once, in order, with its parents.
        """
        vocabulary = vocabulary.sort("token_id")
        structured = TokenType.STRUCTURED.name.lower()
        tokens = vocabulary.filter(pl.col("type") == structured).select(
            "token_id", pl.col("token").str.replace(r"//Q\d+$", "").alias("base")
        )
        place = pl.int_range(pl.len(), dtype=pl.Int64).alias("code")
        numbered = described.select(place, pl.col("code").alias("name"), "parent_codes")
        through = numbered.select("code", pl.col("parent_codes").alias("text")).explode("text").drop_nulls()
        texts = pl.concat([numbered.select("code", pl.col("name").alias("text")), through]).unique()
        bases = tokens.select("base").unique().sort("base").with_row_index("number")
        found = [pl.DataFrame(schema={"code": pl.Int64, "base": pl.Int64})]
        for length in bases["base"].str.len_chars().unique():
            cut = texts.filter(pl.col("text").str.len_chars() >= length).with_columns(
                pl.col("text").str.slice(0, length).alias("base")
            )
            found.append(cut.join(bases, on="base").select("code", pl.col("number").cast(pl.Int64).alias("base")))
        makers = pl.concat(found).sort("code", "base")
        base = np.full(len(vocabulary), -1, np.int64)
        made = tokens.join(bases, on="base").filter(pl.col("number").is_in(makers["base"].unique().implode()))
        base[made["token_id"].to_numpy()] = made["number"].to_numpy()
        token = pl.col("token")
        code = vocabulary.join(numbered, left_on="token", right_on="name", how="left", maintain_order="left")["code"]
        names = vocabulary["token"].to_list()
        return cls(
            names=names,
            base=base,
            bases=len(bases),
            maker=makers["code"].to_numpy(),
            made=makers["base"].to_numpy(),
            code=code.fill_null(-1).to_numpy(),
            aged=vocabulary.select(token.str.starts_with(f"{AGE}/")).to_series().to_numpy(),
            stated=vocabulary.select(~token.str.ends_with("/UNKNOWN")).to_series().to_numpy(),
            end=names.index(TIMELINE_END) if TIMELINE_END in names else None,
            unknown=unknown,
        )

    def of_events(self, code: I64, bases: I64) -> tuple[I64, I64]:
        """Events (m,) by their place, ascending, and bases (m,) of tokens that each may make.

        Args:
            code: of each event (e,), -1 for none.
            bases: those that are asked for, in any order.
        """
        asked = np.zeros(self.bases, np.bool_)
        asked[bases] = True
        kept = asked[self.made]
        maker, made = self.maker[kept], self.made[kept]
        # The last place is that of an event without a code.
        number = np.bincount(maker, minlength=int(code.max(initial=-1)) + 2)
        first, counts = (np.cumsum(number) - number)[code], number[code]
        return np.repeat(np.arange(len(code)), counts), made[spans(first, counts)]


def histories_ahead(tree: ReleaseLayout, bucket: int, name: str, asked: Asked, known: Known, makers: Makers) -> Bools:
    """(n,) which labels have a history of something that was not available.

    A history is held to its events by counts, so the longest one stands for every shorter one.

    Raises:
        TimeloomError: a file is damaged.
    """
    ahead = np.zeros(len(asked.at), np.bool_)
    for path in existing([tree.timeline(name, bucket)]):
        tokens = BucketTokens.read(path, makers.end)
        place = tokens.places(asked.subject)
        wanted = np.unique(place[place >= 0])
        events = next(iter(existing([tree.events(bucket)])), None)
        late = LateFacts.of(tokens, wanted, events, makers.names, makers.unknown)
        plan = windows(tokens, asked.subject, asked.at, len(tokens.ids) + 1, front=False, late=late, prompt=None)
        shown = np.flatnonzero((place >= 0) & (plan.ends > plan.starts))
        since = _so_far(tokens, wanted, plan, shown, known, makers)
        ahead[shown] = since[plan.ends[shown] - 1] >= known.by(asked.at[shown])
        ahead[_told_early(tokens, asked, place, late, known, makers)] = True
    return ahead


def _so_far(tokens: BucketTokens, wanted: I64, plan: Windows, shown: I64, known: Known, makers: Makers) -> I64:
    """(t,) since when each token of some subjects, and all before it of its subject, were known.

    Tokens behind those that any label is shown are left out, and those without a time.

    Args:
        wanted: the places of the subjects among those that have a timeline.
        shown: the labels that are shown anything.
    """
    last = tokens.starts.copy()
    np.maximum.at(last, plan.place[shown], plan.ends[shown])
    places = spans(tokens.starts[wanted], last[wanted] - tokens.starts[wanted])
    places = places[tokens.times[places] != NO_TIME]
    # Of the subject among those that have a label.
    owner = np.searchsorted(known.subjects, tokens.subjects)[np.searchsorted(tokens.starts, places, side="right") - 1]
    since = _since(tokens, places, owner, known, makers)
    # Subjects ascend, so the largest of a subject is not below any of those before it.
    above = owner * (known.never + 1)
    so_far = np.zeros(len(tokens.ids), np.int64)
    so_far[places] = np.maximum.accumulate(since + above) - above
    return so_far


def _since(tokens: BucketTokens, places: I64, owner: I64, known: Known, makers: Makers) -> I64:
    """(m,) since when what each token tells was known, as a place among the moments.

    The n-th token of a base is known with the n-th event that may make one. Of a token that no code's name begins with,
    as of a value or an interval, it is known that something of the subject became known at its time.

    Args:
        owner: places of the tokens' subjects.
    """
    base = makers.base[tokens.ids[places].astype(np.int64)]
    made, other = np.flatnonzero(base >= 0), np.flatnonzero(base < 0)
    since = np.empty(len(places), np.int64)
    since[made] = _of_events(owner[made], base[made], known, makers)
    since[other] = known.at(owner[other], tokens.times[places[other]])
    images = np.flatnonzero(tokens.types[places] == int(TokenType.IMAGE))
    if len(images):
        keys = tokens.image_keys.take(np.searchsorted(tokens.image_places, places[images]))
        named = pl.DataFrame({"item_key": pl.Series(pl.from_arrow(keys), dtype=pl.String)}).with_row_index("row")
        seen = named.drop_nulls().join(known.items, on="item_key", how="left", maintain_order="left")
        since[images[seen["row"].to_numpy()]] = seen["known"].fill_null(known.never).to_numpy()
    return since


def _of_events(owner: I64, base: I64, known: Known, makers: Makers) -> I64:
    """(m,) when the event became known that is, of those that may make a token of its base, what the token is of the
    subject's tokens of that base: the n-th."""
    event, made = makers.of_events(known.code, base)
    of_event, of_token = known.owner[event] * makers.bases + made, owner * makers.bases + base
    # Both stand by subject; within a key events stay in the order in which they became known, tokens in theirs.
    (keys, by_key), (tokens, order) = in_order(of_event), in_order(of_token)
    starts = np.flatnonzero(np.append([True], tokens[1:] != tokens[:-1])[: len(tokens)])
    counts = np.diff(np.append(starts, len(tokens)))
    first, behind = (np.searchsorted(keys, tokens[starts], side=side) for side in ("left", "right"))
    nth = np.arange(len(tokens)) + np.repeat(first - starts, counts)
    found = nth < np.repeat(behind, counts)
    since = np.full(len(tokens), known.never)
    since[order[found]] = known.known[event[by_key[nth[found]]]]
    return since


def _told_early(tokens: BucketTokens, asked: Asked, place: I64, late: LateFacts, known: Known, makers: Makers) -> I64:
    """The labels in front of whose history a fact stands that was not known yet; those that no event ever tells left
    out, as those that are told to be unknown."""
    rows = np.flatnonzero(place >= 0)
    starts = tokens.starts[place[rows]]
    counts = tokens.upto(place[rows], np.full(len(rows), NO_TIME), RIGHT) - starts
    places, row = spans(starts, counts), np.repeat(rows, counts)
    ids, kept = late.as_known(places, asked.at[row], tokens.ids[places].astype(np.int64))
    kept &= (tokens.types[places] == int(TokenType.DEMOGRAPHIC)) & makers.stated[ids]
    ids, row = ids[kept], row[kept]
    owner = np.searchsorted(known.subjects, asked.subject[row])
    codes = np.unique(makers.code[ids])
    codes = codes[codes >= 0]
    first = np.append(known.first(codes), np.full((len(known.subjects), 1), known.never), axis=1)
    column = np.where(makers.code[ids] >= 0, np.searchsorted(codes, makers.code[ids]), len(codes))
    since = np.where(makers.aged[ids], known.first_timed[owner], first[owner, column])
    early: I64 = row[(since != known.never) & (since >= known.by(asked.at[row]))]
    return early
