"""Enhanced CT: frames of one file are the slices of a volume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors.ct.index import index_ct
from extractors.ct.reconstructions import ReconstructionConfig
from tests.support.images.ct_phantoms import write_enhanced
from tests.support.images.ct_trees import pixels_of, usable, verdicts
from tests.support.images.phantoms import disc, write_series

ALL = ReconstructionConfig(keep="all")


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"])
def test_frames_and_files_of_the_same_slices_give_the_same_units(tmp_path: Path, syntax: str | None) -> None:
    write_series(tmp_path / "s")
    order = [4, 2, 0, 5, 1, 3]
    (tmp_path / "e").mkdir()
    write_enhanced(
        tmp_path / "e" / "x", [disc(inside=10.0 * k) for k in order], [2.0 * k for k in order], syntax=syntax
    )
    single, multi = usable(tmp_path / "s"), usable(tmp_path / "e")
    assert multi.paths == ("x",) and multi.units_expected == 6
    assert multi.time_source == "FrameAcquisitionDateTime"
    assert np.array_equal(pixels_of(single, tmp_path / "s"), pixels_of(multi, tmp_path / "e"))


def test_each_frame_is_rescaled_by_its_own_slope(tmp_path: Path) -> None:
    images = [disc(inside=40.0)] * 4
    write_enhanced(tmp_path / "x", images, range(4), [{"RescaleSlope": slope} for slope in (1, 2, 4, 8)])
    assert np.abs(pixels_of(usable(tmp_path), tmp_path)[:, 16, 16] - 40).max() <= 4


@pytest.mark.parametrize("keyword", ["TemporalPositionIndex", "StackID"])
def test_temporal_positions_and_stacks_are_volumes_of_their_own(tmp_path: Path, keyword: str) -> None:
    images = [disc(inside=10.0 * k) for k in range(8)]
    per_frame = [{keyword: 1 + k // 4 if keyword[0] == "T" else f"{k // 4}"} for k in range(8)]
    write_enhanced(tmp_path / "x", images, [k % 4 for k in range(8)], per_frame)
    items = index_ct(tmp_path, reconstruction=ALL)
    assert [(item.verdict, item.units_expected) for item in items] == [("ok", 4)] * 2
    centres = sorted(tuple(pixels_of(item, tmp_path)[:, 16, 16].round(-1).tolist()) for item in items)
    assert centres == [(0, 10, 20, 30), (40, 50, 60, 70)]
    # Without either the frames' times tell them apart.
    write_enhanced(tmp_path / "x", images, [k % 4 for k in range(8)])
    assert verdicts(tmp_path) == {"ok": 2}


@pytest.mark.parametrize(
    ("verdict", "per_frame", "header"),
    [
        ("refused_not_hu", {"RescaleType": "US"}, {}),
        ("refused_localizer", {"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]}, {}),
        ("refused_burned_in", {}, {"BurnedInAnnotation": "YES"}),
        ("failed_missing_geometry", {}, {"PerFrameFunctionalGroupsSequence": []}),
        ("failed_unreadable", {}, {"NumberOfFrames": 500}),
        ("failed_too_many_units", {}, {"NumberOfFrames": 50_000}),
        ("failed_implausible_size", {}, {"Rows": 60_000}),
    ],
)
def test_multiframe_verdict(tmp_path: Path, verdict: str, per_frame: dict[str, Any], header: dict[str, Any]) -> None:
    write_enhanced(tmp_path / "x", [disc()] * 5, range(5), [per_frame] * 5, **header)
    assert verdicts(tmp_path) == {verdict: 1}
