"""A simulated hospital that lives through several nights."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl

from flows.runs.run import Run, RunOutcome
from pipelines.config import parse_config
from pipelines.engine.local import LocalEngine
from warehouse.layout import Layout
from warehouse.publish import current_release


class Site:
    """A hospital with its own copy of the export, and a warehouse."""

    def __init__(self, folder: Path, export: Path) -> None:
        self.folder = folder
        self.layout = Layout(folder / "warehouse")
        shutil.copytree(export / "tables", folder / "tables")
        self.config: dict[str, Any] = {
            "sources": [{"source": "simulated-hospital", "path": "tables"}],
            "deid": {"mode": "synthetic"},
            "buckets": 4,
            "limits": {"unparsable_times": 0.01},
        }

    def night(self, until: str | None = None, limit: int | None = None) -> RunOutcome | None:
        """One run; `until` leaves it, like a kill, before that step."""
        config = parse_config(self.config, self.folder, "test")
        with Run(config, self.folder, self.layout, LocalEngine(1), limit=limit) as run:
            for name, step in run.steps:
                if name == until:
                    return None
                run.carry_out(name, step)
            return run.outcome()

    def splits(self) -> dict[int, str]:
        release = current_release(self.layout)
        assert release is not None
        return dict(pl.read_parquet(release.subject_splits).iter_rows())

    def change(self, table: str, old: str, new: str) -> None:
        path = self.folder / "tables" / f"{table}.csv"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
