"""The MIMIC-IV demo's raw tables, times and values as their documentation says, with the standard library alone.

tests/support/raw/mimic_reference.py reads them. A NULL (an empty field, or `___`) is None.
"""

import csv
import gzip
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

Row = dict[str, str | None]

# A unit as releases write it, and its other spellings in the tables.
SPELLINGS = {
    "mL": "ml ML mL.", "mg": "MG", "g": "grams gram gm", "mEq": "mEq. meq", "kcal": "Kcal", "units": "UNIT Units unit",
    "TAB": "tab Tab", "VIAL": "Vial", "NEB": "Neb", "mmHg": "mm_Hg", "/hpf": "#/hpf", "/lpf": "#/lpf", "/uL": "#/uL",
    "mL/h": "mL/hour mL/hr ml/hr", "mcg/h": "mcg/hour mcg/hr", "mg/h": "mg/hour mg/hr",
    "units/h": "units/hour units/hr UNIT/HR", "mcg/kg/h": "mcg/kg/hour mcg/kg/hr", "mg/kg/h": "mg/kg/hour mg/kg/hr",
    "mcg/kg/min": "MCG/KG/MIN", "mEq/h": "mEq./hour mEq/hour", "g/h": "grams/hour gm/hr", "g/min": "grams/min",
    "log10 copies/mL": "log10_cop/mL",
}  # fmt: skip
SPELT = {spelling.replace("_", " "): unit for unit, others in SPELLINGS.items() for spelling in others.split()}

PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
BOUND = re.compile(r"(<=|>=|=<|=>|<|>)\s*(\S+)")
SPAN = re.compile(r"(\d+\.?\d*|\.\d+)\s*-\s*(\d+\.?\d*|\.\d+)")


class Moment(NamedTuple):
    time: datetime
    precision: str


@lru_cache(1 << 16)
def moment(text: str | None) -> Moment | None:
    """A TIME column's value: a moment, also at midnight."""
    if text is None or not text.strip():
        return None
    return Moment(datetime.fromisoformat(text), "us" if "." in text else "s")


@lru_cache(1 << 14)
def day(text: str | None) -> Moment | None:
    """A DATE column's value: the end of that day. A database may have added midnight to it."""
    if text is None or not text.strip():
        return None
    return Moment(datetime.fromisoformat(text[:10]) + timedelta(days=1) - timedelta(microseconds=1), "day")


def float32(number: Decimal) -> float:
    """A number of MIMIC's, whose columns are double precision, as float32."""
    single: float = struct.unpack("<f", struct.pack("<f", float(number)))[0]
    return single


class Value(NamedTuple):
    number: float | None = None
    text: str | None = None
    flag: str | None = None


@lru_cache(1 << 16)
def read_value(raw: str | None) -> Value:
    """A number, a number behind a sign, the middle of a range, or a text."""
    said = tidy(raw)
    if said is None:
        return Value()
    if PLAIN.fullmatch(said):
        return Value(float32(Decimal(said)))
    bound = BOUND.fullmatch(said)
    if bound and PLAIN.fullmatch(bound[2]):
        sign = {"=<": "<=", "=>": ">="}.get(bound[1], bound[1])
        return Value(float32(Decimal(bound[2])), said, sign)
    span = SPAN.fullmatch(said)
    if span and Decimal(span[1]) <= Decimal(span[2]):
        return Value(float32((Decimal(span[1]) + Decimal(span[2])) / 2), said, "range")
    return Value(text=said)


def tidy(text: str | None) -> str | None:
    return (text.strip() or None) if text is not None else None


def upper(text: str | None, default: str | None = None) -> str | None:
    said = tidy(text)
    return said.upper() if said else default


NOTHING = Value()


class Raw:
    """The raw tables of a MIMIC-IV folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[str, list[Row]] = {}
        self._indexed: dict[tuple[str, str], dict[str | None, list[Row]]] = {}
        self._firsts: dict[tuple[str, ...], dict[tuple[str | None, ...], str]] = {}

    def lines(self, table: str) -> Iterator[list[str]]:
        """Header and records as csv reads them."""
        path = self.folder / f"{table}.csv"
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.reader(file)
        else:
            with gzip.open(f"{path}.gz", "rt", encoding="utf-8", newline="") as file:
                yield from csv.reader(file)

    def rows(self, table: str) -> list[Row]:
        """A table's rows without repeated ones, which equal another row in every column."""
        if table not in self._rows:
            header, *records = self.lines(table)
            distinct = dict.fromkeys(map(tuple, records))
            self._rows[table] = [
                dict(zip(header, (None if field in ("", "___") else field for field in record), strict=True))
                for record in distinct
            ]
        return self._rows[table]

    def found(self, table: str, key: str, value: str | None) -> list[Row]:
        """The rows of a table with that key."""
        if (table, key) not in self._indexed:
            index: dict[str | None, list[Row]] = defaultdict(list)
            for row in self.rows(table):
                index[row[key]].append(row)
            self._indexed[table, key] = index
        return self._indexed[table, key].get(value, []) if value is not None else []

    def is_first(self, row: Row, *key: str) -> bool:
        """Whether a microbiology row is the first of those that share its key."""
        if key not in self._firsts:
            firsts: dict[tuple[str | None, ...], str] = {}
            for other in self.rows("hosp/microbiologyevents"):
                group = tuple(other[name] for name in key)
                firsts[group] = min(firsts.get(group, str(other["microevent_id"])), str(other["microevent_id"]))
            self._firsts[key] = firsts
        return self._firsts[key][tuple(row[name] for name in key)] == row["microevent_id"]

    def subjects(self) -> list[int]:
        return sorted(int(str(row["subject_id"])) for row in self.rows("hosp/patients"))
