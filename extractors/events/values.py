"""Values as laboratories write them: a number, a number behind a sign, a range, a number with its unit, or a text."""

import numpy as np
import polars as pl

from warehouse.sort_keys import encode

# How a number was read that is not the whole value; null for a plain number.
FLAGS = ("<", "<=", ">", ">=", "range", "unit")

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# Units of UCUM that laboratories print; a word that is none of them leaves the value a text.
_UNIT = (
    r"(?:%|°?[CF]|deg ?[CF]|(?:x ?)?10[*^]\d{1,2}(?:/[mu]?L)?"
    r"|(?:[kcdmunpfµμ]|mc|da)?(?:g|mol|L|l|Eq|eq|EQ|IU|iu|U|u|m|s|Hg|Pa|osm|Osm|cal|gm|G|M)(?:[23])?"
    r"|mmHg|cmH2O|sec|min|hrs?|h|days?|wks?|yrs?|bpm|ratio|cells|copies|units?|lbs?|[Ii]n(?:ch(?:es)?)?)"
)
_UNITS = rf"{_UNIT}(?:/(?:{_UNIT}|d|kg|hpf|HPF|lpf|LPF|1\.73 ?m2))*"
_SIGNED = rf"^(<=|>=|=<|=>|<|>|≤|≥)\s*({_NUMBER})\s*({_UNITS})?$"
_RANGE = rf"^({_NUMBER})\s*(?:-|–|to)\s*(\d+\.?\d*|\.\d+)\s*({_UNITS})?$"
_WITH_UNIT = rf"^({_NUMBER})\s*({_UNITS})$"
_SIGNS = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}


def parse_values(raw: pl.Series) -> pl.DataFrame:
    """Numbers of text values (n,).

    Gives columns `number` float32, the source's value rounded once, null for a text; `flag`, one of FLAGS, where the
    value is more than its number; `text`, the value itself where it is no plain number; `unit`, where it holds one.
    A range stands for its middle.
    """
    number = _float32(raw.cast(pl.Float64, strict=False))
    places = (raw.is_not_null() & number.is_null()).arg_true()
    if places.is_empty():
        nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(raw))
        flag = pl.Series([None], dtype=pl.Enum(FLAGS)).new_from_index(0, len(raw))
        return pl.DataFrame({"number": number, "flag": flag, "text": nothing, "unit": nothing})
    text, spelt = encode(raw.gather(places))
    text = text.str.strip_chars().replace("", None)
    # What is left may be only blanks around a number.
    plain = _float32(text.cast(pl.Float64, strict=False))
    read = pl.DataFrame({"text": text.set(plain.is_not_null(), None)}).select("text", *_read(pl.col("text")))
    parsed = _float32(read["number"])
    # What float32 cannot hold is a text like any other.
    read = read.with_columns(pl.when(pl.lit(parsed).is_not_null()).then(pl.col("flag", "unit")))
    read = read.with_columns(pl.col("flag").cast(pl.Enum(FLAGS)))
    numbers = plain.zip_with(plain.is_not_null(), parsed)
    of_row = np.full(len(raw), -1, np.int64)
    of_row[places.to_numpy()] = spelt
    rows = pl.Series(of_row).cast(pl.UInt32, strict=False)
    return pl.DataFrame(
        {
            "number": number.scatter(places, numbers.gather(pl.Series(spelt))),
            **{name: read[name].gather(rows) for name in ("flag", "text", "unit")},
        }
    )


def _read(text: pl.Expr) -> list[pl.Expr]:
    signed, spanned = text.str.extract(_SIGNED, 2), text.str.extract(_RANGE, 1)
    low, high = spanned.cast(pl.Float64, strict=False), text.str.extract(_RANGE, 2).cast(pl.Float64, strict=False)
    with_unit = text.str.extract(_WITH_UNIT, 1)
    return [
        pl.when(signed.is_not_null())
        .then(signed.cast(pl.Float64, strict=False))
        .when(low <= high)
        .then((low + high) / 2)
        .otherwise(with_unit.cast(pl.Float64, strict=False))
        .alias("number"),
        pl.when(signed.is_not_null())
        .then(text.str.extract(_SIGNED, 1).replace(_SIGNS))
        .when(low <= high)
        .then(pl.lit("range"))
        .when(with_unit.is_not_null())
        .then(pl.lit("unit"))
        .alias("flag"),
        pl.coalesce(
            pl.when(signed.is_not_null()).then(text.str.extract(_SIGNED, 3)),
            pl.when(low <= high).then(text.str.extract(_RANGE, 3)),
            pl.when(low.is_null() & signed.is_null()).then(text.str.extract(_WITH_UNIT, 2)),
        ).alias("unit"),
    ]


def _float32(number: pl.Series) -> pl.Series:
    single = number.cast(pl.Float32)
    # -0 sorts as equal to 0 and is not the same bytes; what float32 cannot hold is no number here.
    single = single.set(single == 0, 0.0)
    return single if single.is_finite().all() else single.set(~single.is_finite(), None)
