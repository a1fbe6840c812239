"""Every test of this folder is marked `whole`; the export that nights start from."""

from pathlib import Path

import pytest

from extractors.simulate import simulate


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.whole)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated export of 40 subjects; copy what you change."""
    folder = tmp_path_factory.mktemp("export") / "hospital"
    simulate(folder, subjects=40, seed=3)
    return folder
