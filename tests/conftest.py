"""Fixtures shared by all tests."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real_data import REAL_DATA

# Of several test processes, and of whatever they start, each has one core: threads of torch that wait for one another
# on it took four times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

WHOLE = Path(__file__).parent / "whole"
# A test that uses one of these takes long, wherever it stands.
LONG_FIXTURES = {"real_data", "demo_folder", "demo_release"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as `whole` what stands in tests/whole or uses real data or the demo; other long tests carry the mark.

    Files with long tests come first: where one of them came last, a test process waited for the other one's.
    """
    for item in items:
        if WHOLE in item.path.parents or LONG_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.whole)
    long = {item.path for item in items if item.get_closest_marker("whole")}
    items.sort(key=lambda item: (WHOLE not in item.path.parents, item.path not in long))


@pytest.fixture(scope="session", autouse=True)
def undurable() -> Iterator[None]:
    """Files need outlive no loss of power: waiting for the disk took tests a fifth of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: $TIMELOOM_DATA, else ../shared/data beside the repository; skips where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data: set TIMELOOM_DATA to its folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of 150 subjects, run for real and published: `hospital/`, `demo.yaml` and `warehouse/`. Change nothing.

    Test processes beside one another have one demo: who needs it first makes it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, published = shared / "demo", shared / "demo.published"
    with (shared / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not published.exists():
            command = [sys.executable, "-m", "flows.cli", "demo", "--root", str(folder), "--subjects", "150"]
            done = subprocess.run([*command, "--direct"], capture_output=True, text=True, check=False)
            assert done.returncode == 2, done.stderr
            published.touch()
    return folder


@pytest.fixture(scope="session")
def demo_release(demo_folder: Path) -> Path:
    """The demo's warehouse."""
    return demo_folder / "warehouse"
