"""A run that is told to end tells its engine, which waits for no task that is under way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from flows.runs.run import Run
from pipelines.config import parse_config
from pipelines.engine.task import Task
from warehouse.layout import Layout


class Engine:
    """Runs nothing, and notes why it ended."""

    workers = 1

    def __init__(self) -> None:
        self.ended_by: list[type[BaseException] | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.ended_by.append(kind)

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        raise AssertionError


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_engine_knows_what_ended_the_run(tmp_path: Path, kind: type[BaseException]) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("patients", "encounters", "diagnoses", "procedures", "medications", "deaths", "labs"):
        (tables / f"{name}.csv").touch()
    source = {"source": "simulated-hospital", "path": str(tables)}
    config = parse_config({"sources": [source], "deid": {"mode": "synthetic"}}, tmp_path, "test")
    engine = Engine()
    with pytest.raises(kind), Run(config, tmp_path, Layout(tmp_path / "root"), engine):
        raise kind
    assert engine.ended_by == [kind]
