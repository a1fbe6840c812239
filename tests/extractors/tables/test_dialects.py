"""CSV as sites write it: separators, quotes, escapes, encodings, endings of names, headers that come again."""

import gzip
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extractors.reading import Reading, TableReading
from extractors.source import Source
from extractors.tables import csv_reader
from extractors.tables.export import Export
from extractors.tables.raw_table import RawTable
from tests.support.raw.raw_tables import convert, convert_text, plan_meds, quarantine_of, run_meds, source_of
from warehouse.errors import TimeloomError

NOTED: dict[str, Any] = {"events": [{"code": "X", "time": "at", "text": "note"}]}
NEVER = 1 << 60


def rows_of(
    path: Path, reading: dict[str, Any] | None = None, needed: Collection[str] = ()
) -> tuple[list[Any], RawTable]:
    """Every row of a file with its number, and the table."""
    raw = RawTable(path, "t", [], reading=TableReading.model_validate(reading or {}), needed=needed)
    rows: list[Any] = []
    for block in raw.blocks(plain=set()):
        rows += zip(block.numbers(np.arange(len(block))).tolist(), block.frame.rows(), strict=True)
    return rows, raw


def written(folder: Path, data: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return path


@pytest.fixture(params=["general", "compiled"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to split a file."""
    monkeypatch.setattr(csv_reader, "COMPILED_FROM", 0 if request.param == "compiled" else NEVER)
    monkeypatch.setattr(csv_reader._Compiled, "loops", None)


# --- a record that says what the header says

REPEATED = "drug,dose\na,1\n{again}\nb,2\n"


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(
    "again", ["drug,dose", '"drug","dose"', "\ufeffdrug,dose", '\ufeff"drug",dose', 'drug,"dose"\r'], ids=repr
)
@pytest.mark.parametrize("bom", [False, True])
def test_a_record_that_says_what_the_header_says_is_no_row(tmp_path: Path, again: str, bom: bool) -> None:
    text = "\ufeff" * bom + REPEATED.format(again=again)
    found, raw = rows_of(written(tmp_path, text))
    assert found == [(1, ("a", "1")), (3, ("b", "2"))]
    assert raw.repeated == [2] and raw.malformed == []


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("chunk", [16, 40, 1 << 20])
def test_headers_come_again_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
    lines = ["drug,dose" if number % 7 == 3 else f"d{number},drug" for number in range(1, 60)]
    found, raw = rows_of(written(tmp_path, "\n".join(["drug,dose", *lines]), "t.csv.gz"))
    assert raw.repeated == [number for number in range(1, 60) if number % 7 == 3]
    assert found == [(number, (f"d{number}", "drug")) for number in range(1, 60) if number % 7 != 3]


def test_a_value_that_is_its_columns_name_is_a_value(tmp_path: Path) -> None:
    found, raw = rows_of(written(tmp_path, "drug,dose\ndrug,1\nx,dose\n"))
    assert [row for _, row in found] == [("drug", "1"), ("x", "dose")] and raw.repeated == []


def test_a_repeated_header_has_its_own_reason_and_makes_no_code(tmp_path: Path) -> None:
    rule = {"events": [{"code": "LAB/{test}", "time": "at"}]}
    text = "pid,test,at\n1,K,2020-01-01\npid,test,at\n2,K,2020-01-02\nbad\n"
    found, counts = convert_text(tmp_path, rule, text)
    assert found["subject_id"].to_list() == [1, 2]
    assert counts["quarantined"] == {"malformed_row": 1, "repeated_header": 1}
    assert quarantine_of(tmp_path, counts) == [(2, "repeated_header"), (4, "malformed_row")]
    assert counts["raw"] == 4 == counts["events"] + sum(counts["quarantined"].values())
    assert b"LAB/test" not in (tmp_path / counts["segment"]).read_bytes()


# --- text behind a closing quote

ESCAPED = 'pid,at,note\n1,2020-01-01,"a \\d\\" b"\n2,2020-01-01,"x \\"y, z\\" w"\n3,2020-01-01,"fine"\n'


def test_text_behind_a_closing_quote_is_malformed(tmp_path: Path) -> None:
    found, counts = convert_text(tmp_path, NOTED, ESCAPED)
    assert found["text_value"].to_list() == ["fine"]
    assert quarantine_of(tmp_path, counts) == [(1, "malformed_row"), (2, "malformed_row")]


@pytest.mark.parametrize("chunk", [45, 1 << 20])
def test_with_an_escape_it_is_what_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
    text = ESCAPED + '4,2020-01-01,"C:\\\\temp\\\\"\n5,2020-01-01,"two\\"\nlines"\n6,2020-01-01,in \\"open\n'
    path = written(tmp_path, text)
    source = source_of(t=NOTED).read_as(Reading.model_validate({"tables": {"t": {"escape": "\\"}}}))
    found, counts = convert(tmp_path, source, "t", path)
    expected = ['a \\d" b', 'x "y, z" w', "fine", "C:\\temp\\", 'two"\nlines', 'in \\"open']
    assert found["text_value"].to_list() == expected
    assert counts["quarantined"] == {} and found["row"].to_list() == [1, 2, 3, 4, 5, 6]
    assert found["row_hash"].n_unique() == 6


# --- separators and quotes

TABLE = 'pid{s}at{s}note\n1{s}2020-01-01{s}"say ""no"", {s} yes"\n2{s}2020-01-02{s}b\n'


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("separator", [";", "\t", "|", "^", ":"])
def test_any_sign_may_separate_columns(tmp_path: Path, separator: str) -> None:
    path = written(tmp_path, TABLE.format(s=separator), "t.txt.gz")
    found, raw = rows_of(path, {"separator": separator, "quote": '"'})
    assert [row for _, row in found] == [("1", "2020-01-01", f'say "no", {separator} yes'), ("2", "2020-01-02", "b")]
    assert raw.noticed == ""


@pytest.mark.usefixtures("reader")
def test_without_quotes_they_are_signs_like_others(tmp_path: Path) -> None:
    text = 'pid|note\n1|"A" and B\n2|"5 inch\n3|a ""b""\n4|"x|y"\n'
    found, raw = rows_of(written(tmp_path, text), {"separator": "|", "quote": "none"})
    assert found == [(1, ("1", '"A" and B')), (2, ("2", '"5 inch')), (3, ("3", 'a ""b""'))]
    assert raw.malformed == [4]


@pytest.mark.usefixtures("reader")
def test_another_sign_may_stand_around_fields(tmp_path: Path) -> None:
    found, _ = rows_of(written(tmp_path, "a,b\n'1,2','it''s \"x\"'\n"), {"quote": "'"})
    assert found == [(1, ("1,2", 'it\'s "x"'))]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_header_shows_the_separator_and_that_is_said(tmp_path: Path, separator: str) -> None:
    found, raw = rows_of(written(tmp_path, TABLE.format(s=separator)), needed={"pid", "at"})
    assert [row[0] for _, row in found] == ["1", "2"]
    names = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
    assert raw.noticed.startswith(f"{names[separator]} separate its columns, as its header shows")


@pytest.mark.parametrize(
    ("header", "needed", "columns"),
    [
        ("pid;at,x", {"pid", "at"}, ["pid;at", "x"]),
        ("pid,at;note", {"pid", "at;note"}, ["pid", "at;note"]),
        ("pid;at", {"pid", "when"}, ["pid;at"]),
        ("pid,at", {"pid", "gone"}, ["pid", "at"]),
    ],
    ids=["none under any", "under commas", "not all", "some under commas"],
)
def test_a_separator_is_not_guessed(tmp_path: Path, header: str, needed: set[str], columns: list[str]) -> None:
    raw = RawTable(written(tmp_path, f"{header}\n1,2\n"), "t", [], needed=needed)
    assert raw.columns == columns and raw.noticed == ""


def test_tsv_means_tabs(tmp_path: Path) -> None:
    for name in ("t.tsv", "t.TSV", "t.tsv.gz"):
        found, raw = rows_of(written(tmp_path, "a\tb\n1,5\t2\n", name))
        assert found == [(1, ("1,5", "2"))] and raw.noticed == ""
    found, _ = rows_of(written(tmp_path, "a;b\n1\t5;2\n", "t.tsv"), {"separator": ";"})
    assert found == [(1, ("1\t5", "2"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As the vocabulary files of OHDSI come.
        ('id\tname\n1\tHemoglobin "A1c\n2\t"Old" name\n', ['Hemoglobin "A1c', '"Old" name']),
        # As a program writes that puts quotes where it must.
        ('id\tname\n1\t"say ""no"""\n2\tb\n', ['say "no"', "b"]),
        ('id\tname\n1\t"two\nlines"\n2\tb\n', ["two\nlines", "b"]),
        ('id\tname\n1\t"a\tb"\n2\tb\n', ["a\tb", "b"]),
        # As one that always puts them.
        ('"id"\t"name"\n"1"\t"a"\n"2"\t"b"\n', ["a", "b"]),
    ],
)
def test_quotes_between_tabs_are_what_the_first_rows_show(tmp_path: Path, text: str, expected: list[str]) -> None:
    found, raw = rows_of(written(tmp_path, text, "concept.tsv"))
    assert [row[1] for _, row in found] == expected and raw.malformed == []
    assert "as its first rows show" in raw.noticed


def test_what_was_found_out_is_in_the_log_and_in_the_account(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    written(raw, "pid;at\n1;2020-01-01\n")
    mapping = "{name: s, subject: pid, tables: {t: {events: [{code: X, time: at}]}}}"
    report = run_meds(tmp_path, plan_meds(tmp_path, mapping))
    (entry,) = report.entries.values()
    assert entry.counts["events"] == 1
    assert entry.counts["noticed"] == "semicolons separate its columns, as its header shows"


# --- encodings


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-le", "utf-8-sig", "cp850", "utf-8"])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_a_declared_encoding_is_read(tmp_path: Path, encoding: str, name: str) -> None:
    text = "pid;größe\n1;Müller, é\n2;x\n"
    found, _ = rows_of(written(tmp_path, text.encode(encoding), name), {"separator": ";", "encoding": encoding})
    assert found == [(1, ("1", "Müller, é")), (2, ("2", "x"))]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("chunk", [20, 1 << 20])
def test_an_undeclared_encoding_names_the_part_and_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
    folder = tmp_path / "t"
    folder.mkdir()
    written(folder, "pid,at\n1,2020-01-01\n", "part-0.csv")
    text = 'pid,at,note\n1,2020-01-01,"a\nb"\n\n2,2020-01-02,c\n3,2020-01-03,Müller\n'
    written(folder, text.encode("cp1252"), "part-1.csv")
    export = Export(tmp_path, source_of(t=NOTED))
    with pytest.raises(TimeloomError) as caught:
        list(export.open(export.files("t")[1], "t").blocks())
    assert str(caught.value) == (
        "table t, part 2 of 2 (part-1.csv): record 3 is not UTF-8; say its encoding in `reading`, such as "
        "`encoding: cp1252`"
    )


def test_a_header_or_a_wrong_encoding_is_said(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="the header is not UTF-8"):
        rows_of(written(tmp_path, "pid,größe\n".encode("cp1252")))
    with pytest.raises(TimeloomError, match="encoding: utf-16"):
        rows_of(written(tmp_path, "pid,x\n1,2\n".encode("utf-16")))
    with pytest.raises(TimeloomError, match=r"record 2 is not cp1252; mend `encoding`"):
        rows_of(written(tmp_path, b"a,b\n1,x\n2,\x81\n"), {"encoding": "cp1252"})


def test_a_quote_that_is_never_closed_names_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chunk in (16, 1 << 20):
        monkeypatch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        with pytest.raises(TimeloomError, match=r"table t: record 3 has a quoted field that is never closed"):
            rows_of(written(tmp_path, 'a,b\n1,"x\ny"\n2,z\n3,"5 inch\n4,z\n'))


# --- keys


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"separator": "ab"}, "at most 1"),
        ({"separator": "§"}, "a sign of ASCII"),
        ({"quote": "\n"}, "no line end"),
        ({"encoding": "cp9999"}, "no encoding"),
        ({"encoding": "hex"}, "no encoding"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(keys: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TableReading.model_validate(keys)


def test_a_tab_may_be_written_as_a_word() -> None:
    for text in ("tab", "\t", "\\t"):
        assert TableReading.model_validate({"separator": text}).separator == "\t"


# --- names of files


def export_of(folder: Path, *names: str, case_insensitive: bool = False) -> Export:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written(folder, "pid,at\n1,2020-01-01\n", name)
    tables = {"t": {"events": [{"code": "X", "time": "at"}]}}
    source = {"name": "s", "subject": "pid", "tables": tables, "case_insensitive": case_insensitive}
    return Export(folder, Source.model_validate(source))


@pytest.mark.parametrize(
    "name", ["t.CSV", "T.csv", "T.CSV.GZ", "t.Txt", "t.tsv", "T.TSV.gz", "T/part-0.CSV", "t/part-0.txt"]
)
def test_a_table_is_found_whatever_the_case_and_ending(tmp_path: Path, name: str) -> None:
    for insensitive in (False, True):
        export = export_of(tmp_path, name, case_insensitive=insensitive)
        assert [str(path.relative_to(tmp_path)) for path in export.mapped()["t"]] == [name]


@pytest.mark.parametrize("names", [("t.csv", "T.csv"), ("t.csv", "t.CSV"), ("t/a.csv", "T/b.csv")])
def test_names_that_differ_in_case_only_are_one_clear_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(TimeloomError, match="the table t stands there twice, in names that differ in upper and lower"):
        export_of(tmp_path, *names).files("t")


def test_a_source_may_have_two_tables_whose_names_differ_in_case_only(tmp_path: Path) -> None:
    export_of(tmp_path, "t.csv", "T.csv")
    export = Export(tmp_path, source_of(t=NOTED, T=NOTED))
    assert {table: [path.name for path in files] for table, files in export.mapped().items()} == {
        "t": ["t.csv"], "T": ["T.csv"],
    }  # fmt: skip


def test_texts_beside_tables_are_tables_only_where_others_are(tmp_path: Path) -> None:
    export = export_of(tmp_path, "t.csv", "LICENSE.txt")
    assert export.unmapped() == {}
    (tmp_path / "t.csv").rename(tmp_path / "t.txt")
    assert set(export_of(tmp_path).unmapped()) == {"LICENSE.txt"}


def test_parts_are_named_by_number_and_by_name_only_where_a_program_gave_it(tmp_path: Path) -> None:
    export = export_of(tmp_path, "t/part-0.csv", "t/part-00001.csv.gz", "t/smith-1950.csv")
    says = ["part 1 of 3 (part-0.csv)", "part 2 of 3 (part-00001.csv.gz)", "part 3 of 3"]
    assert [export.open(path, "t").label for path in export.files("t")] == [f"t, {part}" for part in says]


def test_a_part_is_read_without_a_look_at_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = export_of(tmp_path, "t/part-0.csv", "t/part-1.csv")
    path = export.files("t")[1]
    monkeypatch.setattr(Export, "_pieces", lambda self, table: pytest.fail("it lists the table's files"))
    assert sum(map(len, Export(tmp_path, export.source).open(path, "t").blocks())) == 1


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    export_of(tmp_path / "elsewhere", "t/part-0.csv")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "t").symlink_to(tmp_path / "elsewhere" / "t")
    assert [path.name for path in export_of(tmp_path / "export").files("t")] == ["part-0.csv"]


def test_a_part_that_breaks_off_names_itself_and_how_far_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "CHUNK_BYTES", 1 << 16)
    export = export_of(tmp_path, "t/part-0.csv")
    rows = "pid,at\n" + "".join(f"{number * 7919 % 9973},2020-01-01\n" for number in range(200_000))
    (tmp_path / "t" / "part-1.csv.gz").write_bytes(gzip.compress(rows.encode())[:-2000])
    export = Export(tmp_path, export.source)
    with pytest.raises(
        TimeloomError, match=r"^table t, part 2 of 2 \(part-1\.csv\.gz\): breaks off behind record \d+ "
    ):
        list(export.open(export.files("t")[1], "t").blocks())
