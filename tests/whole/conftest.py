"""The export that nights start from."""

from pathlib import Path

import pytest

from extractors.simulate import simulate


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated export of 40 subjects with CT and slides; copy what you change."""
    folder = tmp_path_factory.mktemp("export") / "hospital"
    simulate(folder, subjects=40, seed=3, modalities=("ct", "wsi"))
    return folder
