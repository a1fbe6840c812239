"""Writes a large simulated hospital: tables of any size in the memory of a few thousand patients."""

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import isal_zlib

from extractors.simulate.hospital import MARKER, appearing_whole
from extractors.simulate.large.course import RANGE, draw_subjects, draw_visits
from extractors.simulate.large.images import HEADER, IMAGES, draw_images
from extractors.simulate.large.nights import NIGHTS, changed, changes_of, order_of_ranges, selected, shuffled
from extractors.simulate.large.rows import RangeRows, draw_rows
from extractors.simulate.large.text import csv_of, header_of, lines_of, own_rows
from extractors.simulate.record import TABLES
from warehouse.errors import TimeloomError
from warehouse.files import write_json
from warehouse.progress import Progress

GENERATOR_VERSION = 1
CONFIG = Path(__file__).with_name("large.yaml")
_VECTORS_A_FILE = 20_000
_SUBJECTS, _VISITS, _ROWS, _IMAGES = range(4)
"""What of a range has a generator of its own."""


@dataclass(frozen=True)
class Arguments:
    """What a large hospital is made by."""

    seed: int
    subjects: int
    imaging_share: float
    compressed: bool
    night: str

    def as_json(self) -> dict[str, Any]:
        """As the marker of a finished hospital keeps it."""
        return {"large": True, "generator_version": GENERATOR_VERSION, **asdict(self)}


@dataclass(frozen=True)
class LargeSummary:
    """What a large hospital holds.

    Attributes:
        rows: data rows of each table.
        images: by modality.
        changed: patients by what the night changed of them.
        bytes: of the tables.
    """

    subjects: int
    rows: dict[str, int]
    images: dict[str, int]
    changed: dict[str, int]
    bytes: int


@dataclass(frozen=True)
class _Range:
    """A range as it is exported: each table's bytes and rows, images by modality, and what was changed."""

    tables: dict[str, bytes]
    rows: dict[str, int]
    lines: dict[str, bytes]
    vectors: dict[str, pa.Table]
    changed: list[tuple[str, str]]


def simulate_large(
    out: Path,
    *,
    subjects: int,
    seed: int = 0,
    imaging_share: float = 0.15,
    compressed: bool = False,
    night: str = "first",
    workers: int | None = None,
    progress: Progress | None = None,
) -> LargeSummary:
    """Writes the tables of a large cancer hospital to `out`, the same bytes for the same arguments.

    The hospital appears whole or not at all, and a second call with the same arguments writes nothing. `large.yaml` in
    it is a configuration that `timeloom run` takes.

    Args:
        out: a folder that is absent, empty, or an earlier simulation of this kind.
        imaging_share: share of patients who have images, as vectors; 0 for none.
        compressed: write the tables as `.csv.gz`.
        night: of NIGHTS, which export it is. Images are those of the first.
        workers: processes; the machine's cores where None.

    Raises:
        TimeloomError: an argument is out of range, `out` holds something else, or `out` cannot be written.
    """
    if subjects < 20 or seed < 0 or not 0 <= imaging_share <= 1:
        raise TimeloomError(
            f"a large hospital cannot have {subjects} subjects, the seed {seed} and the imaging share {imaging_share}",
            remedy="give at least 20 subjects, a seed from 0 and a share from 0 to 1",
        )
    if night not in NIGHTS:
        raise TimeloomError(f"nobody simulates the night {night}", remedy=f"name one of {', '.join(NIGHTS)}")
    arguments = Arguments(seed, subjects, imaging_share, compressed, night)
    if (known := _already_there(out, arguments)) is not None:
        return known
    with appearing_whole(out) as staging:
        try:
            summary = _write(staging, arguments, workers or os.cpu_count() or 1, progress)
        except BrokenProcessPool as error:
            raise TimeloomError(
                "a process that draws the simulated hospital died",
                remedy='in a script of your own, call it below `if __name__ == "__main__":`, or with workers=1',
            ) from error
        write_json(staging / MARKER, {"arguments": arguments.as_json(), "summary": asdict(summary)})
    return summary


def _already_there(out: Path, arguments: Arguments) -> LargeSummary | None:
    """The summary of an equal simulation in `out`; None where `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
        if marker["arguments"] == arguments.as_json():
            return LargeSummary(**marker["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise TimeloomError(
        "the folder of the simulated hospital holds something else, or a hospital of other arguments",
        remedy="choose an empty or absent folder",
    )


def draw_range(arguments: Arguments, index: int) -> tuple[RangeRows, list[tuple[str, str]], dict[str, Any]]:
    """The patients of a range as numbers, after what the night changes; what it changed; the images by modality."""
    draws = [np.random.default_rng([arguments.seed, index, part]) for part in range(_IMAGES + len(IMAGES))]
    subjects, events = draw_subjects(draws[_SUBJECTS], index * RANGE + 1, arguments.imaging_share)
    subjects, visits = draw_visits(draws[_VISITS], subjects, events)
    tables = own_rows(subjects) | draw_rows(draws[_ROWS], subjects, visits)
    images = {
        name: draw_images(draws[_IMAGES + number], subjects, visits, kind, arguments.subjects)
        for number, (name, kind) in enumerate(IMAGES.items())
        if arguments.imaging_share
    }
    changes = changes_of(arguments.night, arguments.seed, index, subjects, arguments.subjects)
    rows = changed(RangeRows(subjects, tables), changes, arguments.seed, index)
    if subjects.number[-1] > arguments.subjects:
        rows = selected(rows, subjects.number <= arguments.subjects)
    if arguments.night == "reordered":
        rows = shuffled(rows, arguments.seed, index)
    listed = [(f"P{subjects.number[row]:07d}", change) for row, change in sorted(changes.items())]
    return rows, listed, images


def _exported(arguments: Arguments, index: int) -> _Range:
    """A range as it is written."""
    rows, listed, images = draw_range(arguments, index)
    tables = csv_of(rows)
    if arguments.compressed:
        tables = {name: _gzip(lines) for name, lines in tables.items()}
    return _Range(
        tables=tables,
        rows={name: len(columns["subject"]) for name, columns in rows.tables.items()},
        lines={name: lines_of(drawn.lines) for name, drawn in images.items()},
        vectors={name: drawn.table() for name, drawn in images.items()} if arguments.night == "first" else {},
        changed=listed,
    )


def _gzip(data: bytes) -> bytes:
    """One member of a gzip file, without a time."""
    return bytes(isal_zlib.compress(data, 1, wbits=31)) if data else b""


def _ranges(arguments: Arguments, workers: int) -> Iterator[_Range]:
    """The ranges in the order of their export; few are held at a time."""
    order = order_of_ranges(arguments.night, arguments.seed, -(-arguments.subjects // RANGE))
    if workers == 1 or len(order) == 1:
        yield from (_exported(arguments, index) for index in order)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting: deque[Future[_Range]] = deque()
        for index in order:
            waiting.append(pool.submit(_exported, arguments, index))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Vectors:
    """Files of vectors, some thousand each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._rows, self._files = folder, 0, 0
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir(parents=True)

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._files += 1
            path = self._folder / f"vectors-{self._files:04d}.parquet"
            self._writer = pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        self._writer.write_table(table)
        self._rows += table.num_rows
        if self._rows >= _VECTORS_A_FILE:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0


def _write(root: Path, arguments: Arguments, workers: int, progress: Progress | None) -> LargeSummary:
    ending = ".csv.gz" if arguments.compressed else ".csv"
    rows: dict[str, int] = dict.fromkeys(TABLES, 0)
    images = dict.fromkeys(IMAGES, 0) if arguments.imaging_share else {}
    listed: list[tuple[str, str]] = []
    done = 0
    with ExitStack() as stack:
        tables: dict[str, BinaryIO] = {}
        (root / "tables").mkdir()
        for name in TABLES:
            tables[name] = stack.enter_context((root / "tables" / f"{name}{ending}").open("wb"))
            tables[name].write(_gzip(header_of(name)) if arguments.compressed else header_of(name))
        lists = {name: stack.enter_context((root / f"{IMAGES[name].folder}.csv").open("wb")) for name in images}
        for file in lists.values():
            file.write(HEADER)
        vectors = {
            name: _Vectors(root / "vectors" / IMAGES[name].folder) for name in images if arguments.night == "first"
        }
        for part in _ranges(arguments, workers):
            for name, lines in part.tables.items():
                tables[name].write(lines)
                rows[name] += part.rows[name]
            for name, lines in part.lines.items():
                lists[name].write(lines)
                images[name] += lines.count(b"\n")
            for name, table in part.vectors.items():
                vectors[name].add(table)
            listed += part.changed
            done = min(done + RANGE, arguments.subjects)
            if progress:
                progress("subjects", done, arguments.subjects)
        for writer in vectors.values():
            writer.close()
    kinds = sorted({change for _, change in listed})
    (root / "truth").mkdir()
    said = "".join(f"{patient},{change}\n" for patient, change in sorted(listed))
    (root / "truth" / "changed.csv").write_text(f"patient_id,change\n{said}", encoding="utf-8")
    shutil.copyfile(CONFIG, root / CONFIG.name)
    return LargeSummary(
        arguments.subjects,
        rows,
        images,
        {kind: sum(change == kind for _, change in listed) for kind in kinds},
        sum(path.stat().st_size for path in (root / "tables").iterdir()),
    )
