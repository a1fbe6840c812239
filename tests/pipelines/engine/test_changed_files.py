"""A raw file that is rewritten while it is read is read once more, or stops the run; nothing is made of a mixture."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from extractors.deid import load_key
from pipelines import meds, scan
from pipelines.aligning.segments import read_texts
from pipelines.config import parse_config
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.night import Night, carry_out
from tests.support.images.indexing import index_images
from tests.support.images.phantoms import write_series
from tests.support.nights.rewriting import MODULE, rewrite_while_read
from tests.support.raw.raw_tables import read_pieces
from warehouse.errors import TimeloomError
from warehouse.layout import Layout

# In `make test` alone: every night starts worker processes.
pytestmark = pytest.mark.whole

READS_A_TABLE = "extractors.tables.raw_table:RawTable.blocks"
SOURCE = {
    "name": "test",
    "subject": "pid",
    "crosswalks": {"wards": {"columns": ["ward", "floor"]}},
    "tables": {
        "labs": {
            "joins": [{"table": "crosswalk/wards", "key": {"ward": "ward"}, "columns": {"floor": "floor"}}],
            "events": [{"code": "LAB/{floor}", "time": "at"}],
        },
        "visits": {"events": [{"code": "VISIT", "time": "at"}]},
    },
}


def rows(number: int, first: int = 0) -> bytes:
    """A table of so many rows, a subject each."""
    lines = [f"{patient},W1,2020-01-01 08:00:00" for patient in range(first, first + number)]
    return "\n".join(["pid,ward,at", *lines, ""]).encode()


class Clinic:
    """Two tables and a crosswalk, and nights of the stage that reads them, in two worker processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.layout = folder, Layout(folder / "warehouse")
        self.labs, self.wards = folder / "raw" / "labs.csv", folder / "wards.csv"
        self.labs.parent.mkdir(parents=True)
        self.labs.write_bytes(rows(50))
        (folder / "raw" / "visits.csv").write_bytes(rows(20))
        self.wards.write_text("ward,floor\nW1,F1\n")
        (folder / "source.yaml").write_text(yaml.safe_dump(SOURCE))

    def night(self) -> StageReport:
        named = {"source": "source.yaml", "path": "raw", "crosswalks": {"wards": "wards.csv"}}
        deid = {"mode": "synthetic", "subject_ids": "keep", "dates": "keep"}
        config = parse_config({"sources": [named], "deid": deid, "buckets": 1}, self.folder, "test")
        load_key(config.deid, self.layout.private, create=True)
        with LocalEngine(2, modules=(MODULE,)) as engine:
            context = RunContext(engine, self.folder / "work", None, None)
            fingerprints = Fingerprints(self.layout.private)
            night = Night(config, self.folder, self.layout, context, fingerprints)
            try:
                (report,) = carry_out(meds.STAGE, night, [meds.STAGE])
            finally:
                fingerprints.save()
        return report

    def codes(self, report: StageReport) -> dict[str, int]:
        """Rows of labs by code, as the segment that the record names holds them."""
        (counts,) = [entry.counts for entry in report.entries.values() if entry.counts["table"] == "labs"]
        segment = self.layout.segments / counts["segment"]
        found = read_pieces(segment, counts["buckets"]["0"]["pieces"]) if counts["buckets"] else None
        assert found is not None and len(found) == counts["events"]
        codes = read_texts(segment, counts["blobs"]["codes"])
        return {codes[code]: rows for code, rows in found["code"].value_counts().iter_rows()}


def rest(clinic: Clinic, waiting: Path) -> None:
    """Nothing rewrites labs any more; it has 99 rows."""
    for path in waiting.iterdir():
        path.unlink()
    clinic.labs.write_bytes(rows(99))


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


def test_a_table_rewritten_while_it_is_read_is_planned_and_read_anew(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, [rows(80)], READS_A_TABLE)
    report = clinic.night()
    assert clinic.codes(report) == {"LAB/F1": 80}
    assert (report.ran, report.resumed) == (2, 0), "what was read of the other table stays"
    assert clinic.night().resumed == 2, "the next night finds it done"


def test_a_table_that_never_rests_is_one_line_and_the_next_night_reads_it(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = [rows(50 + number) for number in range(1, 5)]
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, contents, READS_A_TABLE)
    with pytest.raises(TimeloomError, match=r"^the table labs changed while it was read, and again") as raised:
        clinic.night()
    assert "\n" not in str(raised.value) and str(clinic.folder) not in str(raised.value)
    assert not [path for path in clinic.layout.segments.glob("*.json") if "labs" in path.read_text()]
    rest(clinic, tmp_path / "waiting")
    assert clinic.codes(clinic.night()) == {"LAB/F1": 99}


def test_half_a_file_that_cannot_be_read_is_a_change_and_no_broken_table(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = [b'pid,ward,at\n"' + b"1" * number for number in range(9)]
    opens_a_table = "extractors.tables.export:Export.open"
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.labs, contents, opens_a_table)
    with pytest.raises(TimeloomError, match=r"^the table labs changed while it was read, and again"):
        clinic.night()
    rest(clinic, tmp_path / "waiting")
    assert clinic.codes(clinic.night()) == {"LAB/F1": 99}


def test_a_crosswalk_rewritten_while_it_is_looked_up_is_planned_anew(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewrite_while_read(monkeypatch, tmp_path / "waiting", clinic.wards, [b"ward,floor\nW1,F2\n"], READS_A_TABLE)
    assert clinic.codes(clinic.night()) == {"LAB/F2": 50}


def slice_bytes(folder: Path, value: float) -> bytes:
    """Slice 3 of a series of six, of which one pixel has a value of its own."""

    def image(index: int) -> npt.NDArray[np.float32]:
        pixels = np.random.default_rng(index).integers(-500, 500, (32, 32)).astype(np.float32) * 2
        pixels[0, 0] = value
        return pixels

    write_series(folder, image=image, series="1", PatientID="1")
    return (folder / "IM003").read_bytes()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two series; each folder is a task of its own, so that worker processes read them."""
    slice_bytes(tmp_path / "ct" / "a", 0)
    write_series(tmp_path / "ct" / "b", series="2", PatientID="2")
    monkeypatch.setattr(scan, "MOST_FILES", 6)
    return tmp_path / "ct"


def indexed(work: Path, settings: dict[str, Any]) -> tuple[pl.DataFrame, dict[str, StageReport]]:
    return index_images(work, "ct", settings, engine=LocalEngine(2, modules=(MODULE,)))


READS_AN_IMAGE = "extractors.ct.header:read_header"


def test_an_image_rewritten_while_it_is_read_is_read_anew(
    images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, content = images / "a" / "IM003", slice_bytes(tmp_path / "other", 100)
    before, _ = index_images(tmp_path / "before", "ct", {"path": str(images)})
    rewrite_while_read(monkeypatch, tmp_path / "waiting", path, [content], READS_AN_IMAGE)
    items, reports = indexed(tmp_path / "night", {"path": str(images)})
    assert path.read_bytes() == content and not list((tmp_path / "waiting").iterdir())
    assert reports["scan"].ran == 2
    fresh, _ = index_images(tmp_path / "fresh", "ct", {"path": str(images)})
    assert_frame_equal(items, fresh)
    assert set(items["item_key"]) != set(before["item_key"]), "its content is part of what the item is"


def test_an_image_that_never_rests_is_one_line_and_the_next_night_reads_it(
    images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = [slice_bytes(tmp_path / str(value), value) for value in range(30)]
    path = images / "a" / "IM003"
    rewrite_while_read(monkeypatch, tmp_path / "waiting", path, contents, READS_AN_IMAGE)
    with pytest.raises(TimeloomError, match=r"^a file of the ct images changed while it was read, and again") as raised:
        indexed(tmp_path / "night", {"path": str(images)})
    assert "\n" not in str(raised.value) and "IM003" not in str(raised.value)
    for waiting in (tmp_path / "waiting").iterdir():
        waiting.unlink()
    items, _ = indexed(tmp_path / "night", {"path": str(images)})
    fresh, _ = index_images(tmp_path / "fresh", "ct", {"path": str(images)})
    assert_frame_equal(items, fresh)
    assert items["verdict"].to_list() == ["ok", "ok"]


def test_a_crosswalk_of_images_rewritten_while_it_is_read_is_read_anew(
    images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crosswalk = tmp_path / "patients.csv"
    crosswalk.write_text("match,subject_id\n1,11\n2,22\n")
    settings = {"path": str(images), "crosswalk": {"file": str(crosswalk), "match": "patient_id"}}
    contents = [b"match,subject_id\n1,33\n2,22\n"]
    rewrite_while_read(monkeypatch, tmp_path / "waiting", crosswalk, contents, "pipelines.index:read_crosswalk")
    items, reports = indexed(tmp_path / "night", settings)
    assert sorted(items["subject_id"]) == [22, 33] and reports["index"].ran == 1
    contents = [f"match,subject_id\n1,{number}\n".encode() for number in range(100, 109)]
    rewrite_while_read(monkeypatch, tmp_path / "more", crosswalk, contents, "pipelines.index:read_crosswalk")
    crosswalk.write_text("match,subject_id\n1,44\n")
    with pytest.raises(TimeloomError, match=r"^the crosswalk of ct changed while it was read, and again"):
        indexed(tmp_path / "night", settings)
