"""Slides that stand as they did are not judged again; those that do not are, and what the crosswalk says counts."""

from pathlib import Path
from typing import Any

import pytest
from polars.testing import assert_frame_equal

from extractors.wsi import index as wsi_index
from extractors.wsi.index import Limits
from tests.support.images.indexing import index_images
from tests.support.images.phantoms import stained, write_tiff
from tests.support.nights.rewriting import rewrite_while_read
from warehouse.errors import TimeloomError


class Slides:
    """A folder of slides and its crosswalk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree = folder, folder / "slides"
        self.lines: dict[str, str] = {}
        for number in range(3):
            self.add(f"{number}.svs", number)

    def add(self, name: str, seed: int, mpp: float | None = 0.5, times: str = ",2020-01-01 10:00:00,") -> None:
        write_tiff(self.tree / name, stained(seed=seed), mpp)
        self.lines[name] = f"{name},{seed + 1}{times}"

    def night(self, work: str = "night", **settings: Any) -> Any:
        crosswalk = self.folder / "slides.csv"
        text = "\n".join(["match,subject_id,time,mpp", *self.lines.values()]) + "\n"
        if not crosswalk.exists() or crosswalk.read_text() != text:
            crosswalk.write_text(text)
        named = {"path": str(self.tree), "crosswalk": {"file": str(crosswalk), "match": "path"}}
        return index_images(self.folder / work, "wsi", named | settings)[0]


@pytest.fixture
def slides(tmp_path: Path) -> Slides:
    return Slides(tmp_path)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the slides that are opened and judged."""
    names: list[str] = []
    whole = wsi_index._judged

    def noted(root: Path, limits: Limits, row: Any) -> Any:
        names.append(row["path"])
        return whole(root, limits, row)

    monkeypatch.setattr(wsi_index, "_judged", noted)
    return names


def test_a_new_slide_is_judged_and_no_other(slides: Slides, judged: list[str]) -> None:
    first = slides.night()
    assert first["verdict"].to_list() == ["ok"] * 3 and len(judged) == 3
    judged.clear()
    assert_frame_equal(slides.night(), first)
    slides.add("later.svs", 7)
    found = slides.night()
    assert judged == ["later.svs"]
    judged.clear()
    assert_frame_equal(slides.night("fresh"), found)
    assert len(judged) == 4


def test_what_a_crosswalk_says_of_whose_it_is_opens_no_slide(slides: Slides, judged: list[str]) -> None:
    slides.night()
    judged.clear()
    slides.lines["1.svs"] = "1.svs,99,2021-02-03 04:05:06,"
    slides.lines["2.svs"] = "2.svs,3,,"
    found = slides.night()
    assert judged == []
    assert dict(found.select("subject_id", "verdict").iter_rows()) == {1: "ok", 99: "ok", 3: "failed_no_time"}
    assert_frame_equal(slides.night("fresh"), found)


def test_another_scale_other_content_and_other_limits_are_judged(slides: Slides, judged: list[str]) -> None:
    slides.night()
    judged.clear()
    slides.lines["0.svs"] = "0.svs,1,2020-01-01 10:00:00,0.4"
    write_tiff(slides.tree / "1.svs", stained(seed=17), 0.5)
    found = slides.night()
    assert sorted(judged) == ["0.svs", "1.svs"]
    assert_frame_equal(slides.night("fresh"), found)
    judged.clear()
    slides.night(max_failed_tiles=0.2)
    assert len(judged) == 3


def test_a_slide_that_changes_while_it_is_judged_is_judged_anew_or_stops_the_run(
    slides: Slides, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_tiff(tmp_path / "other.svs", stained(seed=17), 0.5)
    content = (tmp_path / "other.svs").read_bytes()
    reader = "extractors.wsi.index:blurred_share"
    rewrite_while_read(monkeypatch, tmp_path / "waiting", slides.tree / "1.svs", [content], reader)
    found = slides.night()
    assert_frame_equal(slides.night("fresh"), found)
    contents = [content + bytes(number) for number in range(1, 12)]
    rewrite_while_read(monkeypatch, tmp_path / "more", slides.tree / "1.svs", contents, reader)
    with pytest.raises(TimeloomError, match=r"^a file of the slides changed while it was read, and again"):
        slides.night("restless")
    for waiting in (tmp_path / "more").iterdir():
        waiting.unlink()
    found = slides.night("restless")
    assert_frame_equal(slides.night("fresh again"), found)
