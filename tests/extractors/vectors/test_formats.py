"""The same vectors in every format: one file an item, and one file for all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from extractors.items import FoundItem
from extractors.vectors.files import blocks_of, open_vectors, places_of
from extractors.vectors.settings import ImportedConfig
from tests.support.vectors import Array, declared, drawn, found, grid, trident, verdicts

DTYPES = {"float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}


def lists(features: Array, *, fixed: bool = True) -> pa.Array:
    values = pa.array(features.ravel(), DTYPES[str(features.dtype)])
    if fixed:
        return pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    offsets = np.arange(0, features.size + 1, features.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def parquet(path: Path, features: Array, coords: Array | None = None, *, keys: Any = None, **how: Any) -> None:
    columns: dict[str, Any] = {"features": lists(features, **how)}
    if coords is not None:
        columns["coords"] = pa.array(coords.tolist(), pa.list_(pa.int64()))
    if keys is not None:
        columns["item"] = keys
    pq.write_table(pa.table(columns), path, row_group_size=700)


def read(imported: ImportedConfig, item: FoundItem) -> tuple[Array, Array]:
    """An item's vectors and places, as an import reads them."""
    with open_vectors(imported.path / item.paths[0], imported) as opened:
        held = next(held for held in opened.held() if held.member == item.geometry["member"])
        vectors = np.concatenate([np.array(block) for block in blocks_of(opened, held, imported)])
        assert item.units_expected is not None
        return vectors, places_of(opened, held, item.units_expected)


WRITERS: dict[str, Callable[[Path, Array, Array], None]] = {
    "hdf5": lambda path, features, coords: trident(path.with_suffix(".h5"), features, coords) and None,
    "safetensors": lambda path, features, coords: save_file(
        {"features": features, "coords": coords}, path.with_suffix(".safetensors")
    ),
    "parquet": lambda path, features, coords: parquet(path.with_suffix(".parquet"), features, coords),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", WRITERS)
def test_one_file_an_item(tmp_path: Path, kind: str, dtype: str) -> None:
    features, coords = drawn(2500, 8, dtype=dtype), grid(2500)
    WRITERS[kind](tmp_path / "a", features, coords)
    imported = declared(tmp_path, format=kind, dtype=dtype)
    item = found(imported)["a"]
    vectors, places = read(imported, item)
    assert item.verdict == "ok" and item.units_expected == 2500 and item.geometry["coords"]
    assert vectors.dtype == dtype and np.array_equal(vectors, features)
    assert places.dtype == np.int32 and np.array_equal(places, coords)


def test_every_format_gives_one_digest(tmp_path: Path) -> None:
    features, coords = drawn(2500, 8), grid(2500)
    digests = set()
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        write(tmp_path / kind / "a", features, coords)
        digests.add(found(declared(tmp_path / kind, format=kind))["a"].geometry["digest"])
    assert len(digests) == 1


def test_npy_has_no_places(tmp_path: Path) -> None:
    features = drawn(5, 8)
    np.save(tmp_path / "a.b.npy", features)
    np.save(tmp_path / "columns.npy", np.asfortranarray(features))
    np.save(tmp_path / "big.npy", features.astype(">f2"))
    imported = declared(tmp_path, format="npy")
    items = found(imported)
    assert {name: item.verdict for name, item in items.items()} == dict.fromkeys(("a.b", "big", "columns"), "ok")
    for item in items.values():
        vectors, places = read(imported, item)
        assert np.array_equal(vectors, features) and places.tolist() == [[0], [1], [2], [3], [4]]
    assert len({item.geometry["digest"] for item in items.values()}) == 1


def test_pickles_are_refused_and_never_read(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> Any:
            return ran.touch, ()

    harm = np.empty((2, 8), dtype=object)
    harm[:] = Harm()
    np.save(tmp_path / "a.npy", harm, allow_pickle=True)
    np.save(tmp_path / "b.npy", drawn(2, 8))
    assert verdicts(declared(tmp_path, format="npy")) == {"a": "failed_pickled", "b": "ok"}
    assert not ran.exists()


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    features = torch.randn(3, 8).to(torch.bfloat16)
    save_torch({"features": features}, tmp_path / "a.safetensors")
    imported = declared(tmp_path, format="safetensors", dtype="bfloat16")
    vectors, _ = read(imported, found(imported)["a"])
    assert np.array_equal(vectors, features.float().numpy())
    assert verdicts(declared(tmp_path, format="safetensors", dtype="float16")) == {"a": "failed_vector_dtype"}


@pytest.mark.parametrize("kind", ["safetensors", "npy", "parquet"])
def test_cut_files(tmp_path: Path, kind: str) -> None:
    features = drawn(300, 8)
    for name in ("cut", "whole"):
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", features)
        else:
            WRITERS[kind](tmp_path / name, features, grid(300))
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(cut.read_bytes()[:-40])
    assert verdicts(declared(tmp_path, format=kind)) == {"cut": "failed_unreadable", "whole": "ok"}


def test_many_items_in_one_safetensors_file(tmp_path: Path) -> None:
    tensors = {"S.1/features": drawn(3, 8), "S.1/coords": grid(3), "a/b/features": drawn(2, 8, seed=1)}
    save_file(tensors, tmp_path / "all.safetensors")
    imported = declared(tmp_path / "all.safetensors", format="safetensors")
    items = found(imported)
    assert sorted(items) == ["S.1", "a/b"] and not items["a/b"].geometry["coords"]
    assert np.array_equal(read(imported, items["a/b"])[0], tensors["a/b/features"])


KEYS = ["S.2", "S.1", "S.1", "S.3", "S.2", "S.2"]
ROWS = {"S.2": [0, 4, 5], "S.1": [1, 2], "S.3": [3]}


@pytest.mark.parametrize("fixed", [True, False])
def test_many_items_in_one_parquet_file(tmp_path: Path, fixed: bool) -> None:
    features, coords = drawn(6, 8), grid(6)
    path = tmp_path / "all.parquet"
    parquet(path, features, coords, keys=KEYS, fixed=fixed)
    imported = declared(path, format="parquet")
    items = found(imported)
    assert {name: item.units_expected for name, item in items.items()} == {"S.1": 2, "S.2": 3, "S.3": 1}
    for name, rows in ROWS.items():
        vectors, places = read(imported, items[name])
        assert np.array_equal(vectors, features[rows]) and np.array_equal(places, coords[rows])


def test_many_items_in_one_array(tmp_path: Path) -> None:
    features, path = drawn(6, 8), tmp_path / "all.npy"
    np.save(path, features)
    pl.DataFrame({"item": KEYS[::-1], "row": range(5, -1, -1)}).write_csv(tmp_path / "rows.csv")
    imported = declared(path, format="npy", index=tmp_path / "rows.csv")
    items = found(imported)
    for name, rows in ROWS.items():
        assert np.array_equal(read(imported, items[name])[0], features[rows])


def test_two_rows_of_one_item_are_two_vectors_where_an_item_has_one(tmp_path: Path) -> None:
    features, path = drawn(6, 8), tmp_path / "all.parquet"
    parquet(path, features, keys=KEYS)
    assert verdicts(declared(path, format="parquet", shape="item")) == {
        "S.1": "failed_duplicate_vectors", "S.2": "failed_duplicate_vectors", "S.3": "ok"
    }  # fmt: skip


def test_rows_of_other_widths_are_their_items_own(tmp_path: Path) -> None:
    widths = [8, 8, 9, 8, 8, 7]
    values = pa.array(np.arange(sum(widths)), pa.float16(), from_pandas=False)
    features = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *widths]), pa.int32()), values)
    pq.write_table(pa.table({"item": ["a", "a", "b", "c", "d", "d"], "features": features}), tmp_path / "all.parquet")
    assert verdicts(declared(tmp_path / "all.parquet", format="parquet")) == {
        "a": "ok", "b": "failed_vector_width", "c": "ok", "d": "failed_vector_width"
    }  # fmt: skip


def test_names_as_categories_are_texts(tmp_path: Path) -> None:
    parquet(tmp_path / "all.parquet", drawn(6, 8), keys=pa.array(KEYS).dictionary_encode())
    assert set(verdicts(declared(tmp_path / "all.parquet", format="parquet"))) == set(ROWS)


def test_a_folder_of_files_with_many_items(tmp_path: Path) -> None:
    parquet(tmp_path / "part-0.parquet", drawn(6, 8), keys=KEYS)
    parquet(tmp_path / "part-1.parquet", drawn(6, 8, seed=1), keys=["T.1", "T.1", "S.3", "T.2", "T.2", "T.2"])
    assert verdicts(declared(tmp_path, format="parquet", per_file="many")) == {
        "S.1": "ok", "S.2": "ok", "S.3": "failed_duplicate_vectors", "T.1": "ok", "T.2": "ok"
    }  # fmt: skip


def test_an_item_without_places_costs_no_other_item_of_its_table(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    vectors = drawn(3, 8, dtype="float32").tolist()
    places = [None, [256, 512], [512, 512]]
    pq.write_table(
        pa.table(
            {
                "item": ["a", "b", "b"],
                "features": pa.array(vectors, pa.list_(pa.float32())),
                "coords": pa.array(places, pa.list_(pa.int32())),
            }
        ),
        path,
    )
    assert verdicts(declared(path, format="parquet", dtype="float32")) == {"a": "failed_unreadable", "b": "ok"}
