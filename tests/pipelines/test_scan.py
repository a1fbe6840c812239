"""A tree of CT is found folder by folder, and its items are those of the tree as a whole."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from extractors.ct import by_file
from extractors.ct.index import index_ct
from extractors.extractor import Examined
from extractors.trees import Entry
from pipelines import group, scan
from pipelines.engine.local import LocalEngine
from tests.support.images.ct_trees import zipped
from tests.support.images.indexing import index_images, layout_of
from tests.support.images.phantoms import write_series


def noise(index: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(index).integers(-1000, 1000, (32, 32)).astype(np.float32) // 2 * 2


def spread(folder: Path, *targets: Path) -> None:
    """Moves a folder's files into other folders, one after the other."""
    for number, path in enumerate(sorted(folder.iterdir())):
        target = targets[number % len(targets)]
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    folder.rmdir()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Series over several folders, copies, an archive, reconstructions, damage, a series in two studies, strangers."""
    root = tmp_path / "tree"
    for number in range(4):
        write_series(root / f"plain{number}", image=lambda at, n=number: noise(at + 1000 * n), series=f"1{number}",
                     PatientID=f"10{number}", StudyInstanceUID=f"2.25.5{number}")  # fmt: skip
    write_series(root / "x", 9, image=lambda at: noise(at + 30), series="2", PatientID="7", StudyInstanceUID="2.25.60")
    spread(root / "x", root / "one", root / "two" / "deep", root / "three")
    shutil.copytree(root / "plain0", root / "copy")
    for kernel, series in (("Br40d", "31"), ("Br64d", "32")):
        write_series(root / "kernels" / kernel, image=lambda at: noise(at + 50), series=series, PatientID="8",
                     ConvolutionKernel=kernel, StudyInstanceUID="2.25.61")  # fmt: skip
    write_series(
        root / "cut", 8, image=lambda at: noise(at + 90), series="4", PatientID="9", StudyInstanceUID="2.25.62"
    )
    damaged = root / "cut" / "IM003"
    damaged.write_bytes(damaged.read_bytes()[:140])
    write_series(root / "archived", image=lambda at: noise(at + 150), series="5", PatientID="6",
                 StudyInstanceUID="2.25.63")  # fmt: skip
    zipped(root / "archived", root / "study.zip")
    for number, study in enumerate(("2.25.64", "2.25.66")):
        write_series(root / f"half{number}", 6, image=lambda at: noise(at + 200), series="6", PatientID="5",
                     StudyInstanceUID=study)  # fmt: skip
        for place, path in enumerate(sorted((root / f"half{number}").iterdir())):
            if place % 2 != number:
                path.unlink()
    for number, study in enumerate(("2.25.64", "2.25.66")):  # reconstructions of it, one for each study
        write_series(root / f"other{number}", image=lambda at, n=number: noise(at + 300 + 50 * n),
                     series=f"6{number}", PatientID="5", StudyInstanceUID=study, ConvolutionKernel="Br64d")  # fmt: skip
    write_series(root / "scout", 1, series="7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], PatientID="5")
    (root / "notes").mkdir()
    for number in range(5):
        (root / "notes" / f"{number}.txt").write_text(f"no image {number}")
    Path(os.fsdecode(os.fsencode(root) + b"/notes/\xff.txt")).write_text("its name is no UTF-8")
    (root / "empty" / "below").mkdir(parents=True)
    return root


def sized(monkeypatch: pytest.MonkeyPatch, files: int, findings: int) -> None:
    monkeypatch.setattr(scan, "FEWEST_FILES", files // 2)
    monkeypatch.setattr(scan, "MOST_FILES", files)
    monkeypatch.setattr(group, "FINDINGS", findings)


def test_items_are_the_same_for_tasks_of_any_size_and_number_of_workers(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index_ct(tree)
    settings = {"path": str(tree)}
    items, reports = index_images(tmp_path / "large", "ct", settings)
    assert (reports["scan"].ran, reports["group"].ran) == (1, 1)
    assert Counter(items["verdict"]) == Counter({item.identity: item.verdict for item in whole}.values())
    assert items["units_expected"].drop_nulls().sum() == sum(
        units for units in {item.identity: item.units_expected for item in whole}.values() if units
    )
    assert {"ok", "failed_unreadable", "refused_localizer", "refused_not_dicom", "refused_other_reconstruction"} <= {
        *items["verdict"]
    }
    for number, (files, findings) in enumerate(((10, 10), (12, 3), (40, 1000))):
        sized(monkeypatch, files, findings)
        other, reports = index_images(tmp_path / str(number), "ct", settings)
        assert reports["scan"].ran > 1 and (reports["group"].ran > 1 or findings == 1000)
        assert_frame_equal(other, items)


def test_items_are_the_same_in_several_processes(tree: Path, tmp_path: Path) -> None:
    items, _ = index_images(tmp_path / "one", "ct", {"path": str(tree)})
    write_series(tree / "more", image=lambda at: noise(at + 250), series="8", PatientID="4")
    more, reports = index_images(tmp_path / "one", "ct", {"path": str(tree)})
    anew, _ = index_images(tmp_path / "two", "ct", {"path": str(tree)}, engine=LocalEngine(2))
    assert_frame_equal(more, anew)
    assert len(more) == len(items) + 1 and reports["scan"].total("read") == 6


def test_a_folder_of_very_many_files_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_series(tmp_path / "flat", 9, image=noise, names=f"{number}-{{}}".format, series=f"1{number}",
                     PatientID=str(number), StudyInstanceUID=f"2.25.5{number}")  # fmt: skip
    (tmp_path / "flat" / "link").symlink_to(tmp_path)
    items, _ = index_images(tmp_path / "a", "ct", {"path": str(tmp_path / "flat")})
    sized(monkeypatch, 8, 4)
    parts, reports = index_images(tmp_path / "b", "ct", {"path": str(tmp_path / "flat")})
    assert reports["scan"].ran >= 8 and reports["scan"].total("files") == 45
    assert_frame_equal(parts, items)
    found = Counter(items["verdict"])
    assert found == {"failed_two_subjects": 5, "refused_linked_folder": 1}, "the same pixels of five patients"


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths of the files that are read."""
    paths: list[str] = []
    whole = by_file.examine_file

    def noted(settings: Any, entry: Entry) -> Examined:
        paths.append(entry.path)
        return whole(settings, entry)

    monkeypatch.setattr(by_file, "examine_file", noted)
    yield paths


def test_one_new_file_is_read_and_no_other(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examined: list[str]
) -> None:
    sized(monkeypatch, 20, 8)
    settings, number = {"path": str(tree)}, sum(path.is_file() for path in tree.rglob("*"))
    before, reports = index_images(tmp_path, "ct", settings)
    assert len(examined) == number == reports["scan"].total("read")
    groups = reports["group"].ran
    examined.clear()
    again, reports = index_images(tmp_path, "ct", settings)
    assert not examined and [report.ran for report in reports.values()] == [0, 0, 0]
    assert_frame_equal(again, before)

    write_series(tree / "later", 7, image=noise, series="10", PatientID="100", StudyInstanceUID="2.25.50")
    for path in sorted((tree / "later").iterdir())[:-1]:
        path.unlink()  # the seventh slice of the series in plain0 and its copy
    after, reports = index_images(tmp_path, "ct", settings)
    assert examined == ["later/IM006"]
    assert reports["group"].ran < groups
    changed = after.join(before, on="item_key", how="anti")
    assert changed["units_expected"].to_list() == [7] and len(after) == len(before)

    examined.clear()
    write_series(tmp_path / "new", image=lambda at: noise(at + 7000), series="11", PatientID="101",
                 StudyInstanceUID="2.25.51")  # fmt: skip
    old = (tree / "plain1" / "IM002").read_bytes()
    (tree / "plain1" / "IM002").write_bytes((tmp_path / "new" / "IM002").read_bytes())
    other, _ = index_images(tmp_path, "ct", settings)
    assert examined == ["plain1/IM002"] and len(other.join(after, on="item_key", how="anti")) == 1
    (tree / "plain1" / "IM002").write_bytes(old)

    shutil.rmtree(tree / "later")
    index_images(tmp_path, "ct", settings)
    examined.clear()
    back, _ = index_images(tmp_path, "ct", settings)
    assert not examined
    assert_frame_equal(back, before)


def test_a_new_setting_of_the_judgement_reads_no_file_anew(tree: Path, tmp_path: Path, examined: list[str]) -> None:
    settings: dict[str, Any] = {"path": str(tree)}
    index_images(tmp_path, "ct", settings)
    examined.clear()
    items, reports = index_images(tmp_path, "ct", settings | {"reconstruction": {"keep": "all"}})
    assert not examined and (reports["scan"].ran, reports["group"].ran) == (0, 1)
    assert "refused_other_reconstruction" not in set(items["verdict"])
    index_images(tmp_path, "ct", settings | {"timezone": "Europe/Berlin"})
    assert examined


def test_rehash_reads_every_file(tree: Path, tmp_path: Path, examined: list[str]) -> None:
    items, _ = index_images(tmp_path, "ct", {"path": str(tree)})
    number = len(examined)
    again, _ = index_images(tmp_path, "ct", {"path": str(tree)}, rehash=True)
    assert len(examined) == 2 * number
    assert_frame_equal(again, items)


def test_a_damaged_file_of_findings_is_made_anew(tree: Path, tmp_path: Path) -> None:
    items, _ = index_images(tmp_path, "ct", {"path": str(tree)})
    layout = layout_of(tmp_path)
    for folder in (layout.scanned, layout.grouped, layout.private / "items"):
        for path in folder.glob("*.parquet"):
            path.unlink()
        again, _ = index_images(tmp_path, "ct", {"path": str(tree)})
        assert_frame_equal(again, items)


def test_what_ties_items_to_files_stays_private_and_whole(tree: Path, tmp_path: Path) -> None:
    items, reports = index_images(tmp_path, "ct", {"path": str(tree)})
    layout = layout_of(tmp_path)
    (places,) = (layout.private / "items").glob("*.parquet")
    usable = pl.read_parquet(places)
    assert set(usable["item_key"]) == set(items.filter(pl.col("verdict") == "ok")["item_key"])
    for path, row in usable.select("grouped", "row").iter_rows():
        (item,) = group.whole_items(layout.grouped / path, [row])
        assert len(item.paths) == item.units_expected == len(item.geometry["stamps"])
    # Judged by other rules to the same end, items lie in other files.
    _, reports = index_images(tmp_path, "ct", {"path": str(tree), "reconstruction": {"thickness_mm": [1.5, 5.5]}})
    (segment,) = reports["index"].hashes()
    again = pl.read_parquet(layout.private / "items" / segment)
    assert set(again["item_key"]) == set(usable["item_key"])
    assert set(again["grouped"]) <= set(reports["group"].hashes()) and not set(again["grouped"]) & set(
        usable["grouped"]
    )
    assert not [path for path in layout.root.rglob("*") if path.is_file() and b"plain0" in path.read_bytes()]
    assert all("plain0" not in str(report.entries) for report in reports.values())
