"""A small hospital of which anything changes at random from night to night, and its nights without the gate."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extractors.simulate import simulate
from flows.runs import gate
from pipelines import align
from pipelines.aligning.former_extract import FormerExtract
from pipelines.carrying import cells, subjects
from pipelines.carrying.cells import Contents
from pipelines.carrying.kept import KeptCells
from pipelines.carrying.subjects import Changes
from pipelines.engine import run_stage
from pipelines.engine.task import Task
from tests.support.nights.site import Site
from tests.support.raw.small_blocks import make_small
from tests.support.vectors import clam, drawn
from validation.measure import carried as measures
from validation.measure import stage as measure
from warehouse.manifest import Manifest, TaskEntry

CELL_ROWS = 150
CONFIG = {
    "buckets": 2,
    "limits": {"unparsable_times": 0.5, "quarantined": 1.0, "malformed": 1.0},
}
WIDTH = 8
TABLES = ("labs", "diagnoses", "medications", "encounters", "patients", "deaths", "procedures")


class Hospital:
    """Tables, scans with their vectors, and merged ids, in memory.

    Args:
        folder: where `tables` is written.
        seed: of all that is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        export = folder / "export"
        simulate(export, subjects=24, seed=seed, modalities=("note",))
        self.folder = folder / "tables"
        self.folder.mkdir()
        self.heads, self.rows, self.gone = {}, {}, {}
        for table in TABLES:
            head, *rows = (export / "tables" / f"{table}.csv").read_text(encoding="utf-8").splitlines()
            self.heads[table], self.rows[table], self.gone[table] = head.split(","), [r.split(",") for r in rows], []
        for rest in sorted((export / "tables").iterdir()):
            if rest.stem not in TABLES:
                shutil.copy(rest, self.folder)
        self.scans: dict[str, tuple[str, str]] = {}
        self.merged: list[tuple[str, str]] = []
        self.number = 0
        for _ in range(12):
            self.new_scan()
        self.edits: tuple[Callable[[], None], ...] = (
            self.change_value, self.change_code, self.move_row, self.add_row, self.repeat_row, self.take_row,
            self.take_subject, self.bring_back, self.new_subject, self.second_death, self.shift_time, self.reorder,
            self.new_scan, self.move_scan, self.shift_scan, self.take_scan, self.cut_scan, self.merge, self.part_again,
        )  # fmt: skip
        self.write()

    def write(self) -> None:
        """The tables as files."""
        for table, rows in self.rows.items():
            lines = [",".join(row) for row in (self.heads[table], *rows)]
            (self.folder / f"{table}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        links = [("match", "subject_id", "time"), *((name, *said) for name, said in self.scans.items())]
        for name, listed in (("ct", links), ("merges", [("old", "new"), *self.merged])):
            text = "".join(",".join(row) + "\n" for row in listed)
            (self.folder.parent / f"{name}.csv").write_text(text, encoding="utf-8")

    def change(self) -> list[str]:
        """Some edits, and their names."""
        chosen = self.draw.choices(self.edits, k=self.draw.randint(0, 3))
        for edit in chosen:
            edit()
        self.write()
        return [edit.__name__ for edit in chosen]

    def _row(self, table: str) -> int:
        return self.draw.randrange(len(self.rows[table]))

    def _set(self, table: str, row: int, column: str, text: str) -> None:
        self.rows[table][row][self.heads[table].index(column)] = text

    def _patients(self) -> list[str]:
        return sorted({row[0] for row in self.rows["patients"]})

    def change_value(self) -> None:
        self._set("labs", self._row("labs"), "value", f"{self.draw.uniform(1, 200):.1f}")

    def change_code(self) -> None:
        self._set("diagnoses", self._row("diagnoses"), "code", self.draw.choice(["C34.1", "E11.9", "I10", "Z99.8"]))

    def shift_time(self) -> None:
        row = self._row("medications")
        self._set("medications", row, "start_time", f"2019-0{self.draw.randint(1, 9)}-11 07:00:00")

    def move_row(self) -> None:
        table = self.draw.choice(("labs", "diagnoses"))
        self._set(table, self._row(table), "patient_id", self.draw.choice(self._patients()))

    def add_row(self) -> None:
        row = self._row("labs")
        self.rows["labs"].append(list(self.rows["labs"][row]))
        self._set("labs", -1, "lab_id", f"L9{self.draw.randrange(10**9):09d}")
        self._set("labs", -1, "result_time", self.draw.choice(["", "2021-03-03 03:03:00"]))

    def repeat_row(self) -> None:
        table = self.draw.choice(TABLES[:4])
        self.rows[table].append(list(self.rows[table][self._row(table)]))

    def take_row(self) -> None:
        table = self.draw.choice(TABLES[:3])
        self.gone[table].append(self.rows[table].pop(self._row(table)))

    def take_subject(self) -> None:
        patients = self._patients()
        if len(patients) < 12:
            return
        patient = self.draw.choice(patients)
        for table, rows in self.rows.items():
            place = self.heads[table].index("patient_id")
            self.gone[table] += [row for row in rows if row[place] == patient]
            self.rows[table] = [row for row in rows if row[place] != patient]

    def bring_back(self) -> None:
        for table, gone in self.gone.items():
            self.rows[table] += gone
            self.gone[table] = []

    def new_subject(self) -> None:
        patient, other = f"P{self.draw.randrange(10**6):06d}", self.draw.choice(self._patients())
        for table, rows in self.rows.items():
            place = self.heads[table].index("patient_id")
            self.rows[table] += [[*row[:place], patient, *row[place + 1 :]] for row in rows if row[place] == other]

    def second_death(self) -> None:
        day = f"2023-0{self.draw.randint(1, 9)}-02"
        self.rows["deaths"].append([self.draw.choice(self._patients()), f"{day} 10:00:00", day])

    def reorder(self) -> None:
        self.draw.shuffle(self.rows["labs"])

    @property
    def vectors(self) -> Path:
        """Where files of vectors lie, one a scan."""
        return self.folder.parent / "features"

    def _scan(self) -> str:
        return self.draw.choice(sorted(self.scans))

    def _day(self) -> str:
        return f"2021-0{self.draw.randint(1, 9)}-1{self.draw.randint(0, 9)} 08:00:00"

    def new_scan(self) -> None:
        name = f"scan.{self.number:03d}.h5"
        clam(self.vectors / name, drawn(3, WIDTH, seed=self.number, dtype="float32"))
        self.scans[name] = self.draw.choice(self._patients()), self._day()
        self.number += 1

    def move_scan(self) -> None:
        name = self._scan()
        self.scans[name] = self.draw.choice(self._patients()), self.scans[name][1]

    def shift_scan(self) -> None:
        name = self._scan()
        self.scans[name] = self.scans[name][0], self._day()

    def take_scan(self) -> None:
        if len(self.scans) > 4:
            name = self._scan()
            del self.scans[name]
            (self.vectors / name).unlink()

    def cut_scan(self) -> None:
        if len(self.scans) > 4:
            (self.vectors / self._scan()).write_bytes(b"\x89HDF\r\n\x1a\n")

    def merge(self) -> None:
        first, second = self.draw.sample(self._patients(), 2)
        self.merged.append((first, second))

    def part_again(self) -> None:
        self.merged = self.merged[1:]


class Nights:
    """Nights over such a hospital; what the night before made of a raw file, and the release before of a task, is
    handed on or not."""

    def __init__(self, folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.hospital, self.folder = monkeypatch, Hospital(folder, seed), folder
        monkeypatch.setattr(cells, "CELL_ROWS", CELL_ROWS)
        make_small(monkeypatch)
        monkeypatch.setattr(subjects, "FEWEST_ROWS", 0)
        monkeypatch.setattr(measures, "FEWEST_ROWS", 0)
        monkeypatch.setattr(gate, "judge_release", lambda _tree, manifest, *_: manifest)
        self.copied: Counter[str] = Counter()
        self._note()
        self._site("carried").night()

    def _site(self, name: str) -> Site:
        site = Site(self.folder / name, CONFIG)
        site.config["sources"] = [{"source": "simulated-hospital", "path": str(self.hospital.folder)}]
        site.config["merges"] = str(self.folder / "merges.csv")
        vectors = {"path": str(self.hospital.vectors), "format": "hdf5", "dtype": "float32", "name": "merlin"}
        scans = {
            "crosswalk": {"file": str(self.folder / "ct.csv")},
            "encoder": {"imported": vectors | {"width": WIDTH}},
        }
        site.config["modalities"] = {"ct": scans}
        return site

    def carry(self) -> tuple[Manifest, Manifest]:
        """A night on the tables as they are, and the same night with everything made anew: their manifests.

        Both follow the same release, since splits, vocabularies and lags are appended to.
        """
        anew = self.folder / "anew"
        shutil.rmtree(anew, ignore_errors=True)
        shutil.copytree(self.folder / "carried", anew, symlinks=True)
        manifests = []
        for name in ("carried", "anew"):
            with self.monkeypatch.context() as patched:
                if name == "anew":
                    patched.setattr(run_stage, "_linked", _nothing)
                    patched.setattr(run_stage, "with_former", lambda task, _: task)
                    patched.setattr(FormerExtract, "find", lambda *_: None)
                    shutil.rmtree(anew / "warehouse" / "segments")
                site = self._site(name)
                site.night()
                manifests.append(site.manifest)
            if name == "carried":
                records = (run_stage.load_record(path) for path in site.layout.segments.glob("*.json"))
                self.copied["segments"] += sum(bool(record and record.counts.get("formers")) for record in records)
        return manifests[0], manifests[1]

    def _note(self) -> None:
        """Counts what is copied: cells of files, and buckets whose counts or measures are mended by some subjects. What
        is kept of raw files is counted by the records that name former segments."""
        kept_groups, changes_of, contents_since = KeptCells.kept_groups, Changes.of, align.contents_since

        def groups(cells: KeptCells) -> list[int]:
            found = kept_groups(cells)
            self.copied[cells.path.parent.name] += len(found)
            return found

        def changes(*args: Any, **keys: Any) -> Changes | None:
            found = changes_of(*args, **keys)
            self.copied["mended"] += found is not None
            return found

        measured = measures.carried

        def mended(*args: Any) -> Any:
            found = measured(*args)
            self.copied["measures"] += found is not None
            return found

        self.monkeypatch.setattr(measure, "carried", mended)

        def contents(*args: Any) -> Contents | None:
            found = contents_since(*args)
            self.copied["contents"] += found is not None
            return found

        self.monkeypatch.setattr(align, "contents_since", contents)
        self.monkeypatch.setattr(KeptCells, "kept_groups", groups)
        self.monkeypatch.setattr(Changes, "of", changes)


def _nothing(_task: Task, _context: run_stage.RunContext) -> TaskEntry | None:
    return None
