"""The tables of docs/tasks.md are those of releases: of `timeloom demo`, and of the MIMIC-IV demo where it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# In `make proof` alone: a demo with images, and a night on real data.
pytestmark = pytest.mark.proof

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]


def printed(example: str, root: Path, *options: str) -> str:
    ran = subprocess.run(
        [sys.executable, f"docs/examples/{example}", str(root), *options],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.strip()


def page() -> str:
    return (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")


def test_of_the_demo(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    ran = subprocess.run([*COMMAND, "demo", "--root", str(root)], cwd=REPOSITORY, capture_output=True, check=False)
    assert ran.returncode == 2, "the demo's damaged images are quarantined"
    assert f"```\n{printed('tasks.py', root / 'warehouse')}\n```" in page()
    side = printed("probes.py", root / "warehouse", "--label", "3", "--length", "6")
    assert f"```\n{side}\n```" in page()


def test_of_the_mimic_iv_demo(tmp_path: Path, real_data: Path) -> None:
    config = {
        "name": "mimic-iv-demo",
        "sources": [{"source": "mimic-iv", "path": str(real_data / "mimic-iv-demo-2.2")}],
        "deid": {"mode": "limited", "subject_ids": "keep", "dates": "keep"},
        "buckets": 4,
        "splits": {"mehrt": None},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    night = [*COMMAND, "run", str(tmp_path / "run.yaml"), "--root", str(tmp_path / "root")]
    subprocess.run(night, cwd=REPOSITORY, capture_output=True, check=True)
    assert f"```\n{printed('tasks.py', tmp_path / 'root')}\n```" in page()
