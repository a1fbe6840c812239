"""A table that changes from night to night, converted from what is kept of it and whole, side by side."""

import gzip
import random
from pathlib import Path
from typing import Any, cast

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.events.lag_counts import LAGS
from extractors.source import Source
from pipelines import meds
from pipelines.align import segment_of
from pipelines.aligning.content_changes import MadeOf, contents_since
from pipelines.aligning.continued import QUARANTINE, SUBJECTS
from pipelines.aligning.gather import read_contents
from pipelines.aligning.segments import read_frame_blob, read_texts
from pipelines.engine.execute import execute
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Task
from tests.support.raw.raw_tables import align_one, aligned_events
from warehouse.files import sha256_json

BUCKETS = 3
RULE: dict[str, Any] = {
    "visit": "visit",
    "joins": [
        {"table": "stays", "key": "visit", "columns": {"left": "left"}},
        {"table": "names", "key": "test", "columns": {"name": "name"}, "optional": True},
    ],
    "events": [
        {
            "code": "LAB/{test}",
            "time": {"column": "at", "formats": ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]},
            "available": {"column": "known", "otherwise": "lag"},
            "value": "value",
            "unit": "unit",
            "text": "note",
        },
        {"code": "END/{name}", "time": "at", "available": "left", "where": "test != 'B'"},
        {"code": "SEX/{test}", "where": "test = 'C'"},
    ],
}
TABLES: dict[str, Any] = {
    "t": RULE,
    "stays": {"role": "reference"},
    "names": {"role": "reference"},
}
COLUMNS = ["pid", "visit", "test", "at", "known", "value", "unit", "note"]

Row = tuple[str, ...]


def row(draw: random.Random) -> Row:
    subject, day = draw.randrange(40), draw.randrange(1, 28)
    return (
        draw.choice([str(subject)] * 30 + ["", "x"]),
        draw.choice(["v1", "v2", "v3", ""]),
        draw.choice(["A", "A", "B", "C", ""]),
        draw.choice([f"2020-01-{day:02d} 03:04:05", f"2020-01-{day:02d} 03:04:05", f"2020-01-{day:02d}", "", "soon"]),
        draw.choice([f"2020-01-{day:02d} 05:00:00", f"2020-01-{day:02d} 04:00:00", "", "later"]),
        draw.choice([str(draw.randrange(99)), "1.5", "negative", ""]),
        draw.choice(["mg", "mmol", ""]),
        draw.choice(["", "", "", f"plain {draw.randrange(9)}", 'said "no"', "two\nlines", "a, b"]),
    )


def edited(rows: list[Row], draw: random.Random) -> list[Row]:
    """The rows of the next night."""
    rows = list(rows)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(rows) + 1)
        kind = draw.choice(["insert", "delete", "change", "move", "append", "repeat", "withdraw"])
        several = slice(place, place + draw.choice([1, 1, 2, 40]))
        if kind == "insert":
            rows[place:place] = [row(draw) for _ in range(draw.choice([1, 30]))]
        elif kind == "delete":
            del rows[several]
        elif kind == "change":
            rows[several] = [row(draw) for _ in rows[several]]
        elif kind == "move":
            moved = rows[several]
            del rows[several]
            to = draw.randrange(len(rows) + 1)
            rows[to:to] = moved
        elif kind == "append":
            rows += [row(draw)]
        elif kind == "repeat":
            rows[place:place] = rows[several]
        else:
            gone = str(draw.randrange(40))
            rows = [kept for kept in rows if kept[0] != gone]
    return rows


def csv_of(rows: list[Row], line_end: str, ended: bool) -> bytes:
    def field(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    lines = [",".join(map(field, fields)) for fields in [tuple(COLUMNS), *rows]]
    text = line_end.join(line.replace("\n", line_end) if line_end == "\n" else line for line in lines)
    return (text + line_end * ended).encode()


class Nights:
    """Conversions of one raw file, one after the other, each beside one of the whole file."""

    def __init__(self, folder: Path, gz: bool = False, rule: dict[str, Any] | None = None) -> None:
        self.folder, self.number = folder, 0
        self.before: dict[str, Any] | None = None
        self.raw = folder / "raw"
        self.raw.mkdir()
        self.look_up({"v1": "2020-02-01 00:00:00", "v2": "2020-02-02 00:00:00"}, {"A": "alpha", "B": "beta"})
        self.path = self.raw / ("t.csv.gz" if gz else "t.csv")
        self.source = Source.model_validate(
            {"name": "test", "subject": "pid", "tables": TABLES | ({"t": rule} if rule else {})}
        )
        self.deid = DeidConfig.model_validate({"mode": "synthetic"})
        self.key = Deidentifier(self.deid, load_key(self.deid, folder / "private", create=True)).key_fingerprint

    def look_up(self, stays: dict[str, str], names: dict[str, str]) -> None:
        """Writes the tables that rows look something up in."""
        for header, name, rows in (("visit,left", "stays", stays), ("test,name", "names", names)):
            lines = [header, *(f"{key},{value}" for key, value in rows.items()), ""]
            (self.raw / f"{name}.csv").write_text("\n".join(lines))

    def task(self, line: str, name: str) -> Task:
        params = {
            "source": self.source.model_dump(mode="json"),
            "export": str(self.raw),
            "crosswalks": {},
            "table": "t",
            "label": "t",
            "path": str(self.path),
            "deid": self.deid.model_dump(mode="json"),
            "key": self.key,
            "private": str(self.folder / "private"),
            "buckets": BUCKETS,
            "segment": f"{line}-{name}.segment",
            "line": line,
            "rules": "rules",
            "joined": sha256_json([(self.raw / name).read_text() for name in ("stays.csv", "names.csv")]),
        }
        record = str(self.folder / f"{line}-{name}.json")
        return Task("meds", meds.STAGE.run, "t", str(self.folder), record, params, name)

    def convert(self, data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the night's record counts, and what a conversion of the whole file does."""
        self.number += 1
        self.path.write_bytes(gzip.compress(data) if self.path.suffix == ".gz" else data)
        records = []
        for task in (self.task("night", str(self.number)), self.task(f"whole{self.number}", "0")):
            execute(task)
            entry = load_record(Path(task.record))
            assert entry is not None, Path(task.record).with_suffix(".error").read_text()
            records.append(dict(entry.counts))
        return records[0], records[1]

    def agree(self, night: dict[str, Any], whole: dict[str, Any]) -> None:
        """Holds both records against one another, and the rows that a bucket is aligned from."""
        places = {"segment", "formers", "followed", "buckets", "blobs"}
        assert {name: value for name, value in night.items() if name not in places} == {
            name: value for name, value in whole.items() if name not in places
        }
        said = ("rows", "hash", "awaited")
        assert {bucket: [of[name] for name in said] for bucket, of in night["buckets"].items()} == {
            bucket: [of[name] for name in said] for bucket, of in whole["buckets"].items()
        }
        for name, empty in (("subjects", SUBJECTS), ("quarantine", QUARANTINE)):
            assert self.frame(night, name, empty).equals(self.frame(whole, name, empty)), name
        assert self.lags(night) == self.lags(whole)
        for bucket in map(int, whole["buckets"]):
            aligned = []
            for counts in (night, whole):
                align_one(self.folder, {counts["segment"]: counts}, bucket)
                aligned.append(aligned_events(self.folder, bucket))
            assert aligned[0].equals(aligned[1])
        self.tell(night)

    def tell(self, night: dict[str, Any]) -> None:
        """Holds what subjects are made of, told from the night before, against what all rows say."""
        lags = {"t": {"LAB/A": 7_000_000}}
        for bucket in map(str, range(BUCKETS) if self.before is not None else ()):
            before, now = (
                [segment_of(self.folder, cast(meds.Counts, of), int(bucket))] if bucket in of["buckets"] else []
                for of in (self.before or {}, night)
            )
            made_of = MadeOf(segments=before, lags=lags, items=False)
            told = contents_since(read_contents(before, None, lags), made_of, None, now, None, lags)
            assert told is not None and told.frame().equals(read_contents(now, None, lags).frame())
        self.before = night

    def frame(self, counts: dict[str, Any], name: str, empty: Any) -> Any:
        return read_frame_blob(self.folder / counts["segment"], counts["blobs"][name], empty)

    def lags(self, counts: dict[str, Any]) -> list[tuple[str, int, int]]:
        codes = read_texts(self.folder / counts["segment"], counts["blobs"]["codes"])
        return sorted((codes[code], step, rows) for code, step, rows in self.frame(counts, "lags", LAGS).rows())
