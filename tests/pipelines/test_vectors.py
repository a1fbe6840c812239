"""Which vectors each item has: by the name that both are known by, and nobody chooses between two."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from extractors.deid import load_key
from extractors.items import OK, FoundItem
from pipelines import group, index, scan, vectors
from pipelines.config import RunConfig
from pipelines.engine.context import RunContext, counts_of
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.items import private_paths
from pipelines.night import Night, carry_out
from pipelines.vectors import Counts, _Asked, _claimed, described, names_of
from tests.support.images.phantoms import write_series
from tests.support.raw.raw_tables import KEEP
from tests.support.vectors import clam, declared, drawn, grid, trident
from warehouse.errors import TimeloomError
from warehouse.layout import Layout

STAGES = (scan.STAGE, group.STAGE, index.STAGE, vectors.STAGE)
SERIES = ("2.25.1", "2.25.2", "2.25.3")


def item(*paths: str, **names: str) -> FoundItem:
    return FoundItem("wsi", None, "0", paths, None, "", "day", None, OK, 1, names=names)


@pytest.mark.parametrize(
    ("match", "given", "names"),
    [
        ("file_name", item("deep/S.1.A.svs"), {"S.1.A.svs", "S.1.A"}),
        ("file_name", item("S.1.A"), {"S.1.A"}),
        ("file_name", item("a/ct.1.nii.gz"), {"ct.1.nii.gz", "ct.1"}),
        ("file_name", item("007.SVS"), {"007.SVS", "007"}),
        ("path", item("deep/S.1.A.svs"), {"deep/S.1.A.svs", "deep/S.1.A"}),
        ("folder", item("p1/s.2/IM1.dcm", "p1/s.2/IM2.dcm"), {"p1/s.2"}),
        ("series_uid", item("a.dcm", series_uid="2.25.7"), {"2.25.7"}),
        ("series_uid", item("a.dcm", series_uid=""), set()),
        ("file_name", item(), set()),
    ],
)
def test_what_an_item_s_vectors_may_be_called(match: str, given: FoundItem, names: set[str]) -> None:
    assert set(names_of(given, declared(Path("x"), match=match))) == names


class Trees:
    """A hospital's CT, vectors beside it, and the stages that tie them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.vectors = work / "vectors"
        self.layout = Layout(work / "warehouse")
        for number, series in enumerate(SERIES):
            write_series(
                work / "ct" / f"p{number}", 5, series=series.removeprefix("2.25."), PatientID=f"10{number}",
                image=lambda at, n=number: np.full((16, 16), 10 * n + at, np.float32),
            )  # fmt: skip

    def tie(self, block: dict[str, Any] | None = None, **keys: Any) -> tuple[pl.DataFrame, Counts, Night]:
        """What was found for each item, what was counted, and the night."""
        imported = declared(self.vectors, match="series_uid").model_dump(mode="json") | keys
        blocks = {"ct": {"path": str(self.work / "ct"), "encoder": {"imported": imported}} if block is None else block}
        config = RunConfig.model_validate(
            {
                "sources": [{"source": "simulated-hospital", "path": str(self.work)}],
                "deid": KEEP,
                "buckets": 4,
                "modalities": blocks,
            }
        )
        load_key(config.deid, self.layout.private, create=True)
        with LocalEngine(1) as running:
            context = RunContext(running, self.work / "work", None, None)
            night = Night(config, self.work, self.layout, context, Fingerprints(self.layout.private))
            for stage in STAGES:
                carry_out(stage, night, STAGES)
            night.fingerprints.save()
        (entry,) = night.report("vectors").entries.values()
        (segment,) = entry.files
        found = pl.read_parquet(self.layout.segments / segment)
        lying = pl.read_parquet(private_paths(self.layout.private, segment)).iter_rows()
        places = pl.DataFrame(
            [(key, *json.loads(place)) for key, place in lying], schema=["item_key", "path", "member"], orient="row"
        )
        return found.join(places.cast(pl.String), "item_key", how="left"), counts_of(entry, Counts), night


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    made = Trees(tmp_path)
    for number, series in enumerate(SERIES):
        trident(made.vectors / f"{series}.h5", drawn(5, 8, seed=number))
    yield made


def test_items_and_vectors_are_matched_exactly(trees: Trees) -> None:
    found, counts, _ = trees.tie()
    assert counts["verdicts"] == {"ok": 3} and counts["strangers"] == {}
    assert sorted(found["path"]) == [f"{series}.h5" for series in SERIES] and found["digest"].n_unique() == 3


def test_whatever_does_not_meet_is_counted(trees: Trees) -> None:
    (trees.vectors / "2.25.1.h5").rename(trees.vectors / "2.25.10.h5")  # a longer name of which the item's is a part
    (trees.vectors / "2.25.3.h5.lock").touch()
    (trees.vectors / "README.txt").write_text("x")
    (trees.vectors / "cut.h5").write_bytes(b"cut")
    found, counts, _ = trees.tie()
    assert counts["verdicts"] == {"failed_no_vectors": 1, "failed_unfinished": 1, "ok": 1}
    assert counts["strangers"] == {"failed_unreadable": 1, "refused_no_item": 1, "refused_not_vectors": 1}
    assert set(found.filter(pl.col("verdict") != "ok")["digest"]) == {""}


def test_vectors_of_a_refused_item_are_no_strangers(trees: Trees) -> None:
    write_series(trees.work / "ct" / "p9", 2, series="9", PatientID="109")
    trident(trees.vectors / "2.25.9.h5", drawn(5, 8, seed=9))
    _, counts, night = trees.tie()
    assert night.report("index").entries["ct"].counts["verdicts"] == {"failed_too_few_slices": 1, "ok": 3}
    assert counts["verdicts"] == {"ok": 3} and counts["strangers"] == {}


def test_one_vector_for_two_items_and_two_vectors_for_one_item_are_nobody_s(trees: Trees) -> None:
    for number in (0, 1):
        folder = trees.work / "ct" / f"p{number}"
        folder.rename(folder.with_name(f"at{number}"))
        (trees.work / "ct" / f"site{number}").mkdir()
        (trees.work / "ct" / f"at{number}").rename(trees.work / "ct" / f"site{number}" / "scan")
    trident(trees.vectors / "IM000.h5", drawn(5, 8))
    _, counts, _ = trees.tie(match="file_name")
    assert counts["verdicts"] == {"failed_shared_vectors": 3}
    for number in (0, 1):
        trident(trees.vectors / f"site{number}" / "scan.h5", drawn(5, 8))
    _, counts, _ = trees.tie(match="folder")
    assert counts["verdicts"] == {"failed_no_vectors": 1, "ok": 2}
    trident(trees.vectors / "p2.HDF5", drawn(5, 8, seed=4))
    trident(trees.vectors / "p2.h5", drawn(5, 8, seed=5))
    assert trees.tie(match="folder")[1]["verdicts"] == {"failed_duplicate_vectors": 1, "ok": 2}


def test_a_copied_item_is_one_and_a_refused_one_shares_nothing() -> None:
    name = frozenset({"S.1"})
    copies, refused = [_Asked(name, "slide", True)] * 2, _Asked(name, "scout", False)
    assert _claimed([*copies, refused]) == {"S.1": 1}
    assert _claimed([*copies, _Asked(name, "another slide", True)]) == {"S.1": 2}
    assert _claimed([refused]) == {"S.1": 0}


def test_what_a_person_should_look_at_is_counted_and_said(trees: Trees) -> None:
    trident(trees.vectors / "2.25.1.h5", drawn(5, 8)[None], grid(5)[None])
    clam(trees.vectors / "2.25.2.h5", drawn(5, 8, seed=2))
    clam(trees.vectors / "2.25.3.h5", drawn(5, 8, seed=2))
    _, counts, _ = trees.tie()
    assert described(counts) == (
        "imported vectors of ct: 3 ok; 2 without a word on their patches; 1 with a leading axis of 1; "
        "2 with the vectors of another"
    )


def test_an_unchanged_night_reads_no_vector(trees: Trees) -> None:
    first = trees.tie()[2]
    again = trees.tie()[2]
    assert [again.report(stage).ran for stage in ("scan", "group", "index", "vectors")] == [0, 0, 0, 0]
    trident(trees.vectors / "2.25.2.h5", drawn(6, 8, seed=40))
    _, _, changed = trees.tie()
    read = {entry.counts["modality"]: entry.counts["read"] for entry in changed.report("scan").entries.values()}
    assert read == {"ct": 15, **{name: 1 for name in read if name != "ct"}} and len(read) == 2
    assert changed.report("index").ran == 0 and changed.report("vectors").ran == 1
    assert first.report("index").hashes() == changed.report("index").hashes()


CROSSWALK = """match,subject_id,time
2.25.1.h5,7,2020-01-02 03:04:05
2.25.2,8,2020-01-02 03:04:05
2.25.4,9,2020-01-02 03:04:05
2.25.5,9,
"""


def alone(trees: Trees, text: str = CROSSWALK, **crosswalk: str) -> dict[str, Any]:
    """A block of a site that has vectors and no CT."""
    (trees.work / "crosswalk.csv").write_text(text)
    imported = declared(trees.vectors).model_dump(mode="json")
    return {
        "crosswalk": {"file": str(trees.work / "crosswalk.csv"), **crosswalk},
        "encoder": {"imported": imported},
    }


@pytest.mark.parametrize("match", ["path", "series_uid", "study_uid"])
def test_vectors_alone_are_items_by_a_crosswalk(trees: Trees, match: str) -> None:
    trident(trees.vectors / "2.25.5.h5", drawn(5, 8, seed=5))
    found, counts, night = trees.tie(alone(trees, match=match))
    assert night.report("index").entries["ct"].counts["verdicts"] == {
        "failed_missing_file": 1, "failed_no_subject": 1, "failed_no_time": 1, "ok": 2
    }  # fmt: skip
    assert counts["verdicts"] == {"ok": 2} and counts["strangers"] == {}
    assert sorted(found["path"]) == ["2.25.1.h5", "2.25.2.h5"]
    (segment,) = night.report("index").hashes()
    items = pl.read_parquet(trees.layout.segments / segment)
    usable = items.filter(pl.col("verdict") == "ok").sort("subject_id")
    assert usable["subject_id"].to_list() == [7, 8] and usable["units_expected"].to_list() == [5, 5]
    assert set(usable["time_source"]) == {"crosswalk"}
    missing = items.filter(pl.col("verdict") == "failed_missing_file")
    assert missing["subject_id"].to_list() == [9]


def test_what_names_files_stays_out_of_the_root(trees: Trees) -> None:
    _, _, night = trees.tie(alone(trees))
    text = b"".join(path.read_bytes() for path in trees.layout.root.rglob("*") if path.is_file())
    frames = [pl.read_parquet(path) for path in trees.layout.root.rglob("*.parquet")]
    words = " ".join(str(frame.to_dicts()) for frame in frames)
    assert b"2.25.1" not in text and "2.25.1" not in words and len(frames) == 2
    assert "2.25" not in str([entry.counts for report in night.reports.values() for entry in report.entries.values()])


def test_a_crosswalk_that_names_a_file_twice(trees: Trees) -> None:
    twice = CROSSWALK + "2.25.1,7,2020-01-02 03:04:05\n"
    with pytest.raises(TimeloomError, match="twice, with and without its ending"):
        trees.tie(alone(trees, twice))


def test_one_file_for_all(trees: Trees) -> None:
    import h5py

    with h5py.File(trees.work / "all.h5", "w") as file:
        for number, series in enumerate(SERIES):
            file[f"{series}/features"] = drawn(5, 8, seed=number)
    found, counts, _ = trees.tie(path=str(trees.work / "all.h5"))
    assert counts["verdicts"] == {"ok": 3} and counts["unknown"] == {"coords": 3, "patching": 3}
    assert counts["squeezed"] == counts["repeated"] == 0
    assert set(found["path"]) == {""} and set(found["member"]) == set(SERIES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": {"imported": {"match": "patient_id"}}}, "imported.match is one of file_name, path, folder"),
        ({"crosswalk": None}, "crosswalk"),
        ({"path": "vectors"}, "`path` and imported.path are one folder"),
    ],
)
def test_configurations_that_cannot_work(trees: Trees, change: dict[str, Any], said: str) -> None:
    block = alone(trees)
    for key, value in change.items():
        if isinstance(value, dict):
            block[key]["imported"] |= value["imported"]
        elif value is not None:
            block[key] = str(trees.work / value)
        else:
            del block[key]
    with pytest.raises(ValueError, match=said):
        trees.tie(block)


def test_copies_are_not_looked_for_among_vectors_alone(trees: Trees) -> None:
    raw = {
        "sources": [{"source": "simulated-hospital", "path": str(trees.work)}],
        "modalities": {"ct": alone(trees)},
        "duplicates": {"images": ["ct"]},
    }
    with pytest.raises(ValueError, match="duplicates: of ct there are vectors alone"):
        RunConfig.model_validate(raw)
    assert RunConfig.model_validate(raw | {"duplicates": {}}).modalities["ct"].vectors_alone
