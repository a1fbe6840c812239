"""Distinct codes looked up once: the tokens, ids and breaks that a row's code leads to, as arrays to gather from."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc

from pipelines.profiles.codes import begins_with, groups_of
from pipelines.profiles.demographics import Facts, facts_of
from pipelines.profiles.events import TextPlaces
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.values import Breaks, value_tokens
from warehouse.arrays import I64, U8, U32, Bools
from warehouse.modalities import MODALITIES
from warehouse.tokens import IMAGE_TOKENS, RESERVED, UNK, TokenType


class Ids:
    """A vocabulary as a look-up of tokens.

    Args:
        vocabulary: columns token_id and token.
    """

    def __init__(self, vocabulary: pl.DataFrame) -> None:
        self._tokens = vocabulary["token"].to_arrow()
        self._ids = np.append(vocabulary["token_id"].to_numpy(), np.uint32(UNK))

    def of(self, tokens: pl.Series) -> U32:
        """Ids (n,); UNK for a token that is not known."""
        places = pc.index_in(tokens.cast(pl.String).to_arrow(), value_set=self._tokens)
        ids: U32 = self._ids[places.fill_null(-1).to_numpy()]
        return ids

    def known(self, tokens: pl.Series) -> pl.Series:
        """Which tokens (n,) the vocabulary has."""
        return pl.Series(self.of(tokens) != UNK)


@dataclass(frozen=True)
class Lexicon:
    """What the distinct codes (c,) of a part lead to.

    Attributes:
        codes: the codes themselves.
        reasons: why a code is left out (c,), null where it is not.
        wanted: which codes become tokens (c,).
        facts: what demographic codes tell.
        demographic: which codes are demographic facts (c,).
        only_numeric: which codes need a number (c,).
        first, count: each code's groups (c,); an image's code has the group of its modality.
        image: which codes are those of images with a token (c,).
        groups: one row a group: columns place (its code's), token (the last of the group), tokens, values; those of
            images stand at the end.
        start, length: each group's tokens among the flat ones (g,).
        types: each group's TokenType (g,), and `values` whether it tells its number (g,).
        tokens: flat tokens (t,).
    """

    codes: pl.Series
    reasons: pl.Series
    wanted: Bools
    facts: Facts
    demographic: Bools
    only_numeric: Bools
    image: Bools
    first: I64
    count: I64
    groups: pl.DataFrame
    start: I64
    length: I64
    types: U8
    values: Bools
    tokens: pl.Series

    def among(self, codes: pl.Series) -> "Lexicon | None":
        """What some of the codes lead to; None where others are among them.

        Args:
            codes: (d,) distinct, in the order that they have here.
        """
        stands = self.codes.is_in(codes.implode()).to_numpy()
        places = np.flatnonzero(stands)
        if len(places) != len(codes):
            return None
        of_group = self.groups["place"].to_numpy()
        chosen = np.flatnonzero(stands[of_group])
        place = (np.cumsum(stands) - 1).astype(np.uint32)[of_group[chosen]]
        length = self.length[chosen]
        flat = np.repeat(self.start[chosen] - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))
        return Lexicon(
            codes=codes,
            reasons=self.reasons.gather(places),
            wanted=self.wanted[places],
            facts=self.facts.take(places),
            demographic=self.demographic[places],
            only_numeric=self.only_numeric[places],
            image=self.image[places],
            groups=self.groups[chosen].with_columns(pl.Series("place", place)),
            start=np.cumsum(length) - length,
            length=length,
            types=self.types[chosen],
            values=self.values[chosen],
            tokens=self.tokens.gather(flat),
            **_places_of_groups(place, self.image[places]),
        )

    @property
    def several(self) -> bool:
        """Whether some code has several groups."""
        return bool((self.count > 1).any())


def make_lexicon(
    codes: pl.Series, profile: ProfileConfig, parents: pl.DataFrame | None, ids: Ids | None = None
) -> Lexicon:
    """Looks distinct codes up.

    Args:
        codes: (c,) distinct.
        parents: columns code and parent_codes.
        ids: the vocabulary, which says what is among the `top` of a rule; before it is fitted all are.
    """
    found = groups_of(codes, profile, parents)
    if ids is not None and found["top"].any():
        below = found["top"] & ~ids.known(found["tokens"].list.first()) & found["reason"].is_null()
        reason = pl.when(below).then(pl.lit("not_among_top")).otherwise("reason")
        found = found.with_columns(reason.alias("reason"))
    kept = found.filter(pl.col("reason").is_null())
    of_image = _images(codes)
    images = of_image.is_not_null().arg_true()
    groups = pl.concat(
        [
            kept.select("place", "tokens", "values"),
            pl.DataFrame({"place": images, "token": of_image.gather(images)}).select(
                "place", pl.concat_list("token").alias("tokens"), pl.lit(False).alias("values")
            ),
        ]
    ).with_columns(pl.col("tokens").list.last().alias("token"))
    demographic = codes.to_frame("code").select(begins_with("code", profile.demographics)).to_series().to_numpy()
    place, length = groups["place"].to_numpy(), groups["tokens"].list.len().to_numpy().astype(np.int64)
    image = of_image.is_not_null().to_numpy()
    places = _places_of_groups(place, image)
    first, count = places["first"], places["count"]
    types = np.where(demographic[place], TokenType.DEMOGRAPHIC, TokenType.STRUCTURED).astype(np.uint8)
    types[len(kept) :] = TokenType.IMAGE
    first_group = pl.Series(np.where(demographic & (count > 0), first, -1)).replace(-1, None).cast(pl.UInt32)
    heads = groups["token"].gather(first_group) if len(groups) else pl.Series([None] * len(codes), dtype=pl.String)
    left_out = found.filter(pl.col("reason").is_not_null())
    reasons = pl.Series("reason", [None], dtype=pl.String).new_from_index(0, len(codes))
    reasons = reasons.scatter(left_out["place"], left_out["reason"]).set(pl.Series(count > 0), None)
    whole = np.ones(len(codes), np.bool_)
    whole[found.filter(~pl.col("only_numeric"))["place"].to_numpy()] = False
    return Lexicon(
        codes=codes,
        reasons=reasons,
        wanted=reasons.is_null().to_numpy(),
        facts=facts_of(heads, profile),
        demographic=demographic,
        only_numeric=whole,
        image=image,
        **places,
        groups=groups,
        start=np.cumsum(length) - length,
        length=length,
        types=types,
        values=groups["values"].to_numpy(),
        tokens=groups["tokens"].explode(),
    )


class _PlacesOfGroups(TypedDict):
    first: I64
    count: I64


def _places_of_groups(place: npt.NDArray[np.uint32], image: Bools) -> _PlacesOfGroups:
    """`first` and `count` of a Lexicon.

    Args:
        place: of each group (g,) its code's; those of images, one a code, stand at the end.
        image: which codes (c,) are those of images.
    """
    codes = place[: len(place) - int(image.sum())]
    first = np.searchsorted(codes, np.arange(len(image)))
    first[image] = np.arange(len(codes), len(place))
    return _PlacesOfGroups(
        first=np.minimum(first, max(len(place) - 1, 0)), count=np.bincount(codes, minlength=len(image))
    )


def _images(codes: pl.Series) -> pl.Series:
    """Of each code (c,) the token of the images that it is for, null where it is for none."""
    names = {MODALITIES[name].event.upper(): RESERVED[token][0] for name, token in IMAGE_TOKENS.items()}
    return codes.str.to_uppercase().replace_strict(names, default=None, return_dtype=pl.String)


class ValueLookup:
    """Which quantile, and so which token, a group's number in a unit is told by.

    Args:
        quantiles: columns of QUANTILES.
    """

    def __init__(self, lexicon: Lexicon, profile: ProfileConfig, quantiles: pl.DataFrame, ids: Ids) -> None:
        self._breaks = Breaks(quantiles)
        valued = lexicon.groups.with_row_index("group").filter("values").select("group", "token")
        rows = quantiles.select("code", "unit").with_row_index("row")
        self._pairs = (
            valued.with_row_index("place").select("place", pl.col("token").alias("code")).join(rows, on="code")
        )
        self._units: pl.Series | None = None
        self._places = np.full(len(lexicon.groups), -1, np.int64)
        self._places[valued["group"].to_numpy()] = np.arange(len(valued))
        self._fused = profile.values == "fused"
        names = value_tokens(profile.quantiles)
        if self._fused:
            suffixes = pl.DataFrame({"suffix": [f"//{name.rpartition('/')[2]}" for name in names]})
            named = valued.select("token").join(suffixes, how="cross").select(pl.col("token") + pl.col("suffix"))
            self._ids = ids.of(named.to_series()).reshape(len(valued), len(names))
        else:
            self._ids = ids.of(pl.Series(names))[None, :]

    def rows_of(self, groups: I64, units: TextPlaces) -> I64:
        """The row of `quantiles` for each group and unit (m,), -1 where there is none."""
        if units.distinct is not self._units:
            self._units = units.distinct
            # The last unit is none at all, where a missing place (-1) leads.
            every = pl.concat([units.distinct, pl.Series([None], dtype=pl.String)]).rename("unit").to_frame()
            cells = self._pairs.join(every.with_row_index("column"), on="unit", nulls_equal=True)
            self._rows = np.full((int(self._places.max(initial=0)) + 1, len(every)), -1, np.int64)
            self._rows[cells["place"].to_numpy(), cells["column"].to_numpy()] = cells["row"].to_numpy()
        rows: I64 = self._rows[self._places[groups], units.place]
        return rows

    def tokens(self, groups: I64, rows: I64, values: npt.NDArray[np.float32]) -> U32:
        """The ids (m,) of values whose quantiles stand in `rows`, none of which is -1."""
        ids: U32 = self._ids[self._places[groups] if self._fused else 0, self._breaks.bins(values, rows)]
        return ids
