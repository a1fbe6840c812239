"""A range's tables as a hospital's export has them: columns of text, taken from short lists by number."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO

import numpy as np
import polars as pl

from extractors.simulate.large.course import RACES, Subjects
from extractors.simulate.large.library import CLASSES, I64, Library, library
from extractors.simulate.large.rows import NONE, Columns, RangeRows
from extractors.simulate.record import DAY, TABLES

_FIRST_DATE = -40 * 365
"""Days before 1970 of the first date that can be written; the last lies as far behind 2070."""
_DATES = 140 * 365
_MINUTES = pl.Series([f" {minute // 60:02d}:{minute % 60:02d}:00" for minute in range(DAY // 60)])
_INSURANCES = ("Medicare", "Medicaid", "Private")


def header_of(table: str) -> bytes:
    """The first line of a table."""
    return (",".join(TABLES[table]) + "\n").encode()


def csv_of(rows: RangeRows) -> dict[str, bytes]:
    """Each table's lines, without the first one."""
    return {name: lines_of(frame) for name, frame in frames_of(rows).items()}


def lines_of(frame: pl.DataFrame) -> bytes:
    """A frame's lines; no cell has a quote or a comma."""
    buffer = BytesIO()
    frame.write_csv(buffer, include_header=False, quote_style="never")
    return buffer.getvalue()


def frames_of(rows: RangeRows) -> dict[str, pl.DataFrame]:
    """Each table with the columns of `extractors.simulate.record.TABLES`, all text or numbers as they are printed."""
    made, subjects = library(), rows.subjects
    patient = pl.Series([f"P{number:07d}" for number in subjects.number.tolist()])
    makers = {
        "patients": _patients,
        "encounters": _encounters,
        "diagnoses": _diagnoses,
        "procedures": _procedures,
        "medications": _medications,
        "labs": _labs,
        "deaths": _deaths,
    }
    frames = {}
    for name, columns in rows.tables.items():
        frame = pl.DataFrame({"patient_id": patient.gather(columns["subject"])} | makers[name](made, subjects, columns))
        frames[name] = frame.select(list(TABLES[name]))
    return frames


def own_rows(subjects: Subjects) -> dict[str, Columns]:
    """The rows of the tables that have at most one a patient."""
    everyone = np.arange(len(subjects))
    return {"patients": {"subject": everyone}, "deaths": {"subject": np.flatnonzero(subjects.death >= 0)}}


def times(seconds: I64) -> pl.Series:
    """Seconds since 1970 as `YYYY-MM-DD HH:MM:00`; null for NONE."""
    given = seconds != NONE
    kept = np.where(given, seconds, 0)
    texts = pl.DataFrame(
        {"day": _dates().gather(kept // DAY - _FIRST_DATE), "minute": _MINUTES.gather(kept % DAY // 60), "given": given}
    )
    return texts.select(pl.when("given").then(pl.concat_str("day", "minute"))).to_series()


def dates(days: I64) -> pl.Series:
    """Days since 1970 as `YYYY-MM-DD`."""
    return _dates().gather(days - _FIRST_DATE)


@cache
def _dates() -> pl.Series:
    days = pl.Series(np.arange(_FIRST_DATE, _FIRST_DATE + _DATES))
    return days.cast(pl.Int32).cast(pl.Date).dt.strftime("%Y-%m-%d")


def _patients(_made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    of = rows["subject"]
    return {
        "sex": _taken(("M", "F"), subjects.female[of].astype(np.int64)),
        "birth_year": pl.Series(subjects.birth_year[of]),
        "race": _taken(RACES, subjects.race[of]),
    }


def _deaths(_made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    death = subjects.death[rows["subject"]]
    minute = np.where(subjects.to_the_minute[rows["subject"]], death, NONE)
    return {"death_time": times(minute), "death_date": dates(death // DAY)}


def _encounters(_made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    age = 1970 + rows["start"] / DAY / 365.25 - subjects.birth_year[rows["subject"]]
    insurance = np.where(age >= 65, 0, np.where(subjects.number[rows["subject"]] % 5 == 0, 1, 2))
    return {
        "encounter_id": _encounter(subjects, rows),
        "type": _taken(CLASSES, rows["type"]),
        "start_time": times(rows["start"]),
        "end_time": times(rows["end"]),
        "insurance": _taken(_INSURANCES, insurance),
    }


def _diagnoses(made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    is_icd9 = np.asarray([code[0].isdigit() for code in made.diagnoses])
    return {
        "encounter_id": _encounter(subjects, rows),
        "seq": pl.Series(rows["sequence"]),
        "code": _taken(made.diagnoses, rows["code"]),
        "code_system": _taken(("ICD10CM", "ICD9CM"), is_icd9[rows["code"]].astype(np.int64)),
        "recorded_date": dates(rows["recorded"]),
    }


def _procedures(made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    return {
        "encounter_id": _encounter(subjects, rows),
        "code": _taken(made.procedures, rows["code"]),
        "procedure_date": dates(rows["day"]),
    }


def _medications(made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    return {
        "encounter_id": _encounter(subjects, rows),
        "rxnorm": _taken([drug.rxnorm for drug in made.drugs], rows["drug"]),
        "name": _taken([drug.name for drug in made.drugs], rows["drug"]),
        "start_time": times(rows["given"]),
        "dose": _taken([str(float(drug.dose)) for drug in made.drugs], rows["drug"]),
        "dose_unit": _taken([drug.unit for drug in made.drugs], rows["drug"]),
    }


def _labs(made: Library, subjects: Subjects, rows: Columns) -> dict[str, pl.Series]:
    decimals = np.where(rows["text"] >= 0, len(_printed()), made.decimals[rows["test"]])
    values = pl.concat([*_printed(), pl.Series(made.texts)])
    number = np.where(rows["text"] >= 0, rows["text"], rows["value"])
    with_unit = np.where(rows["unit"] > 0, rows["test"], len(made.tests))
    return {
        "lab_id": _id("L", subjects, rows, rows["lab"], 6),
        "encounter_id": _encounter(subjects, rows),
        "loinc": _taken(made.tests, rows["test"]),
        "collected_time": times(rows["collected"]),
        "result_time": times(rows["resulted"]),
        "value": values.gather(decimals * _MANTISSAS + number),
        "unit": _taken([unit or None for unit in made.units] + [None], with_unit),
    }


_MANTISSAS = 100_001


@cache
def _printed() -> tuple[pl.Series, ...]:
    """By decimals, the texts of all numbers of five digits of which the last ones are those."""
    units = [10**decimals for decimals in range(3)]
    texts = [
        [f"{n // unit}.{n % unit:0{decimals}d}" if decimals else str(n) for n in range(_MANTISSAS)]
        for decimals, unit in enumerate(units)
    ]
    return tuple(pl.Series(of_decimals) for of_decimals in texts)


@cache
def _numbers(size: int, digits: int) -> pl.Series:
    return pl.Series([f"{number:0{digits}d}" for number in range(size)])


def _taken(texts: Sequence[str | None], numbers: I64) -> pl.Series:
    return pl.Series(texts, dtype=pl.String).gather(numbers)


def _encounter(subjects: Subjects, rows: Columns) -> pl.Series:
    return _id("E", subjects, rows, rows["order"], 5)


def _id(letter: str, subjects: Subjects, rows: Columns, numbers: I64, digits: int) -> pl.Series:
    """A patient's number and one within the patient."""
    size = 10_000 if numbers.max(initial=0) < 10_000 else 1_000_000
    owner = pl.Series([f"{letter}{number:07d}" for number in subjects.number.tolist()]).gather(rows["subject"])
    parts = pl.DataFrame({"owner": owner, "number": _numbers(size, digits).gather(numbers)})
    return parts.select(pl.concat_str("owner", "number")).to_series()
