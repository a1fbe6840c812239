"""A root belongs to one site, and keeps what it was made with."""

import json
from pathlib import Path

import pytest

from flows.runs.root import bind_root
from pipelines.config import RunConfig, parse_config
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.sealed import read_sealed


def config(name: str | None = None, **keys: object) -> RunConfig:
    named = {} if name is None else {"name": name}
    return parse_config({"sources": [{"source": "omop", "path": "."}], **named, **keys}, Path(), "run.yaml")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "warehouse")
    made.root.mkdir()
    return made


def test_another_hospitals_root_is_refused_by_its_name(layout: Layout) -> None:
    bind_root(layout, config("north"), None, new=True)
    bind_root(layout, config("north"), None, new=False)
    for other in (config("south"), config(), config("south", deid={"mode": "synthetic"})):
        with pytest.raises(TimeloomError, match="is the root of north, and not of"):
            bind_root(layout, other, None, new=False)


def test_the_name_comes_before_a_key_that_never_was(layout: Layout) -> None:
    bind_root(layout, config("demo", deid={"mode": "synthetic"}), None, new=True)
    assert not (layout.private / "deid.key").exists()
    with pytest.raises(TimeloomError, match="is the root of demo"):
        bind_root(layout, config("north"), None, new=False)
    with pytest.raises(TimeloomError, match=r"was made with deid\.mode: synthetic"):
        bind_root(layout, config("demo"), None, new=False)


def test_a_root_of_an_older_version_has_no_name(layout: Layout) -> None:
    bind_root(layout, config("north"), None, new=True)
    older = {name: value for name, value in read_sealed(layout.settings).items() if name != "name"}
    layout.settings.write_text(json.dumps(older), encoding="utf-8")
    bind_root(layout, config("south"), None, new=False)
    with pytest.raises(TimeloomError, match="another number of buckets"):
        bind_root(layout, config("south", buckets=3), None, new=False)
