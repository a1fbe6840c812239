"""Crosswalks: what they may match, what contradicts itself, what they leave out, and what is said of it."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.crosswalk import CrosswalkConfig, Match, read_crosswalk
from extractors.ids import SubjectIds
from warehouse.errors import TimeloomError

KEY = "modalities.wsi.crosswalk"


def read(path: Path, text: str, match: Match = "path", patients: SubjectIds | None = None, **keys: Any) -> pl.DataFrame:
    path.joinpath("SECRET-NAME.csv").write_text(text, encoding="utf-8")
    crosswalk = CrosswalkConfig.model_validate({"file": path / "SECRET-NAME.csv", "match": match, **keys})
    return read_crosswalk(crosswalk, KEY, patients)


def refused(path: Path, text: str, match: Match = "path", **keys: Any) -> str:
    with pytest.raises(TimeloomError) as caught:
        read(path, text, match, **keys)
    said = str(caught.value)
    assert KEY in said and "\n" not in said
    assert not re.search("SECRET|4711|4712|a.svs", said)
    return said


CONTRADICTIONS: dict[str, tuple[Match, str, tuple[int, int], str]] = {
    "subjects": ("path", "match,subject_id\na.svs,4711\nb.svs,1\na.svs,4712\n", (2, 4), "subjects"),
    "behind comments, blank lines and line ends in quotes": (
        "path", '# SECRET\nmatch,subject_id,time\n\n"b\n.svs",1,\n# x\na.svs,4711,\na.svs,4712,\n', (7, 8), "subjects",
    ),
    "spelt otherwise": ("path", "match,subject_id\nx\\a.svs,4711\n./x//a.svs,4712\n", (2, 3), "subjects"),
    "times": (
        "path", "match,subject_id,time\na.svs,4711,2020-01-01 10:00\na.svs,4711,2020-01-02 10:00\n", (2, 3), "times",
    ),
    "sizes": ("path", "match,subject_id,mpp\na.svs,4711,0.25\na.svs,4711,0.5\n", (2, 3), "pixel sizes"),
    "studies": ("study_uid", "match,subject_id\n1.2.3,4711\n 1.2.3 ,4712\n", (2, 3), "subjects"),
    "accessions": ("accession_number", "match,subject_id\n77,4711\n77.0,4712\n", (2, 3), "subjects"),
    "patients": ("patient_id", "match,subject_id\np1,4711\nx,1\nx,1\nP1,4712\n", (2, 5), "subjects"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_lines_that_contradict_each_other_are_named(tmp_path: Path, name: str) -> None:
    match, text, lines, what = CONTRADICTIONS[name]
    said = refused(
        tmp_path, text, match, **({"patients": SubjectIds(normalise=("upper",))} if match == "patient_id" else {})
    )
    assert f"lines {lines[0]} and {lines[1]} " in said and f"two {what}" in said


def test_others_that_do_so_are_counted(tmp_path: Path) -> None:
    text = "match,subject_id\n" + "a.svs,4711\na.svs,4712\n" * 3
    assert "lines 2 and 3 of" in refused(tmp_path, text) and "2 other lines" in refused(tmp_path, text)


def test_lines_that_agree_complete_each_other(tmp_path: Path) -> None:
    text = "match,subject_id,time,mpp\na.svs,,2020-01-01 10:00:00,\na.svs,7,,0.25\n"
    text += "a.svs,7,2020-01-01 10:00:00,\nb.svs,8,,\n"
    found = read(tmp_path, text)
    assert found.select("match", "subject_id", "mpp").rows() == [("a.svs", "7", 0.25), ("b.svs", "8", None)]
    assert found["time_precision"].to_list() == ["s", None] and found["time"][0].isoformat() == "2020-01-01T10:00:00"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("match,subject_id,time\na.svs,4711,yesterday\n", "time that cannot be read at line 2"),
        ("match,subject_id,mpp\nb,1,\na.svs,4711,0;25\na.svs,4711,no\n", "mpp that is no number at line 3, and at 1"),
        ("match,subject_id\na.svs,4711,more\n", "no CSV at line 2"),
        ('match,subject_id\nb,1\n"a.svs" x,4711\n', "no CSV at line 3"),
        ("match,patient\na.svs,4711\n", "lacks the column subject_id"),
        ("match,match\na.svs,4711\n", "no header of different names"),
        ("", "no header of different names"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_by_the_key_and_the_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


def test_a_file_that_is_no_utf_8_is_said_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "SECRET.csv").write_bytes(b"match,subject_id\n\xe4.svs,1\n")
    with pytest.raises(TimeloomError, match=r"modalities\.wsi\.crosswalk\.file cannot be read"):
        read_crosswalk(CrosswalkConfig(file=tmp_path / "SECRET.csv"), KEY)


def test_backslashes_part_folders(tmp_path: Path) -> None:
    text = "match,subject_id\nx\\y\\a.svs,1\n.\\b.svs,2\nc/d.svs,3\n"
    assert read(tmp_path, text)["match"].to_list() == ["x/y/a.svs", "b.svs", "c/d.svs"]


def test_a_marked_file_and_names_of_its_own(tmp_path: Path) -> None:
    text = "\ufeffslide,patient\na.svs,7\n"
    found = read(tmp_path, text, columns={"match": "slide", "subject_id": "patient"})
    assert found.select("match", "subject_id").rows() == [("a.svs", "7")]
