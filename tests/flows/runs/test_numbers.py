"""How many buckets and pack groups a root has where the configuration leaves them open."""

from pathlib import Path
from typing import Any

import pytest

from flows.runs.paths import configured
from flows.runs.root import (
    BUCKET_BYTES,
    GROUP_BYTES,
    MOST_BUCKETS,
    bind_root,
    suitable_buckets,
    suitable_groups,
    with_numbers,
)
from flows.runs.settings import RunSettings
from pipelines.config import RunConfig, parse_config
from warehouse.errors import TimeloomError
from warehouse.layout import Layout


def config_of(folder: Path, **keys: Any) -> RunConfig:
    source = {"source": "simulated-hospital", "path": str(folder / "tables")}
    return parse_config({"sources": [source], "deid": {"mode": "synthetic"}, **keys}, folder, "test")


def export(folder: Path, size: int) -> None:
    (folder / "tables").mkdir(exist_ok=True)
    for name in ("patients", "encounters", "diagnoses", "procedures", "medications", "deaths"):
        (folder / "tables" / f"{name}.csv").touch()
    with (folder / "tables" / "labs.csv").open("wb") as file:
        file.truncate(size)


@pytest.mark.parametrize(("buckets", "packed"), [(2, 0), (2, 1), (2, 2), (4, 2.01), (64, 63.5), (MOST_BUCKETS, 10**5)])
def test_a_bucket_has_some_megabytes_of_the_export(buckets: int, packed: float) -> None:
    assert suitable_buckets([packed * BUCKET_BYTES]) == suitable_buckets([packed * BUCKET_BYTES, 0]) == buckets


def test_a_root_keeps_the_number_that_suited_its_first_export(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root")
    export(tmp_path, 8 * 9 * BUCKET_BYTES)
    first = with_numbers(config_of(tmp_path, buckets="auto"), tmp_path, layout)
    assert first.buckets == 10, "text counts as an eighth of itself"
    layout.root.mkdir()
    bind_root(layout, first, None, new=True)
    export(tmp_path, 8 * 99 * BUCKET_BYTES)
    assert with_numbers(config_of(tmp_path, buckets="auto"), tmp_path, layout).buckets == 10


def test_a_number_that_is_named_stands(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root")
    export(tmp_path, 80 * BUCKET_BYTES)
    assert with_numbers(config_of(tmp_path, buckets=7), tmp_path, layout).buckets == 7
    assert with_numbers(config_of(tmp_path), tmp_path, layout).buckets == 64
    assert with_numbers(config_of(tmp_path), tmp_path, layout, unnamed=True).buckets == 10
    assert with_numbers(config_of(tmp_path, buckets="auto", pack_groups=90), tmp_path, layout).buckets == 90


@pytest.mark.parametrize(("groups", "packed"), [(1, 0), (1, 1), (2, 1.01), (3, 2.5)])
def test_a_pack_group_has_some_of_the_export(groups: int, packed: float) -> None:
    assert suitable_groups([packed * GROUP_BYTES / 2] * 2) == groups


@pytest.mark.parametrize("written", [{}, {"pack_groups": "auto"}])
def test_pack_groups_are_left_open_unless_they_are_named(tmp_path: Path, written: dict[str, Any]) -> None:
    layout = Layout(tmp_path / "root")
    export(tmp_path, 8 * (2 * GROUP_BYTES + 1))
    first = with_numbers(config_of(tmp_path, **written), tmp_path, layout)
    assert (first.buckets, first.pack_groups) == (64, 3)
    assert with_numbers(config_of(tmp_path, buckets=2, **written), tmp_path, layout).pack_groups == 2
    assert with_numbers(config_of(tmp_path, pack_groups=5), tmp_path, layout).pack_groups == 5
    layout.root.mkdir()
    bind_root(layout, first, None, new=True)
    export(tmp_path, 8 * 9 * GROUP_BYTES)
    later = with_numbers(config_of(tmp_path, **written), tmp_path, layout)
    assert later.pack_groups == 3, "what its root was made with stands"


def test_a_later_night_of_a_root_that_was_given_its_numbers_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "night.yaml"
    config.write_text(
        "sources: [{source: simulated-hospital, path: tables}]\ndeid: {mode: synthetic}\nbuckets: auto\n", "utf-8"
    )
    export(tmp_path, 8 * (2 * GROUP_BYTES + 1))
    settings = RunSettings(config, tmp_path / "root")
    asked, layout = configured(settings)
    first = with_numbers(asked, tmp_path, layout)
    assert first.pack_groups == 3 and first.buckets > 2
    layout.root.mkdir()
    bind_root(layout, first, None, new=True)
    (layout.releases / "first").mkdir(parents=True)
    configured(settings)
    with pytest.raises(TimeloomError, match="made with another number of pack groups"):
        config.write_text(config.read_text("utf-8") + "pack_groups: 2\n", "utf-8")
        configured(settings)


def test_what_is_left_open_is_no_key(tmp_path: Path) -> None:
    assert "left_open" not in config_of(tmp_path, buckets="auto").model_dump()
    with pytest.raises(TimeloomError, match="buckets: auto"):
        config_of(tmp_path, left_open=["buckets"])
