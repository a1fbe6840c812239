"""scan: some folders of a tree of images → what each of their files is, as far as that can be told without the others.

Schema in: files. Schema out: SCANNED, in the private folder: it is the hospital's own words. A task has so many folders
that it reads some thousand files; where one changes, the task reads that file alone, and takes what is known of the
others from the earlier task that had them.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from extractors.extractor import ByFile, Finding, ModalitySettings, imported
from extractors.items import foreign_number
from extractors.modalities import tree_reader
from extractors.trees import Entry, Folder, folder_at, folders_of
from pipelines.config import ENCODER_KEYS
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Result, Task
from pipelines.night import Night, Stage
from pipelines.trees import trees_of
from warehouse.errors import RawFileChangedError, TimeloomError
from warehouse.files import atomic_write, sha256_json, signature, signature_of

# One row a finding, or a file without one. Names need not be UTF-8.
SCANNED = pa.schema(
    [
        ("file", pa.binary()),
        ("state", pa.string()),  # what the file system said of the file
        ("series", pa.uint64()),  # hashes; null where there is no finding
        ("study", pa.uint64()),  # null where it has none
        ("digest", pa.uint64()),
        ("value", pa.string()),  # JSON of a Finding
        ("foreign", pa.string()),  # a fingerprint of what is none of the modality
    ]
)
FEWEST_FILES, MOST_FILES = 1 << 10, 1 << 13
# Keys that say whose items are: they are minded when items are told, not when files are read.
OF_SUBJECTS = ("crosswalk", "subject_pattern", "subject_normalise", "issuers")
FOLDERS = "folders"  # in the files' metadata: which folders it has, and by which rules
_ENDS = 4  # one in so many folders ends a task, so that a new folder moves the ends of few


class Counts(TypedDict):
    """What a task tells: files that it has and that it read, and what of them is none of the modality.

    `modality` is the name of the tree, see `pipelines.trees`.
    """

    modality: str
    files: int
    read: int
    foreign: int
    foreign_total: int


class Params(TypedDict):
    """What a task is given: paths and settings; of each folder its path, and which part of how many it reads."""

    modality: str
    settings: dict[str, Any]
    folders: list[tuple[str, int, int]]
    rules: str
    known: list[str]
    out: str


@dataclass
class _Chunk:
    """Folders of one task, and a digest of their files."""

    folders: list[tuple[str, int, int]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    files: int = 0


def settings_of(block: ModalitySettings, *left_out: str) -> dict[str, Any]:
    """A tree's settings as JSON."""
    return block.model_dump(mode="json", exclude={*ENCODER_KEYS, *left_out})


def plan(night: Night) -> list[Task]:
    """Tasks of some folders each, for the trees whose items are found file by file.

    Raises:
        TimeloomError: a folder is missing.
    """
    layout, rehash = night.layout, night.fingerprints.rehash
    tasks = []
    for modality, extractor, block, key in trees_of(night.config):
        by_file = extractor.by_file
        if not block.path.is_dir() and not (extractor.files_too and block.path.is_file()):
            raise TimeloomError(f"the folder of {modality} images does not exist: {block.path}", remedy=f"mend {key}")
        if by_file is None:
            continue
        minded = settings_of(block, *OF_SUBJECTS, *by_file.judged_later)
        tables = [night.fingerprints.of(path) for path in block.tables.values()] if by_file.reads_tables else []
        rules = sha256_json([STAGE.name, STAGE.version, modality, minded, *tables])
        for chunk in _chunks(block.path):
            fingerprint = sha256_json([rules, chunk.folders, chunk.digests])
            name = f"{modality}-{fingerprint[:24]}"
            record = layout.scanned / f"{name}.json"
            if rehash:
                record.unlink(missing_ok=True)
            tasks.append(
                Task(
                    stage=STAGE.name,
                    function=STAGE.run,
                    key=name,
                    base=str(layout.scanned),
                    record=str(record),
                    params=Params(
                        modality=modality,
                        settings=settings_of(block),
                        folders=chunk.folders,
                        rules=rules,
                        known=[],
                        out=f"{name}.parquet",
                    ),
                    fingerprint=fingerprint,
                    weight=chunk.files,
                )
            )
    return tasks if rehash else _with_known(tasks, layout.scanned)


def earlier_files(folder: Path, modality: str = "") -> Iterator[Path]:
    """What earlier tasks made in a private folder, for one modality or all, as far as their records say it is whole."""
    for path in sorted(folder.glob(f"{modality}-*.parquet" if modality else "*.parquet")):
        entry = load_record(path.with_suffix(".json"))
        if entry is not None and entry.files[path.name].is_of(path):
            yield path


def _chunks(root: Path) -> Iterator[_Chunk]:
    """A tree's folders in tasks. Where a task ends depends on its own folders, so that a new one changes few tasks."""
    chunk = _Chunk()
    for folder in folders_of(root):
        for part in _parts(folder):
            number, parts, files = part
            if chunk.files and chunk.files + len(files) > MOST_FILES:
                yield chunk
                chunk = _Chunk()
            chunk.folders.append((folder.path, number, parts))
            chunk.digests.append(_digest(folder, files))
            chunk.files += len(files)
            if chunk.files >= FEWEST_FILES and xxhash.xxh3_64_intdigest(os.fsencode(folder.path)) % _ENDS == 0:
                yield chunk
                chunk = _Chunk()
    if chunk.folders:
        yield chunk


def _parts(folder: Folder) -> Iterator[tuple[int, int, list[str]]]:
    """A folder's files in parts of one task's size, by their names; small folders have one part, empty ones none."""
    parts = 1
    while len(folder.files) > parts * MOST_FILES:
        parts *= 2
    if not folder.files and not folder.beside():
        return
    for number in range(parts):
        yield number, parts, [name for name in folder.files if _part_of(name, parts) == number]


def _part_of(name: str, parts: int) -> int:
    return xxhash.xxh3_64_intdigest(os.fsencode(name)) % parts if parts > 1 else 0


def _digest(folder: Folder, files: Iterable[str]) -> str:
    digest = sha256(json.dumps(folder.beside()).encode())
    for name in files:
        digest.update(os.fsencode(name) + f"\0{folder.files[name]}\n".encode())
    return digest.hexdigest()


def _with_known(tasks: list[Task], scanned: Path) -> list[Task]:
    """Tasks that will have to run, with the files that earlier tasks left of their folders."""
    stale = {task.key for task in tasks if not Path(task.record).is_file()}
    if not stale:
        return tasks
    wanted: dict[tuple[str, str], set[str]] = {}
    for task in tasks:
        if task.key in stale:
            for path, _, _ in task.params["folders"]:
                wanted.setdefault((task.params["rules"], path), set()).add(task.key)
    known: dict[str, set[str]] = {}
    current = {task.key for task in tasks}
    for path in earlier_files(scanned):
        if path.stem in current:
            continue
        has = json.loads(pq.read_metadata(path).metadata[FOLDERS.encode()])
        for folder in has["folders"]:
            for key in wanted.get((has["rules"], folder), ()):
                known.setdefault(key, set()).add(str(path))
    return [
        replace(task, params={**task.params, "known": sorted(known[task.key])}) if task.key in known else task
        for task in tasks
    ]


def run(params: Params, base: Path) -> Result:
    """Examines the files of some folders that are not known.

    Raises:
        RawFileChangedError: a file changed while it was read.
    """
    modality = params["modality"]
    extractor, settings = tree_reader(modality, params["settings"])
    assert extractor.by_file is not None
    scan = _Scan(modality, settings, extractor.by_file, _known(params["known"]))
    out = base / params["out"]
    folders = sorted({path for path, _, _ in params["folders"]})
    metadata = {FOLDERS: json.dumps({"rules": params["rules"], "folders": folders})}
    with atomic_write(out) as temporary, pq.ParquetWriter(
        temporary, SCANNED.with_metadata(metadata), compression="zstd", write_page_checksum=True
    ) as writer:  # fmt: skip
        for path, part, parts in params["folders"]:
            folder = folder_at(settings.path, path)
            names = [name for name in folder.files if _part_of(name, parts) == part]
            rows = scan.rows(folder, names, part, parts)
            writer.write_table(pa.Table.from_pylist(rows, SCANNED))
    counts = Counts(
        modality=modality,
        files=scan.files,
        read=scan.read,
        foreign=scan.foreign,
        foreign_total=scan.foreign_total % (1 << 64),
    )
    return Result({params["out"]: scan.written}, counts)


_Row = dict[str, Any]


def _known(paths: Iterable[str]) -> dict[bytes, list[_Row]]:
    """By file, what earlier tasks found in it."""
    known: dict[bytes, list[_Row]] = {}
    for path in paths:
        found: dict[bytes, list[_Row]] = {}
        for row in pq.read_table(path, page_checksum_verification=True).to_pylist():
            found.setdefault(row["file"], []).append(row)
        known |= found
    return known


@dataclass
class _Scan:
    """Examines files, and counts them."""

    modality: str
    settings: ModalitySettings
    by_file: ByFile
    known: dict[bytes, list[_Row]]
    files: int = 0
    read: int = 0
    written: int = 0
    foreign: int = 0
    foreign_total: int = 0

    def rows(self, folder: Folder, names: list[str], part: int, parts: int) -> list[_Row]:
        """The rows of a folder's files, or of one of so many parts of them; what is no file is of the first.

        All of its files together can tell something of each other.
        """
        rows = [row for entry in folder.beside() for row in self._examined(entry, "")] if part == 0 else []
        for name in names:
            path = folder.inside(name)
            state = json.dumps(folder.files[name])
            kept = self.known.get(os.fsencode(path), [])
            rows += kept if kept and kept[0]["state"] == state and folder.files[name] else self._read(path)
        found = [row for row in rows if row["value"] is not None]
        if parts == 1 and found:
            alone = [Finding(**json.loads(row["value"])) for row in found]
            for row, before, finding in zip(found, alone, imported(self.by_file.beside)(alone), strict=True):
                if finding is not before:
                    row.update(_of_finding(row["file"], finding))
        for row in rows:
            if row["foreign"] is not None:
                self.foreign += 1
                self.foreign_total += foreign_number(row["foreign"])
        self.files += len(names)
        self.written += len(rows)
        return rows

    def _read(self, path: str) -> list[_Row]:
        """Examines a file, which must be the same before and after."""
        self.read += 1
        before = _state(self.settings.path / path, settled=True)
        rows = self._examined(Entry(path, "file"), json.dumps(before))
        if _state(self.settings.path / path) != before:
            raise RawFileChangedError(f"a file of the {self.modality} images")
        return rows

    def _examined(self, entry: Entry, state: str) -> list[_Row]:
        examined = imported(self.by_file.examine)(self.settings, entry)
        file = os.fsencode(entry.path)
        empty = dict.fromkeys(SCANNED.names) | {"file": file, "state": state}
        rows = [empty | _of_finding(file, finding) for finding in examined.findings]
        rows += [empty | {"foreign": fingerprint} for fingerprint in examined.foreign]
        return rows or [empty]


def _state(path: Path, *, settled: bool = False) -> list[int]:
    try:
        return signature(path) if settled else signature_of(path.stat())
    except OSError:
        return []


def _of_finding(file: bytes, finding: Finding) -> _Row:
    value = json.dumps(vars(finding), sort_keys=True)
    return {
        "series": _hashed(finding.series),
        "study": _hashed(finding.study) if finding.study else None,
        "digest": xxhash.xxh3_64_intdigest(file + b"\0" + value.encode()),
        "value": value,
    }


def _hashed(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


STAGE = Stage("scan", 3, "pipelines.scan:run", in_release=False, keys=("modalities",), plan=plan)
