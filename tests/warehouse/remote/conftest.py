"""A root with a release, and an S3 server with faults to order."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.object_store import Store, environment, serving
from tests.support.tokens.markov import fabricate, markov_timelines
from warehouse.embeddings.store import close_stores
from warehouse.layout import Layout
from warehouse.remote import place
from warehouse.sealed import write_sealed

SETTINGS = {"name": "clinic", "buckets": 4, "key": "0123"}


def publish_night(root: Path, name: str = "one", *, subjects: int = 78) -> Path:
    """Publishes a release of the first so many of 90 subjects in a root."""
    fabricate(root, markov_timelines(90, seed=3)[:subjects], name=name, row_group_rows=7)
    write_sealed(Layout(root).settings, SETTINGS)
    close_stores()
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_night(tmp_path_factory.mktemp("remote") / "clinic")


@pytest.fixture(scope="session")
def server() -> Iterator[Store]:
    with serving() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The server, its faults forgotten, with an environment that names it."""
    for name, value in environment(server.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(place, "FIRST_PAUSE", 0.01)
    server.faults.reset()
    return server


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A root of one release, to change."""
    yield Path(shutil.copytree(made, tmp_path / "clinic", symlinks=True))
    close_stores()


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A place in a folder."""
    return f"file://{tmp_path}/place"
