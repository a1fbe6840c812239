"""A simulated hospital and its warehouse, which live through nights run in this process."""

import shutil
import subprocess
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import polars as pl

from extractors.simulate import simulate
from flows.runs.run import Run, RunOutcome
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Engine
from warehouse.layout import Layout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release

SUBJECTS = 24


def make_export(folder: Path) -> Path:
    """A simulated export with tables, CT and slides; it is only read."""
    simulate(folder, subjects=SUBJECTS, seed=3, modalities=("ct", "wsi"))
    return folder


def shuffled_tables(export: Path, folder: Path) -> Path:
    """A copy of the export's tables, each with its rows in the opposite order."""
    folder.mkdir(parents=True)
    for table in sorted((export / "tables").glob("*.csv")):
        header, *rows = table.read_text(encoding="utf-8").splitlines()
        (folder / table.name).write_text("\n".join([header, *reversed(rows)]) + "\n", encoding="utf-8")
    return folder


def site_of_tables(folder: Path, export: Path) -> "Site":
    """A hospital with its own copy of an export's tables, so that a test can change them; no images."""
    shutil.copytree(export / "tables", folder / "tables")
    return Site(folder, {"buckets": 4, "limits": {"unparsable_times": 0.01}})


def site_of_images(folder: Path, export: Path, tables: Path | None = None) -> "Site":
    """A hospital over an export's tables, CT and slides, with a profile that has budgets.

    Args:
        tables: the folder of the tables; the export's own where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"match": "path", "subject_id": "patient_id", "time": "collection_time"}
    crosswalk = {"file": str(export / "slides" / "manifest.csv"), "match": "path", "columns": columns}
    slides = {"path": str(export / "slides"), "crosswalk": crosswalk}
    return Site(
        folder,
        {
            "sources": [{"source": "simulated-hospital", "path": str(tables or export / "tables")}],
            "buckets": 3,
            "limits": {"unparsable_times": 0.05},
            "profiles": {"mehrt": {"plans": {"nested": {"budgets": [200]}}}},
            "modalities": {
                "ct": {"path": str(export / "ct"), "encoder": {"name": "random-dinov2", "width": 1024}},
                "wsi": slides | {"encoder": {"name": "random-dinov2", "width": 1536}},
            },
        },
    )


class Site:
    """A folder with a warehouse, and the configuration of its nights; its tables lie in `tables` unless it says more.

    Args:
        config: what its configuration has beside the mode of de-identification.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.layout = folder, Layout(folder / "warehouse")
        self.config: dict[str, Any] = {
            "sources": [{"source": "simulated-hospital", "path": "tables"}],
            "deid": {"mode": "synthetic"},
            **config,
        }

    def night(
        self, engine: Engine | None = None, *, limit: int | None = None, accept_loss: Sequence[str] = ()
    ) -> RunOutcome:
        """One whole run."""
        with self._run(engine, limit, accept_loss) as run:
            for name, step in run.steps:
                run.carry_out(name, step)
            return run.outcome()

    def killed_before(self, step: str, engine: Engine | None = None) -> None:
        """A run that does not come to `step`, as after a kill."""
        with self._run(engine, None) as run:
            for name, tasks in run.steps:
                if name == step:
                    return
                run.carry_out(name, tasks)

    def _run(self, engine: Engine | None, limit: int | None, accept_loss: Sequence[str] = ()) -> Run:
        config = parse_config(self.config, self.folder, "test")
        running = engine or LocalEngine(1)
        return Run(config, self.folder, self.layout, running, limit=limit, accept_loss=accept_loss)

    def copy(self, folder: Path) -> "Site":
        """A copy of its root, its tables and its configuration, to be changed; files that releases share stay links."""
        for name in ("tables", "warehouse", "warehouse.private"):
            if (self.folder / name).exists():
                subprocess.run(["cp", "-a", self.folder / name, folder / name], check=True)
        return Site(folder, deepcopy(self.config))

    @property
    def manifest(self) -> Manifest:
        release = current_release(self.layout)
        assert release is not None
        return read_manifest(release.manifest)

    def hashes(self, stage: str) -> dict[str, str]:
        """File to content hash of a stage's files in the current release."""
        tasks = self.manifest.tasks.items()
        return {
            path: file.sha256
            for key, entry in tasks
            if key.startswith(f"{stage}/")
            for path, file in entry.files.items()
        }

    def splits(self) -> dict[int, str]:
        """Subject to split, in the current release."""
        release = current_release(self.layout)
        assert release is not None
        return dict(pl.read_parquet(release.subject_splits).iter_rows())

    def change(self, table: str, old: str, new: str) -> None:
        """Replaces a text in a raw table."""
        path = self.folder / "tables" / f"{table}.csv"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
