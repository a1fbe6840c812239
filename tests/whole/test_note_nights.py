"""A night with notes: vectors and sequences, texts in the release where they are declared, and nowhere else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from extractors.simulate import simulate
from tests.support.notes import write_discharge
from warehouse import Release

# In `make proof`: three nights with two networks of notes.
pytestmark = [pytest.mark.whole, pytest.mark.proof]
TEXT = "Xanthippe Quux was seen with a cough. "
TWO = [{"name": "random-bert", "width": 24, "output": "sequence"}, {"name": "random-bert", "alias": "b", "width": 16}]
ROWS: list[dict[str, Any]] = [
    {
        "note_id": f"{number}", "subject_id": f"P{number % 7 + 1:06d}", "hadm_id": number,
        "text": f"Visit {number}: {TEXT * (number + 1)}", "charttime": "2021-03-04 05:06:07",
        "storetime": f"2021-03-{number + 5:02d} 10:00:00",
    }
    for number in range(9)
] + [{"note_id": "empty", "subject_id": "P000001", "text": "___ \n ---"}]  # fmt: skip


def night(folder: Path, **block: Any) -> "subprocess.CompletedProcess[str]":
    usual = {"name": "random-bert", "width": 24, "output": "sequence"}
    settings = {"path": "notes", "source": "mimic-iv", "window": 64, "stride": 50, "at_most": 4, "encoder": usual}
    settings = {key: value for key, value in (settings | block).items() if value is not None}
    config = {
        "root": "warehouse",
        "sources": [{"source": "simulated-hospital", "path": "hospital/tables"}],
        "modalities": {"note": settings},
        "profiles": {"mehrt": {"encoders": {"note": "random-bert"}}},
        "deid": {"mode": "synthetic"},
        "buckets": 2,
        "limits": {"unparsable_times": 0.05},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "flows.cli", "run", "run.yaml", "--direct", "--workers", "2"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    simulate(folder / "hospital", subjects=20, seed=3, imaging_share=0.0)
    write_discharge(folder / "notes", ROWS)
    return folder


def words_below(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and b"Xanthippe" in path.read_bytes()]


def test_notes_become_sequences_and_texts_come_and_go_with_their_key(site: Path) -> None:
    done = night(site)
    assert done.returncode in (0, 2), done.stderr
    assert "Xanthippe" not in done.stdout + done.stderr and words_below(site / "warehouse") == []
    release = Release.open(site / "warehouse")
    items = release.items().collect()
    assert dict(items.group_by("verdict").len().iter_rows()) == {"ok": 9, "refused_empty": 1}
    assert release.texts().collect().is_empty() and release.manifest.texts == 0
    usable = items.filter(pl.col("verdict") == "ok")
    for key, units, geometry in usable.select("item_key", "units_encoded", "geometry").iter_rows():
        vectors = release.vector("note", key)
        tokens = min(yaml.safe_load(geometry)["tokens"], 62 + 3 * 50)
        # Every window has its two marks, and tokens where windows overlap are in both.
        assert vectors.shape == (tokens + 2 * units + 12 * (units - 1), 24)
    assert (usable["available_time"] > usable["time"]).all()

    done = night(site, keep_text=True, encoder=None, encoders=TWO)
    assert done.returncode in (0, 2), done.stderr
    assert "Xanthippe" not in done.stdout + done.stderr
    release = Release.open(site / "warehouse")
    texts = release.texts().collect()
    assert sorted(texts["text"]) == sorted(row["text"] for row in ROWS[:9]) and release.manifest.texts == 9
    assert set(texts["item_key"]) == set(usable["item_key"])
    assert "holds the texts" in (release.path / "quality" / "report.html").read_text(encoding="utf-8")
    logs = [path for path in words_below(site / "warehouse") if "/texts/" not in path]
    assert logs == []

    done = night(site)
    assert done.returncode in (0, 2), done.stderr
    release = Release.open(site / "warehouse")
    assert release.texts().collect().is_empty() and not (release.path / "texts").exists()
