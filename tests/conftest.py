"""Fixtures shared by all tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: $TIMELOOM_DATA, else ../shared/data beside the repository; skips where it is absent."""
    folder = Path(os.environ.get("TIMELOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set TIMELOOM_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of 150 subjects, run for real and published: `hospital/`, `demo.yaml` and `warehouse/`. Change nothing."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "flows.cli", "demo", "--root", str(folder), "--subjects", "150", "--direct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return folder


@pytest.fixture(scope="session")
def demo_release(demo_folder: Path) -> Path:
    """The demo's warehouse."""
    return demo_folder / "warehouse"
