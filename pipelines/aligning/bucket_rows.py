"""A bucket's rows in their narrow form: numbers for texts, until they are written."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from extractors.events.converted import AVAILABILITY
from extractors.events.times import PRECISIONS
from extractors.events.units import CONTRADICTS
from extractors.events.values import FLAGS
from pipelines.aligning.columns import NONE_8, NONE_32, masked, occurring, renumbered
from warehouse.arrays import F32, I64, NO_TIME, U8, U16, U32, U64, Bools
from warehouse.order import KIND_RANK, PRECISION_RANK, total_order
from warehouse.schemas import EVENTS
from warehouse.sort_keys import float_keys

BIRTH, DEATH = "MEDS_BIRTH", "MEDS_DEATH"
# Numbered as they rank.
KINDS = sorted(KIND_RANK, key=KIND_RANK.__getitem__)


def _table(ranked: Sequence[int]) -> U8:
    """Ranks by number, that of none being 0."""
    table = np.zeros(NONE_8 + 1, np.uint8)
    table[: len(ranked)] = ranked
    return table


_PRECISION_RANKS = _table([PRECISION_RANK[name] for name in PRECISIONS])
_PRECISION_TEXTS, _AVAILABILITY_TEXTS, _FLAG_TEXTS = (
    _table([1 + sorted(names).index(name) for name in names]) for names in (PRECISIONS, AVAILABILITY, FLAGS)
)
_FLAG_TEXTS[CONTRADICTS : CONTRADICTS + len(FLAGS)] = _FLAG_TEXTS[: len(FLAGS)]


@dataclass(frozen=True)
class BucketTexts:
    """What a bucket's numbers stand for; `codes`, `units` and `sources` are sorted."""

    codes: pa.Array
    units: pa.Array
    sources: list[str]
    items: pa.Array
    values: pa.Array

    def number_of(self, code: str) -> int:
        """A code's number, NONE_32 for a code that no row has."""
        number: int = pc.index(self.codes, pa.scalar(code, self.codes.type)).as_py()
        return number if number >= 0 else NONE_32


@dataclass(frozen=True)
class BucketRows:
    """Rows, each column (n,).

    Attributes:
        time, available: microseconds, NO_TIME for none.
        code, unit, source, item, text: numbers in Texts; NONE_32 for none, as what is no image has no item.
        precision, kind, availability, flag: numbers in PRECISIONS, KINDS, AVAILABILITY and FLAGS, NONE_8 for none; that
            of a flag is CONTRADICTS higher where the unit in the value is not the row's.
        number, visit: anything where `has_number` and `has_visit` say that there is none.
        rule, row_hash: which raw row the event is of, and which of the table's rules made it; 0 for images.
    """

    subject: I64
    time: I64
    code: U32
    number: F32
    has_number: Bools
    text: U32
    available: I64
    precision: U8
    kind: U8
    unit: U32
    source: U16
    visit: I64
    has_visit: Bools
    item: U32
    availability: U8
    flag: U8
    rule: U16
    row_hash: U64

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def contradicts(self) -> Bools:
        """Which values (n,) hold another unit than their row's."""
        contradicts: Bools = (self.flag >= CONTRADICTS) & (self.flag != NONE_8)
        return contradicts

    def take(self, places: I64) -> "BucketRows":
        """The rows at these places, in their order."""
        return BucketRows(**{field.name: getattr(self, field.name).take(places) for field in fields(self)})

    def part(self, begin: int, end: int) -> "BucketRows":
        """The rows from one place to another, which are not copied."""
        return BucketRows(**{field.name: getattr(self, field.name)[begin:end] for field in fields(self)})

    def order(self, texts: BucketTexts, places: I64 | None) -> tuple[I64, Bools]:
        """Some rows' numbers, or all, in the total order of their events (m,), and which equal the one before (m,)."""
        selected = slice(None) if places is None else places
        order, again = total_order(
            self.subject[selected],
            self.time[selected],
            (
                _PRECISION_RANKS.take(self.precision[selected]),
                self.kind[selected],
                self.code[selected],
                self.source[selected],
            ),
            lambda name, rows: self._ranks(name, rows if places is None else places[rows], texts),
        )
        return order if places is None else places[order], again

    def _ranks(self, name: str, rows: I64, texts: BucketTexts) -> npt.NDArray[Any] | None:
        """A column's numbers for some rows, in the order of its texts or values."""
        match name:
            case "numeric_value":
                return np.where(self.has_number[rows], float_keys(self.number[rows]), NO_TIME)
            case "visit_id":
                return np.where(self.has_visit[rows], self.visit[rows], NO_TIME)
            case "text_value":
                return _text_ranks(self.text[rows], texts.values)
            case "item_key":
                return _text_ranks(self.item[rows], texts.items)
            case "unit":
                # The number of none is the highest there is.
                return self.unit[rows] + np.uint32(1)
            case "time_precision":
                return _PRECISION_TEXTS.take(self.precision[rows])
            case "availability":
                return _AVAILABILITY_TEXTS.take(self.availability[rows])
            case "value_flag":
                return _FLAG_TEXTS.take(self.flag[rows])
            case "available_time":
                return self.available[rows]
            case "row_hash":
                return self.row_hash[rows]
            case "rule":
                return self.rule[rows]
        return None

    def table(self, texts: BucketTexts, conflict: U8, conflicts: tuple[str, ...]) -> pa.Table:
        """Columns of EVENTS, texts as dictionaries.

        Args:
            conflict: (n,) numbers in `conflicts`, NONE_8 for none.
        """
        columns = {
            "subject_id": pa.array(self.subject),
            "time": _times(self.time),
            "code": _chosen(self.code, texts.codes),
            "numeric_value": masked(self.number, self.has_number),
            "text_value": _chosen(self.text, texts.values),
            "available_time": _times(self.available),
            "time_precision": _named(self.precision, PRECISIONS),
            "kind": _named(self.kind, KINDS),
            "unit": _chosen(self.unit, texts.units),
            "source": _chosen(self.source, pa.array(texts.sources, pa.string())),
            "visit_id": masked(self.visit, self.has_visit),
            "item_key": _chosen(self.item, texts.items),
            "availability": _named(self.availability, AVAILABILITY),
            "value_flag": _named(np.where(self.contradicts, self.flag - CONTRADICTS, self.flag), FLAGS),
            "conflict": _named(conflict, conflicts),
        }
        return pa.table([columns[name] for name in EVENTS.names], names=EVENTS.names)


def groups(*keys: npt.NDArray[Any]) -> tuple[I64, I64]:
    """Rows brought together by keys (n,), the first the most significant: their numbers (n,), those of equal keys in
    the order that they have, and where each group starts (groups,)."""
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for key in keys:
        sorted_key = key[order]
        new[1:] |= sorted_key[1:] != sorted_key[:-1]
    return order, np.flatnonzero(new)


def _times(times: I64) -> pa.Array:
    return masked(times.view("datetime64[us]"), times != NO_TIME)


def _named(numbers: U8, names: Sequence[str]) -> pa.Array:
    named = masked(numbers, numbers != NONE_8)
    return pa.DictionaryArray.from_arrays(named, pa.array(names, pa.string()), safe=False)


def _chosen(numbers: npt.NDArray[Any], values: pa.Array) -> pa.Array:
    """As `_named`, with the texts alone that stand there, in the order of the rows: they hang on no row beside them."""
    encoded = masked(numbers, numbers != np.iinfo(numbers.dtype).max).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices, values.take(encoded.dictionary), safe=False)


def _text_ranks(numbers: U32, values: pa.Array) -> U32:
    """Numbers in the order of the texts that some numbers stand for, that of none lowest."""
    used = occurring(numbers, len(values))
    ranks = np.argsort(pc.array_sort_indices(values.take(pa.array(used))).to_numpy())
    # The number of none is the highest there is.
    return renumbered(numbers, len(values), used, ranks) + np.uint32(1)
