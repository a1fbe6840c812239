"""How many buckets a root has where the configuration leaves it open."""

from pathlib import Path
from typing import Any

import pytest

from flows.runs.root import BUCKET_BYTES, MOST_BUCKETS, bind_root, suitable_buckets, with_buckets
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
    first = with_buckets(config_of(tmp_path, buckets="auto"), tmp_path, layout)
    assert first.buckets == 10, "text counts as an eighth of itself"
    layout.root.mkdir()
    bind_root(layout, first, None, new=True)
    export(tmp_path, 8 * 99 * BUCKET_BYTES)
    assert with_buckets(config_of(tmp_path, buckets="auto"), tmp_path, layout).buckets == 10


def test_a_number_that_is_named_stands(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root")
    export(tmp_path, 80 * BUCKET_BYTES)
    assert with_buckets(config_of(tmp_path, buckets=7), tmp_path, layout).buckets == 7
    assert with_buckets(config_of(tmp_path), tmp_path, layout).buckets == 64
    assert with_buckets(config_of(tmp_path), tmp_path, layout, unnamed=True).buckets == 10
    assert with_buckets(config_of(tmp_path, buckets="auto", pack_groups=90), tmp_path, layout).buckets == 90


def test_the_open_number_is_no_key_of_its_own(tmp_path: Path) -> None:
    assert "buckets_open" not in config_of(tmp_path, buckets="auto").model_dump()
    with pytest.raises(TimeloomError, match="buckets: auto"):
        config_of(tmp_path, buckets_open=True)
