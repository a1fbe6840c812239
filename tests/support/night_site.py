"""A small hospital with images and a warehouse, run stage by stage in this process."""

from pathlib import Path
from typing import Any

from extractors.simulate import simulate
from flows.runs.run import Run, RunOutcome
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from pipelines.engine.task import Engine
from warehouse.layout import Layout
from warehouse.manifest import Manifest, read_manifest
from warehouse.publish import current_release

SUBJECTS = 24
BUCKETS = 3


def make_export(folder: Path) -> Path:
    """A simulated export with tables, CT and slides; it is only read."""
    simulate(folder, subjects=SUBJECTS, seed=3)
    return folder


def shuffled_tables(export: Path, folder: Path) -> Path:
    """A copy of the export's tables, each with its rows in the opposite order."""
    folder.mkdir(parents=True)
    for table in sorted((export / "tables").glob("*.csv")):
        header, *rows = table.read_text(encoding="utf-8").splitlines()
        (folder / table.name).write_text("\n".join([header, *reversed(rows)]) + "\n", encoding="utf-8")
    return folder


class NightSite:
    """One warehouse over an export.

    Args:
        tables: the folder of the tables; the export's own where None.
    """

    def __init__(self, folder: Path, export: Path, tables: Path | None = None) -> None:
        self.folder, self.layout = folder, Layout(folder / "warehouse")
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"match": "path", "subject_id": "patient_id", "time": "collection_time"}
        crosswalk = {"file": str(export / "slides" / "manifest.csv"), "match": "path", "columns": columns}
        self.config: dict[str, Any] = {
            "sources": [{"source": "simulated-hospital", "path": str(tables or export / "tables")}],
            "deid": {"mode": "synthetic"},
            "buckets": BUCKETS,
            "limits": {"unparsable_times": 0.05},
            "profiles": {"mehrt": {"plans": {"nested": {"budgets": [200]}}}},
            **image_settings(export, crosswalk),
        }

    def night(self, engine: Engine | None = None) -> RunOutcome:
        """One whole run."""
        config = parse_config(self.config, self.folder, "test")
        with Run(config, self.folder, self.layout, engine or LocalEngine(1)) as run:
            for name, step in run.steps:
                run.carry_out(name, step)
            return run.outcome()

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


def image_settings(export: Path, crosswalk: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that names modalities, their files and their encoders."""
    return {
        "modalities": {
            "ct": {"path": str(export / "ct"), "encoder": {"name": "random-dinov2", "width": 1024}},
            "wsi": {
                "path": str(export / "slides"),
                "crosswalk": crosswalk,
                "encoder": {"name": "random-dinov2", "width": 1536},
            },
        },
    }
