"""A hospital whose nights are run by the command, or by what the command runs."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.runs.run import RunOutcome, open_run
from flows.runs.settings import RunSettings
from warehouse.embeddings.store import close_stores, content_hash
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release

BUCKETS = 8
TIMELOOM = str(Path(sys.executable).with_name("timeloom"))


@dataclass
class Site:
    """A hospital's export, a configuration, a root."""

    folder: Path
    hospital: Path

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def root(self) -> Path:
        return self.folder / "warehouse"

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def configure(self, *, images: bool = True) -> "Site":
        """Writes the configuration."""
        plain: dict[str, Any] = {
            "sources": [{"source": "simulated-hospital", "path": str(self.hospital / "tables")}],
            "deid": {"mode": "synthetic"},
            "buckets": BUCKETS,
            "limits": {"unparsable_times": 0.05},
        }
        if images:
            columns = {"match": "path", "subject_id": "patient_id", "time": "collection_time"}
            crosswalk = {"file": str(self.hospital / "slides" / "manifest.csv"), "match": "path", "columns": columns}
            plain["modalities"] = {
                "ct": {"path": str(self.hospital / "ct"), "encoder": {"name": "random-dinov2", "width": 1024}},
                "wsi": {
                    "path": str(self.hospital / "slides"),
                    "crosswalk": crosswalk,
                    "encoder": {"name": "random-dinov2", "width": 1536},
                },
            }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(plain))
        return self

    def run(self, engine: str = "local", workers: int = 1) -> RunOutcome:
        """One night, in this process."""
        settings = RunSettings(self.config, self.root, engine, workers=workers)
        try:
            with open_run(settings, None) as run:
                for name, step in run.steps:
                    run.carry_out(name, step)
                return run.outcome()
        finally:
            close_stores()

    def command(self, *more: str, workers: int = 2) -> list[str]:
        return [TIMELOOM, "run", str(self.config), "--root", str(self.root), "--workers", str(workers), *more]

    @property
    def current(self) -> ReleaseLayout:
        release = current_release(self.layout)
        assert release is not None
        return release

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.current.manifest)

    def vectors(self) -> dict[str, str]:
        """Content hash of every LMDB file."""
        folder = self.root / "embeddings"
        try:
            return {str(path.relative_to(folder)): content_hash(path) for path in sorted(folder.rglob("*.lmdb"))}
        finally:
            close_stores()

    def releases(self) -> list[str]:
        return sorted(path.name for path in self.layout.releases.iterdir())

    def copy(self, folder: Path, *, hospital: bool = False) -> "Site":
        """A copy of this root; with `hospital` it also copies the hospital, so that the test may change it."""
        shutil.copytree(self.root, folder / "warehouse", symlinks=True)
        shutil.copytree(self.layout.private, folder / "warehouse.private")
        if hospital:
            shutil.copytree(self.hospital, folder / "hospital")
        return Site(folder, folder / "hospital" if hospital else self.hospital).configure()

    def append(self, table: str, *rows: str) -> None:
        with (self.hospital / "tables" / f"{table}.csv").open("a") as file:
            file.writelines(f"{row}\n" for row in rows)
