"""What feature files of other programs do: every fault is a verdict of its item, and no other item suffers."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from extractors.trees import Entry, walk
from extractors.vectors.judge import KEY, beside, examine, items
from tests.support.vectors import (
    SECRET,
    clam,
    declared,
    drawn,
    found,
    grid,
    settings,
    trident,
    trident_slide,
    verdicts,
)


def test_names_with_many_dots_lose_the_format_s_ending_alone(tmp_path: Path) -> None:
    for name in ("S.1.A.h5", "S.1.B.h5", "S.1.A.svs.h5", "S.1.A.h5.h5", "007.h5", "7.HDF5"):
        trident(tmp_path / name, drawn(3, 8, seed=len(name)))
    assert set(verdicts(declared(tmp_path))) == {"S.1.A", "S.1.B", "S.1.A.svs", "S.1.A.h5", "007", "7"}


def test_one_name_in_two_folders_is_nobody_s_unless_paths_tell_them_apart(tmp_path: Path) -> None:
    trident(tmp_path / "left" / "a.h5", drawn(3, 8))
    trident(tmp_path / "right" / "a.h5", drawn(3, 8, seed=1))
    assert verdicts(declared(tmp_path)) == {"a": "failed_duplicate_vectors"}
    assert verdicts(declared(tmp_path, match="path")) == {"left/a": "ok", "right/a": "ok"}


@pytest.mark.parametrize(
    ("shape", "of_units", "of_item"),
    [
        ((5, 8), "ok", "failed_vector_shape"),
        ((1, 5, 8), "ok", "failed_vector_shape"),
        ((1, 8), "ok", "ok"),
        ((8,), "failed_vector_shape", "ok"),
        ((1, 1, 8), "ok", "failed_vector_shape"),
        ((2, 5, 8), "failed_vector_shape", "failed_vector_shape"),
        ((5, 1, 8), "failed_vector_shape", "failed_vector_shape"),
        ((1, 1, 5, 8), "failed_vector_shape", "failed_vector_shape"),
        ((8, 5), "failed_vector_width", "failed_vector_width"),
        ((9,), "failed_vector_width", "failed_vector_width"),
        ((0, 8), "failed_empty_bag", "failed_empty_bag"),
        ((0,), "failed_empty_bag", "failed_empty_bag"),
        ((), "failed_vector_width", "failed_vector_width"),
    ],
)
def test_the_table_of_shapes(tmp_path: Path, shape: tuple[int, ...], of_units: str, of_item: str) -> None:
    trident_slide(tmp_path / "a.h5", drawn(*shape))
    units = found(declared(tmp_path))["a"]
    item = found(declared(tmp_path, shape="item"))["a"]
    assert (units.verdict, item.verdict) == (of_units, of_item)
    if of_units == "ok":
        assert units.units_expected == (1 if shape[-2] == 1 else 5)
        assert units.geometry["squeezed"] == (len(shape) == 3)
    if of_item == "ok":
        assert item.units_expected == 1 and item.geometry["squeezed"] == (len(shape) == 2)


def test_what_coords_do_not_say_is_unknown_and_what_they_say_of_a_patient_is_not_read(tmp_path: Path) -> None:
    trident(tmp_path / "trident.h5", drawn(4, 8))
    clam(tmp_path / "clam.h5", drawn(4, 8))
    trident_slide(tmp_path / "bare.h5", drawn(4, 8))
    items = found(declared(tmp_path))
    assert {name: item.verdict for name, item in items.items()} == dict.fromkeys(items, "ok")
    assert items["trident"].geometry["patching"] == {
        "patch_size": 512, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20,
        "overlap": 0,
    }  # fmt: skip
    assert items["clam"].geometry["patching"] == items["bare"].geometry["patching"] == "unknown"
    assert [items[name].geometry["coords"] for name in ("trident", "clam", "bare")] == [True, True, False]
    assert SECRET not in str([item.geometry for item in items.values()])


@pytest.mark.parametrize(
    "coords",
    [grid(3), grid(5), np.zeros((4,), int), np.zeros((4, 5), int), grid(4) + 0.5, grid(4) + (1 << 40)],
    ids=["fewer", "more", "flat", "wide", "halves", "large"],
)
def test_coords_that_are_not_their_vectors(tmp_path: Path, coords: np.ndarray) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"], file["coords"] = drawn(4, 8), coords
    trident(tmp_path / "b.h5", drawn(4, 8))
    assert verdicts(declared(tmp_path)) == {"a": "failed_coords", "b": "ok"}
    assert verdicts(declared(tmp_path, coords=None)) == {"a": "ok", "b": "ok"}


def test_damage_is_each_file_s_own(tmp_path: Path) -> None:
    whole = trident(tmp_path / "whole.h5", drawn(600, 8))
    (tmp_path / "cut.h5").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "zeros.h5").write_bytes(bytes(64))
    (tmp_path / "nothing.h5").touch()
    trident(tmp_path / "width.h5", drawn(3, 9))
    trident(tmp_path / "dtype.h5", drawn(3, 8, dtype="float32"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["embedding"] = drawn(3, 8)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        features = drawn(3000, 8)
        features[-1, -1] = value
        trident(tmp_path / f"{name}.h5", features)
    assert verdicts(declared(tmp_path)) == {
        "whole": "ok", "cut": "failed_unreadable", "zeros": "failed_unreadable", "nothing": "failed_unreadable",
        "width": "failed_vector_width", "dtype": "failed_vector_dtype", "other": "failed_unreadable",
        "nan": "failed_not_finite", "inf": "failed_not_finite",
    }  # fmt: skip


def test_a_lock_beside_a_file_says_that_it_is_not_finished(tmp_path: Path) -> None:
    trident(tmp_path / "a.h5", drawn(3, 8))
    trident(tmp_path / "b.1.h5", drawn(3, 8, seed=1))
    for name in ("a.h5.lock", "b.1.lock", "never.written.h5.lock"):
        (tmp_path / name).touch()
    assert verdicts(declared(tmp_path)) == dict.fromkeys(("a", "b.1", "never.written"), "failed_unfinished")
    (tmp_path / "a.h5.lock").unlink()
    assert verdicts(declared(tmp_path))["a"] == "ok"


def test_a_lock_beside_a_file_of_many_items_is_a_lock_on_them_all(tmp_path: Path) -> None:
    for number in (0, 1):
        with h5py.File(tmp_path / f"part.{number}.h5", "w") as file:
            for name in ("a", "b"):
                file[f"{name}{number}/features"] = drawn(3, 8, seed=number)
    imported = declared(tmp_path, per_file="many")
    (tmp_path / "part.0.h5.lock").touch()
    findings = [
        finding for entry in walk(tmp_path) for finding in examine(settings(imported), entry).findings
    ]  # fmt: skip
    marked = beside(findings)
    found_in = {item.names[KEY]: item.verdict for item in items(settings(imported), marked)}
    assert found_in == {
        "a0": "failed_unfinished", "b0": "failed_unfinished", "a1": "ok", "b1": "ok", "part.0": "failed_unfinished"
    }  # fmt: skip
    freed = beside([finding for finding in marked if not finding.value["lock"]])
    assert {item.verdict for item in items(settings(imported), freed)} == {"ok"}


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    trident(Path(os.fsdecode(os.fsencode(tmp_path) + b"/sl\xffide.h5")), drawn(3, 8))
    (item,) = found(declared(tmp_path)).values()
    assert item.verdict == "ok" and item.names["path"] == "sl\ufffdide" and item.names[KEY] == "sl\udcffide"


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    trident(tmp_path / "elsewhere" / "a.h5", drawn(3, 8))
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(tmp_path / "elsewhere" / "a.h5"), "features")
    assert verdicts(declared(tmp_path / "in")) == {"a": "failed_unreadable"}


def test_whole_numbers_that_were_stored_as_floats_are_places(tmp_path: Path) -> None:
    trident(tmp_path / "a.h5", drawn(3, 8), grid(3).astype(np.float64))
    trident(tmp_path / "b.h5", drawn(3, 8), grid(3))
    items_in = found(declared(tmp_path))
    assert items_in["a"].verdict == "ok" and items_in["a"].geometry["digest"] == items_in["b"].geometry["digest"]
    trident(tmp_path / "a.h5", drawn(3, 8), np.full((3, 2), np.nan))
    assert verdicts(declared(tmp_path))["a"] == "failed_coords"


def test_other_files_are_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found_in = examine(settings(declared(tmp_path)), Entry("config.json", "file"))
    assert found_in.findings == [] and len(found_in.foreign) == 1


def test_the_digest_is_of_vectors_and_places_and_of_nothing_else(tmp_path: Path) -> None:
    features = drawn(1500, 8)
    trident(tmp_path / "a.h5", features)
    clam(tmp_path / "b.h5", features)
    trident(tmp_path / "moved.h5", features, grid(1500) + 1)
    changed = features.copy()
    changed[-1, -1] += 1
    trident(tmp_path / "changed.h5", changed)
    digests = {name: item.geometry["digest"] for name, item in found(declared(tmp_path)).items()}
    assert digests["a"] == digests["b"] and len(set(digests.values())) == 3


def test_many_items_in_one_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for name, units in (("S.1", 3), ("deep/S.2", 4), ("x" * 600, 2)):
            file[f"{name}/features"], file[f"{name}/coords"] = drawn(units, 8), grid(units)
        file["S.3/features"], file["S.3/coords"] = drawn(3, 8), grid(2)
        file["S.4/features"] = drawn(3, 9)
    items = found(declared(tmp_path / "all.h5"))
    assert {name: (item.verdict, item.units_expected) for name, item in items.items()} == {
        "S.1": ("ok", 3), "deep/S.2": ("ok", 4), "x" * 600: ("ok", 2), "S.3": ("failed_coords", None),
        "S.4": ("failed_vector_width", None),
    }  # fmt: skip
