"""What a raw table costs that is exported whole every night: extracted whole, and again after small changes.

The table is `hosp/labevents` of the MIMIC-IV demo again and again under other ids (mimic_replica.py), gzipped.
Nights: one row appended; rows of one subject in a hundred changed, added and removed, spread over the file; the rows in
another order. Each is a process of one thread that runs the task of the stage `meds`, behind the file's SHA-256 as a
night's plan takes it; seconds are those of the processor and of the clock, from when its modules are loaded. The last
line is JSON with the ratios to the table extracted whole. With --whole-only, the whole table is extracted that many
times, for a comparison of two versions.

    python -m benchmarks.changed_tables --demo MIMIC-IV-DEMO --work FOLDER
        [--megabytes N] [--rows-of-subject N] [--plain]
"""

import argparse
import gzip
import importlib
import json
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
from isal import igzip

from benchmarks.mimic_replica import STEPS
from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.source import load_source
from extractors.tables.csv_loops import compiled
from pipelines.engine.execute import execute
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Task
from pipelines.engine.workers import ENVIRONMENT, leave_out_pandas
from warehouse.files import sha256_file

TABLE = "hosp/labevents"
BUCKETS = 64


@contextmanager
def text_file(path: Path) -> Iterator[Any]:
    """A file to write bytes to, gzipped where its name says so."""
    if path.suffix == ".gz":
        with path.open("wb") as raw, igzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as packed:
            yield packed
    else:
        with path.open("wb") as file:
            yield file


def make_table(demo: Path, path: Path, megabytes: int, rows_of_subject: int | None) -> None:
    """The demo's table again and again, until it has so many megabytes of text."""
    with gzip.open(demo / "hosp" / "labevents.csv.gz") as file:
        table = pl.read_csv(file.read(), infer_schema=False)
    written = replica = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with text_file(path) as file:
        while written < megabytes << 20:
            shifted = table.with_columns(
                (pl.col(name).cast(pl.Int64) + replica * STEPS[name]).cast(pl.String)
                for name in ("subject_id", "hadm_id", "labevent_id", "specimen_id")
            )
            if rows_of_subject:
                number = pl.int_range(pl.len()) // rows_of_subject + replica * len(table) + STEPS["subject_id"]
                shifted = shifted.with_columns(number.cast(pl.String).alias("subject_id"))
            text = shifted.write_csv(include_header=not replica).encode()
            file.write(text)
            written += len(text)
            replica += 1


def lines_of(path: Path) -> list[bytes]:
    """The lines of a table; of the demo's labevents each is a record, but for few that a change may cut."""
    data = igzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    lines: list[bytes] = data.splitlines(keepends=True)
    return lines


def write_lines(path: Path, lines: list[bytes]) -> None:
    with text_file(path) as file:
        for start in range(0, len(lines), 1 << 16):
            file.write(b"".join(lines[start : start + (1 << 16)]))


def append_row(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[-1].replace(b",", b"9,", 1)]


def change_subjects(lines: list[bytes], share: float = 0.01) -> list[bytes]:
    """In some subjects spread over the file one row changed, one added and one removed."""
    draw = random.Random(7)
    subjects: dict[bytes, list[int]] = {}
    for place, line in enumerate(lines[1:], 1):
        subjects.setdefault(line.split(b",", 2)[1], []).append(place)
    changed = list(lines)
    for places in draw.sample(list(subjects.values()), max(1, int(share * len(subjects)))):
        place = draw.choice(places)
        changed[place] = lines[place].replace(b",", b"7,", 1) + lines[place].replace(b",", b"8,", 1)
        if len(places) > 2:
            changed[places[0]] = b""
    return changed


def shuffle(lines: list[bytes]) -> list[bytes]:
    shuffled = lines[1:]
    random.Random(8).shuffle(shuffled)
    return [lines[0], *shuffled]


def extract(work: str, export: str, path: str, name: str) -> dict[str, Any]:
    """Runs the task, and says what it cost."""
    source, config = (
        load_source("mimic-iv", Path(export)).model_dump(mode="json"),
        DeidConfig.model_validate({"mode": "synthetic"}),
    )
    key = load_key(config, Path(work) / "private", create=True)
    params = {
        "source": source,
        "export": export,
        "crosswalks": {},
        "table": TABLE,
        "label": TABLE,
        "path": path,
        "deid": config.model_dump(mode="json"),
        "key": Deidentifier(config, key).key_fingerprint,
        "private": str(Path(work) / "private"),
        "buckets": BUCKETS,
        "segment": f"{name}.segment",
        "line": name.split("-")[0],
        "rules": "rules",
    }
    importlib.import_module("pipelines.meds")
    compiled()
    leave_out_pandas()
    before = resource.getrusage(resource.RUSAGE_SELF)
    start, hashed_cpu = time.monotonic(), time.process_time()
    sha256_file(Path(path))
    hashed, hashed_cpu = time.monotonic() - start, time.process_time() - hashed_cpu
    record = Path(work) / f"{name}.json"
    execute(Task("meds", "pipelines.meds:run", name, work, str(record), params, name))
    after = resource.getrusage(resource.RUSAGE_SELF)
    entry = load_record(record)
    if entry is None:
        raise SystemExit(record.with_suffix(".error").read_text())
    followed = entry.counts.get("followed") or {}
    return {
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall": time.monotonic() - start,
        "hashing_cpu": hashed_cpu,
        "hashing_wall": hashed,
        "peak_mib": after.ru_maxrss / 1024,
        "raw": entry.counts["raw"],
        "new_blocks": followed.get("blocks"),
        "formers": [former["blocks"] for former in entry.counts.get("formers", ())],
        "bytes": (Path(work) / f"{name}.segment").stat().st_size,
    }


def apart(*arguments: str) -> dict[str, Any]:
    """The same in a process of its own."""
    os.environ.update(ENVIRONMENT)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(extract, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder of the MIMIC-IV demo")
    parser.add_argument("--work", type=Path, required=True, help="the table and its segments are made here")
    parser.add_argument("--megabytes", type=int, default=500, help="of text; 500 if not given")
    parser.add_argument("--rows-of-subject", type=int, help="as in the demo, about a thousand, if not given")
    parser.add_argument("--plain", action="store_true", help="the table is not gzipped")
    parser.add_argument("--whole-only", type=int, default=0, help="extract the whole table that many times")
    options = parser.parse_args()
    export = options.work / f"export-{options.megabytes}-{options.rows_of_subject}"
    path = export / "hosp" / ("labevents.csv" if options.plain else "labevents.csv.gz")
    kept = path.with_name(f"night-0{path.suffix}")
    if not kept.is_file():
        make_table(options.demo, kept, options.megabytes, options.rows_of_subject)
    segments = options.work / "segments"
    shutil.rmtree(segments, ignore_errors=True)
    segments.mkdir(parents=True)
    if options.whole_only:
        shutil.copy(kept, path)
        for number in range(options.whole_only):
            print(json.dumps(apart(str(segments), str(export), str(path), f"whole{number}-0")))
        return
    lines = lines_of(kept)
    nights: dict[str, Callable[[list[bytes]], list[bytes]]] = {
        "whole": lambda lines: lines,
        "one_row": append_row,
        "changed_1pct": change_subjects,
        "reordered": shuffle,
    }
    found: dict[str, dict[str, Any]] = {}
    for number, (name, change) in enumerate(nights.items()):
        write_lines(path, lines := change(lines))
        # Whole, beside each night: what the file costs that it was given.
        found[name] = apart(str(segments), str(export), str(path), f"night-{number}")
        print(f"{name}: {json.dumps(found[name])}")
        sys.stdout.flush()
        if name == "reordered":
            found["whole_reordered"] = apart(str(segments), str(export), str(path), "fresh-0")
            print(f"whole_reordered: {json.dumps(found['whole_reordered'])}")
    whole = found["whole"]
    ratios = {
        f"{name}_{kind}": round(found[name][kind] / whole[kind], 3)
        for name in ("one_row", "changed_1pct")
        for kind in ("cpu", "wall")
    }
    ratios["reordered_cpu"] = round(found["reordered"]["cpu"] / found["whole_reordered"]["cpu"], 3)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
