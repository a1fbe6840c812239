"""A release to read, and a copy of it to damage."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.releases import Timeline
from tests.support.tokens.markov import fabricate, markov_timelines
from warehouse import Release
from warehouse.embeddings.store import close_stores


@pytest.fixture(scope="module")
def lines() -> list[Timeline]:
    return markov_timelines(90, seed=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, lines: list[Timeline]) -> Path:
    # Seven rows a row group, so that a shard has several.
    return fabricate(tmp_path_factory.mktemp("reader") / "root", lines, row_group_rows=7)


@pytest.fixture(scope="module")
def release(root: Path) -> Release:
    return Release.open(root)


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(root, tmp_path / "copy", symlinks=True))
    close_stores()
