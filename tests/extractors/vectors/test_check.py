"""A declaration that the files do not fit is one line before any work, and names no file."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from extractors.vectors.check import check_vectors
from tests.extractors.vectors.test_formats import parquet
from tests.support.vectors import SECRET, declared, drawn, trident, trident_slide
from warehouse.errors import TimeloomError


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"width": 9}, "the vectors' width is 8, and 9 is declared"),
        ({"dtype": "float32"}, "the vectors are float16, and float32 is declared"),
        ({"shape": "item"}, "an item's vectors have 2 axes, which is not `shape: item`"),
        ({"features": "embedding"}, "a file has no embedding"),
        ({"format": "npy"}, "no npy file"),
    ],
)
def test_what_no_file_fits_is_said(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    trident(tmp_path / f"{SECRET}.h5", drawn(4, 8))
    check_vectors(declared(tmp_path), "x.imported")
    with pytest.raises(TimeloomError) as raised:
        check_vectors(declared(tmp_path, **keys), "x.imported")
    assert said in str(raised.value) and "x.imported" in str(raised.value) and SECRET not in str(raised.value)


def test_some_files_that_do_not_fit_have_verdicts_instead(tmp_path: Path) -> None:
    trident(tmp_path / "a.h5", drawn(4, 9))
    (tmp_path / "b.h5").write_bytes(b"cut")
    trident(tmp_path / "c.h5", np.zeros((0, 8), np.float16))
    trident(tmp_path / "d.h5", drawn(4, 8))
    check_vectors(declared(tmp_path), "x")


def test_slide_files_taken_for_patch_files(tmp_path: Path) -> None:
    trident_slide(tmp_path / "a.h5", drawn(8))
    check_vectors(declared(tmp_path, shape="item"), "x")
    with pytest.raises(TimeloomError, match=r"1 axes.*shape: units.*item"):
        check_vectors(declared(tmp_path), "x")


def test_ids_are_texts(tmp_path: Path) -> None:
    parquet(tmp_path / "all.parquet", drawn(2, 8), keys=[7, 8])
    with pytest.raises(TimeloomError, match="leading zeros"):
        check_vectors(declared(tmp_path / "all.parquet", format="parquet"), "x")


def test_variable_lists_of_another_width(tmp_path: Path) -> None:
    parquet(tmp_path / "all.parquet", drawn(2, 8), keys=["a", "b"], fixed=False)
    with pytest.raises(TimeloomError, match="width is 8, and 9"):
        check_vectors(declared(tmp_path / "all.parquet", format="parquet", width=9), "x")


def test_one_file_for_all_that_is_still_written(tmp_path: Path) -> None:
    parquet(tmp_path / "all.parquet", drawn(2, 8), keys=["a", "b"])
    check_vectors(declared(tmp_path / "all.parquet", format="parquet"), "x")
    (tmp_path / "all.parquet.lock").touch()
    with pytest.raises(TimeloomError, match=r"x\.path is not finished"):
        check_vectors(declared(tmp_path / "all.parquet", format="parquet"), "x")


def test_pickles(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TimeloomError, match="pickled"):
        check_vectors(declared(tmp_path, format="npy"), "x")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"item": ["a", "b"]}, "names 2 rows, and the array has 3"),
        ({"name": ["a", "b", "c"]}, "no column `item`"),
        ({"item": ["a", "b", "c"], "row": ["0", "1", "1"]}, "stands twice"),
        ({"item": ["a", "b", "c"], "row": ["0", "x", "1"]}, "no number"),
    ],
)
def test_tables_that_do_not_name_the_rows(tmp_path: Path, table: dict[str, list[str]], said: str) -> None:
    np.save(tmp_path / "all.npy", drawn(3, 8))
    pl.DataFrame(table).write_csv(tmp_path / "rows.csv")
    with pytest.raises(TimeloomError, match=said):
        check_vectors(declared(tmp_path / "all.npy", format="npy", index=tmp_path / "rows.csv"), "x")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dtype": "bfloat16"}, "safetensors files alone"),
        ({"index": "rows.csv"}, "of npy files alone"),
        ({"format": "npy", "per_file": "many"}, "needs `index`"),
        ({"name": "../uni"}, "name"),
        ({"width": 0}, "width"),
    ],
)
def test_declarations_that_contradict_themselves(tmp_path: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        declared(tmp_path, **keys)
