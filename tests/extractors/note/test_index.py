"""Tables of notes: each row's verdict, when its note can be read, and what is counted of its text."""

import csv
import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractors.items import FoundItem
from extractors.note.check import check
from extractors.note.settings import NOTE, NoteSettings
from pipelines.config import parse_config
from tests.support.notes import DISCHARGE, csv_bytes, found_in, write_discharge, write_table, write_text_files
from warehouse.errors import TimeloomError

DAY_END = datetime(2130, 5, 6, 23, 59, 59, 999_999)
NOON = datetime(2130, 5, 6, 12)
MARKS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def by_id(items: list[FoundItem]) -> dict[str, FoundItem]:
    return {item.names["note_id"]: item for item in items if item.names.get("note_id")}


def one_of(folder: Path, **row: Any) -> FoundItem:
    """The item of one row of MIMIC-IV's discharge table."""
    (item,) = found_in(write_discharge(folder, [{"note_id": "1", "text": "Seen today.", **row}]), source="mimic-iv")
    return item


@pytest.mark.parametrize(
    ("charted", "stored", "time", "source", "precision", "available", "early"),
    [
        ("2130-05-06 00:00:00", None, DAY_END, "charted", "day", None, False),
        ("2130-05-06", "2130-05-06 12:00:00", NOON, "stored", "s", NOON, False),
        ("2130-05-05", "2130-05-06 12:00:00", NOON, "stored", "s", NOON, False),
        ("2130-05-06", "2130-05-05 12:00:00", DAY_END, "charted", "day", None, True),
        ("2130-05-06 11:00:00", "2130-05-06 12:00:00", datetime(2130, 5, 6, 11), "charted", "s", NOON, False),
        ("2130-05-06 12:00:00", "2130-05-06 11:59:59", NOON, "charted", "s", None, True),
        ("2130-05-06 12:00:00", "2130-05-06 12:00:00", NOON, "charted", "s", NOON, False),
        (None, "2130-05-06 12:00:00", NOON, "stored", "s", NOON, False),
        ("2130-05-06 12:00:00", None, NOON, "charted", "s", None, False),
    ],
)  # fmt: skip
def test_a_note_can_be_read_from_when_it_was_stored(
    tmp_path: Path, charted: str | None, stored: str | None, time: datetime, source: str, precision: str,
    available: datetime | None, early: bool,
) -> None:  # fmt: skip
    item = one_of(tmp_path, charttime=charted, storetime=stored)
    assert (item.verdict, item.time, item.time_source, item.time_precision) == ("ok", time, source, precision)
    assert item.available_time == available and item.geometry.get("stored_early", False) is early


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"text": None}, "refused_empty"),
        ({"text": " \n\t "}, "refused_empty"),
        ({"text": "___"}, "refused_empty"),
        ({"text": "___\n- ___ *\n=====\n\ufeff"}, "refused_empty"),
        ({"text": "_ 1"}, "ok"),
        ({"text": "\u00df"}, "ok"),
        ({"subject_id": None}, "failed_no_subject"),
        ({"subject_id": "nan"}, "failed_no_subject"),
        ({"charttime": None}, "failed_no_time"),
        ({"charttime": "some day in May"}, "failed_no_time"),
        ({"hadm_id": None}, "ok"),
    ],
)
def test_each_row_has_its_verdict(tmp_path: Path, row: dict[str, Any], verdict: str) -> None:
    item = one_of(tmp_path, **row)
    assert item.verdict == verdict
    assert item.geometry.get("no_visit", False) is ("hadm_id" in row)
    assert item.geometry.get("time_unreadable", False) is (row.get("charttime") == "some day in May")


def test_addenda_are_notes_with_a_parent_and_no_second_summary(tmp_path: Path) -> None:
    rows = [
        {"note_id": "10-DS-1", "text": "Summary.", "storetime": "2130-05-06 10:00:00"},
        {"note_id": "10-AD-1", "text": "Addendum.", "note_type": "AD", "storetime": "2130-05-09 10:00:00"},
        {"note_id": "11-AD-1", "text": "Lost.", "note_type": "AD", "hadm_id": 21},
    ]
    details = [
        ("10-AD-1", 10, "parent_note_id", "10-DS-1", 1),
        ("10-AD-1", 10, "author", "___", 1),
        ("11-AD-1", 10, "parent_note_id", "11-DS-7", 1),
    ]
    found = by_id(found_in(write_discharge(tmp_path, rows, details), source="mimic-iv", summaries="last"))
    assert {item.verdict for item in found.values()} == {"ok"}
    assert found["10-AD-1"].geometry["parent"] == found["10-DS-1"].geometry["note"]
    assert found["10-AD-1"].available_time == datetime(2130, 5, 9, 10)
    assert "parent_absent" not in found["10-AD-1"].geometry and found["11-AD-1"].geometry["parent_absent"]
    assert "addendum" not in found["10-DS-1"].geometry and found["10-AD-1"].geometry["addendum"]
    assert not any("of_visit" in item.geometry for item in found.values())


@pytest.mark.parametrize(("summaries", "refused"), [("all", set()), ("last", {"1", "3"})])
def test_several_summaries_of_a_visit_are_counted_and_the_last_may_be_taken(
    tmp_path: Path, summaries: str, refused: set[str]
) -> None:
    rows = [
        {"note_id": "1", "text": "Interim.", "storetime": "2130-05-06 10:00:00"},
        {"note_id": "2", "text": "Last.", "storetime": "2130-05-08 10:00:00"},
        {"note_id": "3", "text": "Second interim.", "storetime": "2130-05-07 10:00:00"},
        {"note_id": "4", "text": "Of another visit.", "hadm_id": 21},
        {"note_id": "5", "text": "Of no visit.", "hadm_id": None},
        {"note_id": "6", "text": "___", "storetime": "2130-05-09 10:00:00"},
    ]
    found = by_id(found_in(write_discharge(tmp_path, rows), source="mimic-iv", summaries=summaries))
    assert {name for name, item in found.items() if item.verdict == "refused_other_summary"} == refused
    assert {name: item.geometry.get("of_visit") for name, item in found.items()} == {
        "1": 3, "2": 3, "3": 3, "4": None, "5": None, "6": None,
    }  # fmt: skip


def test_cells_hold_line_ends_quotes_and_separators(tmp_path: Path) -> None:
    texts = ['Said: "no, never",\nthen left.', "a\r\nb", 'only "', ",,,x", "  kept  ", "caf\u00e9 \u2265 3", "plain"]
    rows = [{"note_id": str(number), "text": text} for number, text in enumerate(texts)]
    folder = write_discharge(tmp_path, rows)
    with gzip.open(folder / "note" / "discharge.csv.gz", "rt", encoding="utf-8", newline="") as file:
        plain = {row["note_id"]: row["text"] for row in csv.DictReader(file)}
    assert list(plain.values()) == texts
    found = by_id(found_in(folder, source="mimic-iv"))
    # One window of each: what it ends at is the place of the last letter that is no blank.
    spans = {name: read_spans(folder, item) for name, item in found.items()}
    assert spans == {name: [0, len(text.rstrip())] for name, text in plain.items()}


def test_places_of_windows_hold_for_the_blanks_that_were_there(tmp_path: Path) -> None:
    """A table that is exported with other line ends has its windows elsewhere: its notes are others."""
    identities = set()
    for place, text in enumerate(("Seen.\r\nAgain.", "Seen.\nAgain.", "Seen.\nAgain.")):
        folder = write_discharge(tmp_path / str(place), [{"note_id": "1", "text": text}, {"note_id": "2", "text": "x"}])
        identities.add(by_id(found_in(folder, source="mimic-iv"))["1"].identity)
    assert len(identities) == 2


def read_spans(folder: Path, item: FoundItem) -> list[int]:
    """Where the only window of a note begins and ends in its text."""
    from extractors.items import UnitRequest
    from extractors.note.read import read_windows

    kept = folder.with_name("kept")
    (again,) = [
        other for other in found_in(folder, kept, source="mimic-iv") if other.names["note_id"] == item.names["note_id"]
    ]
    (batch,) = read_windows(UnitRequest(folder, again.paths, again.geometry), 4)
    assert batch.places[:, 0].tolist() == [0]
    return list(batch.places[0, 1:].tolist())


def test_an_encoding_is_declared_or_the_run_ends_with_one_line(tmp_path: Path) -> None:
    table = tmp_path / "note" / "discharge.csv.gz"
    row = ["1", "10", "20", "DS", 1, "2130-05-06", None, "Temp 38\u00b0, 5\u20ac, caf\u00e9 Meier"]
    write_table(table, DISCHARGE, [row], encoding="cp1252")
    with pytest.raises(TimeloomError, match=r"record 1 is not UTF-8") as error:
        found_in(tmp_path, source="mimic-iv")
    assert "cp1252" in str(error.value.remedy) and "Meier" not in str(error.value) + str(error.value.remedy)
    (item,) = found_in(tmp_path, source="mimic-iv", reading={"encoding": "cp1252"})
    assert item.verdict == "ok" and "mojibake" not in item.geometry


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("Temp 38\u00b0, caf\u00e9, na\u00efve, \u00c4rger, \u00c2ge", 0),
        ("Temp 38\u00b0, caf\u00e9".encode().decode("latin-1"), 2),
        ("don\u2019t".encode().decode("cp1252"), 1),
        ("lost \ufffd letter \ufffd", 2),
    ],
)
def test_text_that_was_read_in_the_wrong_encoding_is_counted(tmp_path: Path, text: str, counted: int) -> None:
    assert one_of(tmp_path, text=text).geometry.get("mojibake", 0) == counted


def test_marks_of_byte_order_are_no_letters(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + csv_bytes(DISCHARGE, [["1", 10, 20, "DS", 1, "2130-05-06", None, "\ufeffA b"]])
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / "discharge.csv").write_bytes(content)
    (item,) = found_in(tmp_path, source="mimic-iv")
    bare = one_of(tmp_path / "bare", charttime="2130-05-06", text="A b")
    assert (item.geometry["tokens"], item.identity) == (2, bare.identity)


def test_blanks_of_de_identification_are_one_token_each(tmp_path: Path) -> None:
    plain = one_of(tmp_path / "plain", text="Mild pain").geometry
    blanked = one_of(tmp_path / "blanked", text="Mild ___ pain____, __").geometry
    assert blanked["blanks"] == 2
    assert blanked["tokens"] == plain["tokens"] + 2 + 3  # two blanks, a comma and two single underscores


def test_omop_reads_midnight_as_a_date(tmp_path: Path) -> None:
    columns = ("note_id", "person_id", "note_date", "note_datetime", "note_class_concept_id", "note_text",
               "visit_occurrence_id")  # fmt: skip
    rows = [
        (1, 7, "2130-05-06", "2130-05-06 12:00:00", 44814637, "With a time.", 3),
        (2, 7, "2130-05-06", "2130-05-06 00:00:00", 44814637, "Midnight.", None),
        (3, 7, "2130-05-06", None, 44814637, "A date.", 3),
    ]
    write_table(tmp_path / "NOTE.csv", columns, rows)
    found = by_id(found_in(tmp_path, source="omop"))
    assert {name: (item.time, item.time_precision) for name, item in found.items()} == {
        "1": (NOON, "s"), "2": (DAY_END, "day"), "3": (DAY_END, "day"),
    }  # fmt: skip
    assert {name: item.geometry.get("no_visit", False) for name, item in found.items()} == {
        "1": False, "2": True, "3": False,
    }  # fmt: skip


def test_parquet_and_csv_are_the_same_notes(tmp_path: Path) -> None:
    rows = [{"note_id": str(number), "text": f"Note {number}\n" * number} for number in range(1, 6)]
    folder = write_discharge(tmp_path / "csv", rows)
    with gzip.open(folder / "note" / "discharge.csv.gz", "rt", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    (tmp_path / "parquet" / "note").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "parquet" / "note" / "discharge.parquet")
    identities = [
        sorted(item.identity for item in found_in(tmp_path / name, source="mimic-iv")) for name in ("csv", "parquet")
    ]
    assert len(identities[0]) == 5 and identities[0] == identities[1]


def test_shuffled_rows_are_the_same_items(tmp_path: Path) -> None:
    rows = [{"note_id": str(number), "text": f"Note {number % 3} is short"} for number in range(9)]
    found = []
    for name, order in (("a", rows), ("b", rows[::-1])):
        items = found_in(write_discharge(tmp_path / name, order), source="mimic-iv")
        keys = ("exact_copies", "near_copies", "tokens")
        found.append({item.identity: [item.geometry.get(key) for key in keys] for item in items})
    assert found[0] == found[1] and len(found[0]) == 9


def test_a_rule_of_ones_own_and_a_row_without_id(tmp_path: Path) -> None:
    write_table(
        tmp_path / "letters.csv",
        ("patient", "written", "body"),
        [("P1", "06.05.2130 12:00", "Dear colleague"), ("P1", "07.05.2130 12:00", "Dear colleague")] * 2,
    )
    rule = {"text": "body", "subject": "patient", "time": {"column": "written", "formats": "%d.%m.%Y %H:%M"}}
    found = found_in(tmp_path, rules={"letters": rule})
    assert [item.verdict for item in found] == ["ok"] * 4
    assert len({item.identity for item in found}) == 2  # the same row twice is one note
    assert found[0].time == NOON


def text_files(folder: Path, **others: str) -> dict[str, Any]:
    texts = {"a.txt": "First text", "sub b.txt": "Second"}
    write_text_files(folder, texts, {"a.txt": "P1", "./sub b.txt": "P2", **others})
    return {"notes": {"file": "path", "subject": "subject_id", "time": "charttime"}}


def test_text_files_are_notes_of_the_table_that_names_them(tmp_path: Path) -> None:
    rules = text_files(tmp_path)
    (tmp_path / "LICENSE.txt").write_text("Not a note", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes("\ufeffFirst text".encode())
    found = {item.paths[0]: item for item in found_in(tmp_path, rules=rules)}
    assert {path: (item.verdict, item.raw_subject) for path, item in found.items()} == {
        "a.txt": ("ok", "P1"), "sub b.txt": ("ok", "P2"),
    }  # fmt: skip
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("cp1252"))
    found = {item.paths[0]: item for item in found_in(tmp_path, rules=rules)}
    assert (found["a.txt"].verdict, found["sub b.txt"].verdict) == ("failed_unreadable", "ok")
    found = {item.paths[0]: item for item in found_in(tmp_path, rules=rules, reading={"encoding": "cp1252"})}
    assert found["a.txt"].verdict == "ok"


def test_a_gzipped_text_is_whole_or_no_note(tmp_path: Path) -> None:
    """Blocks of gzip stand one behind the other in a file, as bgzip and `cat` leave them."""
    text = "Seen by day. And seen again at night."
    blocks = gzip.compress(text[:13].encode()) + gzip.compress(text[13:].encode())
    spoilt = blocks[:-5] + bytes([blocks[-5] ^ 1]) + blocks[-4:]
    contents = {"plain": text.encode(), "whole": blocks, "cut": blocks[:-12], "spoilt": spoilt}
    write_table(tmp_path / "notes.csv", ("path", "subject_id"), [(name, "P1") for name in contents])
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    rules = {"notes": {"file": "path", "subject": "subject_id"}}
    found = {item.paths[0]: item for item in found_in(tmp_path, rules=rules)}
    assert {name: item.verdict for name, item in found.items()} == {
        "plain": "ok", "whole": "ok", "cut": "failed_unreadable", "spoilt": "failed_unreadable",
    }  # fmt: skip
    assert found["whole"].geometry["tokens"] == found["plain"].geometry["tokens"]


@pytest.mark.parametrize("named", ["gone.txt", "../secret.txt", "/etc/hostname", ""])
def test_a_table_that_names_files_that_are_not_there_is_one_line(tmp_path: Path, named: str) -> None:
    folder = tmp_path / "notes"
    (tmp_path / "secret.txt").write_text("No note of this tree", encoding="utf-8")
    rules = text_files(folder, **{named: "P3"})
    settings = NoteSettings.model_validate({"path": folder, "rules": rules})
    with pytest.raises(TimeloomError, match=r"1 of the 3 files that the table notes of \S+ names are not there"):
        check(settings)
    check(settings.model_copy(update={"partial": True}))
    verdicts = sorted(item.verdict for item in found_in(folder, rules=rules, partial=True))
    assert verdicts == ["failed_missing_file", "ok", "ok"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": None}, "does not say which tables hold notes"),
        ({"rules": {"letters": {"text": "body", "subject": "s"}}, "source": None}, "the table letters of"),
        ({"rules": {"note/discharge": {"text": "body", "subject": "subject_id"}}}, "lacks the column body"),
        ({"source": "omop", "path": "empty"}, "no table of notes is below"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_discharge(tmp_path, [{"note_id": "1", "text": "Seen."}])
    (tmp_path / "empty").mkdir()
    change = change | ({"path": tmp_path / change["path"]} if "path" in change else {})
    settings = NoteSettings.model_validate({"path": tmp_path, "source": "mimic-iv", **change})
    with pytest.raises(TimeloomError, match=said):
        check(settings)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no vocabulary"),
        ({"vocab.txt": ""}, "has no vocabulary"),
        ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": {"a": 0}}}'}, "has no vocabulary"),
        ({"tokenizer.json": "{"}, "is no JSON"),
        ({"tokenizer.json": '{"model": null}'}, "has no vocabulary"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": "x"}}}'}, "vocabulary of .* cannot be read"),
        ({"tokenizer.json": '{"model": {"vocab": {"a": -1}}}'}, "vocabulary of .* cannot be read"),
        ({"vocab.txt": "[PAD]\ncaf\udce9\n"}, "vocabulary of .* cannot be read"),
        ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\na\n"}, r"lacks \[SEP\]"),
        ({"vocab.txt": MARKS, "added_tokens.json": '{"[DEID]": 5, "[SEP]": 3}'}, "reads 1 words whole"),
        ({"vocab.txt": MARKS, "tokenizer.json": '{"added_tokens": [{"content": "[ID]"}]}'}, "reads 1 words whole"),
        (
            {"vocab.txt": MARKS, "tokenizer_config.json": '{"added_tokens_decoder": {"5": {"content": "[ID]"}}}'},
            "reads 1 words whole",
        ),
        ({"vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", "config.json": '{"vocab_size": 5}'}, "has 6 pieces"),
        (
            {
                "vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n",
                "config.json": '{"vocab_size": 6, "max_position_embeddings": 64}',
            },
            "has places for 64",
        ),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_one_line(tmp_path: Path, files: dict[str, str], said: str) -> None:
    write_discharge(tmp_path / "tables", [{"note_id": "1", "text": "Seen."}])
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    settings = {"path": tmp_path / "tables", "source": "mimic-iv", "tokenizer": tmp_path / "model"}
    with pytest.raises(TimeloomError, match=said):
        check(NoteSettings.model_validate(settings))


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"window": 520}, "takes window 512 at most"),
        ({"stride": 511}, "stride is 510 tokens at most"),
        ({"encoder": {"name": "random-dinov2", "width": 8}}, "takes images, and units of note are texts"),
        ({"strid": 5}, "strid"),
        ({"encoder": {"name": "bert", "width": 8, "weights": 5}}, "encoder.weights: Input is not a valid path"),
        ({"crosswalk": {"file": "x.csv", "match": "path"}}, "note items are named by note_id, patient_id"),
        ({"rules": {"a": {"text": "x", "file": "y"}}}, "stands in the column `text`, or in the file"),
        ({"source": "nowhere"}, "there is no source"),
    ],
)
def test_a_wrong_block_is_refused_when_it_is_read(tmp_path: Path, block: dict[str, Any], said: str) -> None:
    encoder = {"encoder": {"name": "random-bert", "width": 64}}
    raw = {
        "sources": [{"source": "mimic-iv", "path": "."}],
        "modalities": {"note": {"path": ".", "source": "mimic-iv", **encoder, **block}},
    }
    with pytest.raises(TimeloomError, match=said):
        config = parse_config(raw, tmp_path, "run.yaml")
        check(config.modalities["note"])  # type: ignore[arg-type]


def test_a_rare_kind_is_told_of_nobody(tmp_path: Path) -> None:
    rows = [{"note_id": str(number), "text": f"Text {number}"} for number in range(12)]
    rows[0]["note_type"] = "Letter of Mrs. Meier"
    found = by_id(found_in(write_discharge(tmp_path, rows), source="mimic-iv"))
    assert "kind" not in found["0"].geometry and found["1"].geometry["kind"] == "DS"


def test_an_item_says_nothing_of_a_text(tmp_path: Path) -> None:
    item = one_of(tmp_path, text="Mrs. Xanthippe Quux was seen")
    said = str(vars(item)).lower()
    assert not any(word in said for word in ("xanthippe", "quux", "seen"))


def test_a_broken_table_that_nobody_declared_is_a_verdict(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_bytes(b'id,text\n1,fine\n2,"never closed\n' + b"x\n" * 40)
    content = gzip.compress(
        csv_bytes(("id", "text"), [(number, f"{number * 7919 % 1_000_003} fine") for number in range(200_000)])
    )
    (tmp_path / "cut.csv.gz").write_bytes(content[: len(content) - 10])
    verdicts = {item.paths[0]: item.verdict for item in found_in(tmp_path)}
    assert verdicts["reports.csv"] == "failed_unreadable" and verdicts["cut.csv.gz"] == "failed_unreadable"


def test_a_source_of_ones_own_says_which_columns_are_notes(tmp_path: Path) -> None:
    (tmp_path / "clinic.yaml").write_text(
        "name: clinic\nsubject: pid\ntables: {}\ncase_insensitive: true\ntime_zone: Europe/Vienna\n"
        "note: {letters: {text: body, id: nr, time: written, available: signed}}\n",
        encoding="utf-8",
    )
    rows = [(1, "P1", "2030-05-06 10:00", "2030-05-06T10:00:00+00:00", "Dear colleague")]
    write_table(tmp_path / "export" / "LETTERS.csv", ("Nr", "PID", "Written", "Signed", "Body"), rows)
    block = {"path": "export", "source": "clinic.yaml", "encoder": {"name": "random-bert", "width": 8}}
    raw = {"sources": [{"source": "mimic-iv", "path": "."}], "modalities": {"note": block}}
    settings = parse_config(raw, tmp_path, "run.yaml").modalities["note"]
    check(settings)  # type: ignore[arg-type]
    assert settings.tables == {"source": tmp_path / "clinic.yaml"}
    (item,) = NOTE.index_items(settings, None)
    assert (item.verdict, item.raw_subject, item.time) == ("ok", "P1", datetime(2030, 5, 6, 10))
    assert item.available_time == datetime(2030, 5, 6, 12), "stored at 10 in London is stored at noon in Vienna"
