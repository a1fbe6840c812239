"""Notes through group, index and texts: keys instead of ids, a crosswalk by the note's id, tokens that come back."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.items import UnitRequest
from extractors.note.read import read_tokens_of
from pipelines.config import parse_config
from pipelines.stores import RawParams, raw_items
from tests.support.images.indexing import index_images, layout_of
from tests.support.notes import write_discharge, write_table
from warehouse.errors import TimeloomError

ROWS = [
    {"note_id": "10-DS-1", "subject_id": 1, "text": "Admitted with pain. " * 9, "storetime": "2130-05-07 09:00:00"},
    {"note_id": "10-AD-1", "subject_id": 1, "text": "Addendum: no pain.", "note_type": "AD"},
    {"note_id": "11-DS-1", "subject_id": 2, "text": "Admitted with pain. " * 9},
    {"note_id": "11-DS-2", "subject_id": 2, "text": "___"},
]
DETAILS = [("10-AD-1", 1, "parent_note_id", "10-DS-1", 1)]


def indexed(work: Path, **settings: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    folder = work / "notes"
    if not folder.exists():
        write_discharge(folder, ROWS, DETAILS)
    return index_images(work, "note", {"path": str(folder), "source": "mimic-iv", **settings})


def test_one_text_of_two_subjects_is_a_note_of_each_and_ids_are_keys(tmp_path: Path) -> None:
    items, _ = indexed(tmp_path)
    geometry = [json.loads(text) for text in items["geometry"]]
    verdicts = sorted(zip(items["subject_id"], items["verdict"], strict=True))
    assert verdicts == [(1, "ok"), (1, "ok"), (2, "ok"), (2, "refused_empty")]
    assert not any(name in said for said in geometry for name in ("stamp", "kept", "place"))
    text = items["geometry"].str.join().item()
    assert not any(row["note_id"] in text for row in ROWS) and "pain" not in text
    (addendum,) = [said for said in geometry if said.get("addendum")]
    assert addendum["parent"] in {said["note"] for said in geometry if not said.get("addendum")}
    assert sorted(said.get("exact_copies", 0) for said in geometry) == [0, 0, 1, 1]


def test_a_crosswalk_names_notes_by_their_ids(tmp_path: Path) -> None:
    rule = {"text": "text", "id": "note_id"}
    write_table(tmp_path / "letters" / "letters.csv", ("note_id", "text"), [("A", "First"), ("B", "Second")])
    write_table(tmp_path / "x.csv", ("match", "subject_id", "time"), [("A", 8, "2020-01-01 10:00:00")])
    items, _ = index_images(
        tmp_path,
        "note",
        {
            "path": str(tmp_path / "letters"),
            "rules": {"letters": rule},
            "crosswalk": {"file": str(tmp_path / "x.csv"), "match": "note_id"},
        },
    )
    assert sorted(items.select("subject_id", "verdict").rows(), key=str) == [(8, "ok"), (None, "failed_no_subject")]


def test_tokens_that_went_are_made_again(tmp_path: Path) -> None:
    _, reports = indexed(tmp_path)
    (kept,) = layout_of(tmp_path).grouped.glob("*/notes.arrow")
    assert reports["group"].ran == 1 and indexed(tmp_path)[1]["group"].ran == 0
    content = kept.read_bytes()
    kept.rename(kept.with_name(".notes.arrow.7.part"))  # as a run leaves it that is killed while it writes
    assert indexed(tmp_path)[1]["group"].ran == 1 and kept.read_bytes() == content
    assert [*kept.parent.iterdir()] == [kept]
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 1
    kept.write_bytes(spoilt)
    assert indexed(tmp_path)[1]["group"].ran == 1 and kept.read_bytes() == content
    assert indexed(tmp_path)[1]["group"].ran == 0


def test_a_root_can_be_moved_with_its_tokens(tmp_path: Path) -> None:
    items, _ = indexed(tmp_path)
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("warehouse*"):
        path.rename(tmp_path / "moved" / path.name)
    layout = layout_of(tmp_path / "moved")
    usable = items.filter(pl.col("verdict") == "ok")
    params = RawParams(
        segments=[str(path) for path in layout.segments.glob("items-note-*.parquet")],
        folders={"note": str(tmp_path / "notes")},
        root=str(layout.root),
        private=str(layout.private),
    )
    raw = raw_items(params, "note", dict.fromkeys(usable["item_key"], 0))
    for key, geometry in usable.select("item_key", "geometry").iter_rows():
        request = UnitRequest(raw[key].root, raw[key].paths, raw[key].geometry)
        assert len(read_tokens_of(request)) == json.loads(geometry)["tokens"] > 0


@pytest.mark.parametrize(
    ("deid", "fine"),
    [
        ({}, False),
        ({"mode": "expert", "dates": "keep"}, False),
        ({"mode": "limited"}, False),
        ({"mode": "limited", "dates": "keep"}, True),
        ({"mode": "synthetic"}, True),
    ],
)
def test_texts_are_kept_only_where_their_de_identification_is_declared(
    tmp_path: Path, deid: dict[str, str], fine: bool
) -> None:
    block = {"path": ".", "source": "mimic-iv", "keep_text": True, "encoder": {"name": "random-bert", "width": 8}}
    raw = {"sources": [{"source": "mimic-iv", "path": "."}], "deid": deid, "modalities": {"note": block}}
    if fine:
        assert parse_config(raw, tmp_path, "run.yaml").modalities["note"].keeps_texts
    else:
        with pytest.raises(TimeloomError, match=r"modalities\.note\.keep_text needs deid\.mode: limited"):
            parse_config(raw, tmp_path, "run.yaml")
