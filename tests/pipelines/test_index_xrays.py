"""Chest x-rays through scan, group and index: a table's word is joined late, and a film is one subject's."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tests.support.images.indexing import index_images
from tests.support.images.xrays import CR, chest, write_film, write_image

HEAD = "image,subject_id,time,view\n"


def indexed(work: Path, folder: Path, **settings: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    return index_images(work, "cxr", {"path": str(folder), **settings})


def by_subject(items: pl.DataFrame) -> dict[int | None, list[str]]:
    found = items.sort("subject_id", "verdict").group_by("subject_id", maintain_order=True).agg("verdict")
    return dict(found.iter_rows())


def test_another_line_of_the_table_judges_films_anew_and_reads_none(tmp_path: Path) -> None:
    films, table = tmp_path / "films", tmp_path / "films.csv"
    for number in range(4):
        write_image(films / f"{number}.png", (chest(number) >> 4).astype(np.uint8))
    lines = [f"{number}.png,{number % 2 + 1},2020-01-0{number + 1} 10:00:00,PA\n" for number in range(4)]
    table.write_text(HEAD + "".join(lines))
    first, reports = indexed(tmp_path, films, table={"file": str(table)})
    # Both films of a subject have its id, so that a split by subjects parts no subject.
    assert by_subject(first) == {1: ["ok", "ok"], 2: ["ok", "ok"]} and reports["scan"].total("read") == 4
    table.write_text(HEAD + "".join(lines[:3]) + "3.png,7,2021-01-01,LL\n")
    second, reports = indexed(tmp_path, films, table={"file": str(table)})
    assert by_subject(second) == {1: ["ok", "ok"], 2: ["ok"], 7: ["ok"]}
    assert not reports["scan"].ran
    third, reports = indexed(tmp_path, films, table={"file": str(table)}, views=["frontal"])
    assert by_subject(third)[7] == ["refused_view"] and not reports["scan"].ran


def test_the_same_pixels_of_two_subjects_are_neithers_and_of_one_are_one_item(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_film(films / "a.dcm", chest(1), PatientID="1")
    write_film(films / "b.dcm", chest(1), PatientID="2", SOPClassUID=CR, StudyDate="20190101")
    write_film(films / "c.dcm", chest(2), PatientID="3")
    write_film(films / "d.dcm", chest(2), PatientID="3", SeriesInstanceUID="2.25.9")
    blank = np.full((300, 300), 9, np.uint16)
    write_film(films / "e.dcm", blank, PatientID="4")
    write_film(films / "f.dcm", blank, PatientID="5")
    items, reports = indexed(tmp_path, films)
    assert by_subject(items) == {
        1: ["failed_two_subjects"], 2: ["failed_two_subjects"], 3: ["ok"], 4: ["failed_blank"], 5: ["failed_blank"],
    }  # fmt: skip
    assert reports["index"].total("found_again") == 1


def test_a_crosswalk_may_name_accession_numbers(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_film(films / "a.dcm", chest(1), PatientID="", AccessionNumber="A1")
    write_film(films / "b.dcm", chest(2), PatientID="", AccessionNumber="A2")
    (tmp_path / "x.csv").write_text("match,subject_id,time\nA1,8,2020-01-01 10:00:00\n")
    items, _ = indexed(tmp_path, films, crosswalk={"file": str(tmp_path / "x.csv"), "match": "accession_number"})
    assert by_subject(items) == {None: ["failed_no_subject"], 8: ["ok"]}


def test_images_without_a_table_have_no_subject_in_a_run(tmp_path: Path) -> None:
    write_image(tmp_path / "films" / "a.png", (chest(1) >> 4).astype(np.uint8))
    assert by_subject(indexed(tmp_path, tmp_path / "films")[0]) == {None: ["failed_no_subject"]}


def test_what_an_item_shows_is_no_word_of_a_header_or_a_file(tmp_path: Path) -> None:
    write_film(tmp_path / "films" / "DOE.dcm", chest(1), PatientID="1", StudyDescription="DOE JANE")
    items, _ = indexed(tmp_path, tmp_path / "films")
    (geometry,) = items["geometry"]
    assert "DOE" not in geometry and "stamp" not in geometry and '"view": "frontal"' in geometry
