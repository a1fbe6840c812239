"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: $TIMELOOM_DATA, else ../shared/data beside the repository; skips where it is absent."""
    folder = Path(os.environ.get("TIMELOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set TIMELOOM_DATA to its folder")
    return folder
