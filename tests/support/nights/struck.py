"""A night that is struck: its processes are killed, told to end, or refused by the disk, at a moment or at a point.

The hospital is small, its vectors come ready, and the night that is struck is the second one, of changed tables and
vectors: what it does not make anew it links and carries from the first release.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from extractors.simulate import simulate
from tests.support.nights.command_site import Site
from tests.support.nights.points.sitecustomize import BELOW, NOTES
from tests.support.vectors import clam, drawn
from validation.verify import verify_release
from warehouse.embeddings.store import close_stores
from warehouse.manifest import Manifest

POINTS = Path(__file__).parent / "points"
WIDTH, SCANS = 8, 10
# No night takes so long: a test that waits longer has found processes that wait for one another.
PATIENCE = 120.0


class StruckSite(Site):
    """A hospital of tables and ready vectors, and a root; copies share the hospital."""

    def configure(self, *, images: bool = True) -> "StruckSite":
        """Writes the configuration."""
        vectors = {"path": str(self.hospital / "features"), "format": "hdf5", "dtype": "float32", "name": "merlin"}
        plain: dict[str, Any] = {
            "sources": [{"source": "simulated-hospital", "path": str(self.hospital / "tables")}],
            "deid": {"mode": "synthetic"},
            "buckets": 4,
            "limits": {"unparsable_times": 0.05},
            "modalities": {
                "ct": {
                    "crosswalk": {"file": str(self.hospital / "ct.csv")},
                    "encoder": {"imported": vectors | {"width": WIDTH}},
                }
            },
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(plain))
        return self

    def copy(self, folder: Path, *, hospital: bool = False) -> "StruckSite":
        """A copy of this root in a folder of its own."""
        folder.mkdir(parents=True)
        for name in ("warehouse", "warehouse.private"):
            subprocess.run(["cp", "-a", str(self.folder / name), str(folder / name)], check=True)
        export = self.hospital
        if hospital:
            export = folder / "hospital"
            shutil.copytree(self.hospital, export)
        return StruckSite(folder, export).configure()

    def begin(
        self,
        order: str = "",
        *more: str,
        workers: int = 2,
        notes: Path | None = None,
        direct: bool = True,
        ahead: Callable[[], None] | None = None,
        **environment: str,
    ) -> "Night":
        """Starts a night in a session of its own, with every point of it written down.

        Args:
            order: what happens at which of them, see tests/support/nights/points.
            more: further arguments of the command.
            notes: where points are written down, and what the night says; beside the root where None.
            direct: without Prefect.
            ahead: done in its process before it begins.
            environment: variables.
        """
        notes = notes or self.folder / "notes"
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir()
        if order:
            (notes / "order").write_text(order, encoding="utf-8")
        environment = os.environ | environment
        environment |= {NOTES: str(notes), BELOW: str(self.folder), "PYTHONPATH": str(POINTS)}
        (notes / "log").touch()
        (notes / "hits").touch()
        with (notes / "said").open("w") as said:
            process = subprocess.Popen(
                self.command("--json", *(["--direct"] if direct else []), *more, workers=workers),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                preexec_fn=ahead,
            )
        return Night(self, process, notes)

    def readable(self) -> str:
        """The id of the current release, whose files are all what its manifest says."""
        manifest = self.manifest
        wrong = [name for name, entry in manifest.files.items() if not entry.is_of(self.current.path / name)]
        assert not wrong, wrong
        return manifest.release_id

    def is_as(self, calm: "StruckSite") -> None:
        """Its current release, its vectors and all beside them are whole, and what an undisturbed night makes."""
        wrong = [finding for finding in verify_release(self.root) if not finding.ok]
        close_stores()
        assert not wrong, wrong
        assert comparable(self.manifest) == comparable(calm.manifest)
        assert self.vectors() == calm.vectors()
        assert len(self.releases()) == len(calm.releases())
        assert not self.leftovers()

    def leftovers(self) -> list[str]:
        """Files under names that are only taken while something is written, and folders of runs."""
        places = (self.root, self.layout.private)
        found = [path for place in places for path in place.rglob(".*") if path.name not in (".lock", ".serve.lock")]
        return sorted(str(path.relative_to(self.folder)) for path in [*found, *self.layout.work.glob("*")])


@dataclass
class Night:
    """A night under way in processes of its own."""

    site: StruckSite
    process: "subprocess.Popen[bytes]"
    notes: Path

    def ended(self) -> int:
        """Its exit code. Fails where it does not end, or leaves a process behind."""
        try:
            code = self.process.wait(PATIENCE)
            until = time.monotonic() + 20
            while (left := list(self.processes())) and time.monotonic() < until:
                time.sleep(0.05)
            assert not left, f"they outlive the night: {left}"
        finally:
            self.strike(signal.SIGKILL)
        return code

    def processes(self) -> Iterator[psutil.Process]:
        """The processes of its session that run."""
        for process in psutil.process_iter(["status"]):
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue

    def strike(self, number: signal.Signals) -> None:
        """Sends a signal to all of its processes."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [process for process in self.processes() if "spawn_main" in " ".join(process.cmdline())]

    @property
    def said(self) -> str:
        """What it wrote on standard error."""
        return (self.notes / "said").read_text(encoding="utf-8")

    @property
    def points(self) -> Counter[str]:
        """How often it came to each point, in the order in which it first did."""
        return Counter(line.strip() for line in (self.notes / "log").read_text(encoding="utf-8").splitlines())

    @property
    def struck(self) -> bool:
        """Whether its order was carried out."""
        return (self.notes / "hits").stat().st_size > 0


def first_night(folder: Path) -> StruckSite:
    """A hospital with one release, and news of which a second one is to be made."""
    hospital = folder / "hospital"
    simulate(hospital, subjects=24, seed=5, imaging_share=0.0)
    patients = [line.split(",")[0] for line in _lines(hospital, "patients")]
    links = ["match,subject_id,time"]
    for number in range(SCANS):
        links.append(f"{_scan(hospital, number)},{patients[number]},2021-03-1{number % 10} 08:00:00")
    (hospital / "ct.csv").write_text("\n".join(links) + "\n", encoding="utf-8")
    site = StruckSite(folder / "first", hospital).configure()
    site.run()
    news(site, patients)
    return site


def news(site: StruckSite, patients: list[str]) -> None:
    """Rows of patients who are known and of one who is not, a scan more, and one that is another."""
    labs = _lines(site.hospital, "labs")
    site.append("labs", *(f"L9{number:011d},{','.join(row.split(',')[1:])}" for number, row in enumerate(labs[:5])))
    site.append("patients", "P900001,F,1960,white")
    site.append("labs", f"L9{7:011d},P900001,{','.join(labs[0].split(',')[2:])}")
    with (site.hospital / "ct.csv").open("a", encoding="utf-8") as file:
        file.write(f"{_scan(site.hospital, SCANS)},{patients[-1]},2021-04-01 08:00:00\n")
    _scan(site.hospital, 0, seed=99)


def _scan(hospital: Path, number: int, seed: int | None = None) -> str:
    name = f"scan.{number:03d}.h5"
    clam(hospital / "features" / name, drawn(3, WIDTH, seed=number if seed is None else seed, dtype="float32"))
    return name


def _lines(hospital: Path, table: str) -> list[str]:
    return (hospital / "tables" / f"{table}.csv").read_text(encoding="utf-8").splitlines()[1:]


def comparable(manifest: Manifest) -> dict[str, Any]:
    """All that a manifest says but times, ids, and the report, which has them."""
    said = manifest.model_dump(mode="json", exclude={"release_id", "created_at", "run_id"})
    said["files"] = {name: entry for name, entry in said["files"].items() if not name.startswith("quality/")}
    return said
