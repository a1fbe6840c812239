"""A modality is a package, an input and four lines: a toy one goes through a whole night with no other file touched."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from extractors.simulate import simulate
from tests.support.toy_modality import with_waves, write_wave

pytestmark = pytest.mark.whole
SUBJECTS = 20
NIGHT = """
import json, sys
from pathlib import Path
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from validation.verify import verify_release
from warehouse import Release
from warehouse.layout import Layout
from warehouse.publish import current_release

if __name__ == "__main__":
    with open_run(RunSettings(Path("run.yaml"), None, "local", workers=2), None) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    tree = current_release(Layout(Path("warehouse")))
    vectors = {}
    for split in ("train", "tuning", "held_out"):
        for batch in Release.open(Path("warehouse")).shards("mehrt", split=split).batches(2):
            for row, (place, vector) in enumerate(
                zip(batch.item_positions["waves"], batch.item_vectors["waves"], strict=True)
            ):
                vectors[batch.item_keys["waves"][row]] = [int(batch.input_ids[tuple(place)]), len(vector)]
    wrong = [str(finding) for finding in verify_release(Path("warehouse")) if not finding.ok]
    print(json.dumps({"release": str(tree.path), "vectors": vectors, "wrong": wrong}))
"""


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a site with waves of six patients, one of them damaged, and what a night and a reader said."""
    folder = tmp_path_factory.mktemp("waves")
    with_waves(folder / "code")
    simulate(folder / "hospital", subjects=SUBJECTS, seed=3, imaging_share=0.0)
    for number in range(6):
        write_wave(folder / "waves" / f"{number}.wave", f"P{number + 1:06d}", "2021-03-04T05:06:07", 32 * 9, number)
    (folder / "waves" / "5.wave").write_text("P000006\n2021-03-04T05:06:07\n1.0\n1.x\n")
    config = {
        "root": "warehouse",
        "sources": [{"source": "simulated-hospital", "path": "hospital/tables"}],
        "modalities": {"waves": {"path": "waves", "window": 32, "encoder": {"name": "random-waves", "width": 48}}},
        "deid": {"mode": "synthetic"},
        "buckets": 2,
        "limits": {"unparsable_times": 0.05},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    (folder / "code" / "night.py").write_text(NIGHT)
    # A script's own folder stands first in the path, also in the processes that it starts.
    done = subprocess.run(
        [sys.executable, str(folder / "code" / "night.py")], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def release(night: tuple[Path, dict[str, Any]]) -> Path:
    return Path(night[0], night[1]["release"])


def test_its_items_are_indexed_and_embedded(release: Path) -> None:
    items = pl.concat([pl.read_parquet(path) for path in sorted(release.rglob("items/*.parquet"))])
    assert Counter(items["verdict"]) == {"ok": 5, "failed_unreadable": 1}
    usable = items.filter(pl.col("verdict") == "ok")
    assert set(usable["modality"]) == {"waves"} and set(usable["units_encoded"]) == {9} and set(usable["dim"]) == {48}


def test_it_is_aligned_and_counted(release: Path) -> None:
    events = pl.concat([pl.read_parquet(path) for path in sorted(release.rglob("data/**/*.parquet"))], how="diagonal")
    assert (events["code"] == "RECORDING/WAVES").sum() == 5
    subjects = pl.concat(
        [pl.read_parquet(path) for path in sorted(release.rglob("subjects/*.parquet")) if "measures" not in path.parts]
    )
    assert subjects["waves"].sum() == 5


def test_it_is_tokenised_packed_and_read(night: tuple[Path, dict[str, Any]]) -> None:
    assert list(night[1]["vectors"].values()) == [[9, 48]] * 5


def test_it_is_reported_and_verified(night: tuple[Path, dict[str, Any]], release: Path) -> None:
    report = next(release.rglob("report.html")).read_text(encoding="utf-8")
    assert "structured only" in report and ">wave<" in report
    assert night[1]["wrong"] == []
