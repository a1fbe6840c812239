"""Meanings of codes: descriptions and parents from dictionaries, only for the codes that occur."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.events import dictionaries, joins
from extractors.events.dictionaries import describe
from extractors.source import Source
from extractors.tables import csv_reader
from extractors.tables.export import Export
from extractors.tables.raw_table import RawTable
from tests.support.raw.raw_tables import csv_text
from warehouse.errors import TimeloomError

REFERENCE: dict[str, Any] = {"role": "reference"}


def source_of(codes: list[dict[str, Any]], crosswalks: dict[str, Any] | None = None, **tables: Any) -> Source:
    return Source.model_validate(
        {
            "name": "test",
            "subject": "pid",
            "tables": {"items": REFERENCE, **tables},
            "codes": codes,
            "crosswalks": crosswalks or {},
        }
    )


def items(work: Path, *rows: tuple[object, ...], name: str = "items", header: str = "id label kind up") -> None:
    (work / f"{name}.csv").write_text(csv_text(header.split(), rows))


def described(
    work: Path, source: Source, codes: list[str], crosswalks: dict[str, Path] | None = None
) -> dict[str, tuple[str | None, list[str] | None]]:
    """Description and parents of each code, in the order of `codes`."""
    frame = describe(pl.Series(codes, dtype=pl.String), [Export(work, source, crosswalks)])
    assert frame["code"].to_list() == codes
    return {code: (text, parents) for code, text, parents in frame.iter_rows()}


LAB = {"code": "LAB/{id}", "table": "items", "description": "{label}"}


def test_only_codes_that_occur_are_described(tmp_path: Path) -> None:
    items(tmp_path, (1, "Sodium", "lab", None), (2, "Iron", "lab", None), (3, None, "lab", None))
    assert described(tmp_path, source_of([LAB]), ["LAB/2", "LAB/3", "LAB/9", "DX/1"]) == {
        "LAB/2": ("Iron", None), "LAB/3": (None, None), "LAB/9": (None, None), "DX/1": (None, None),
    }  # fmt: skip
    assert described(tmp_path, source_of([LAB]), []) == {}
    assert described(tmp_path, source_of([]), ["LAB/2"]) == {"LAB/2": (None, None)}


def test_one_row_describes_every_code_that_it_names(tmp_path: Path) -> None:
    items(tmp_path, ("i10.0 ", "Heart", "dx", "I10"))
    rule = {
        "code": ["DX/{id:icd}", "HISTORY/{id:icd}"], "table": "items", "description": "{label} ({kind:upper})",
        "parents": ["DX/{up}", "KIND/{kind}"],
    }  # fmt: skip
    found = described(tmp_path, source_of([rule]), ["DX/I100", "HISTORY/I100"])
    assert found == dict.fromkeys(found, ("Heart (DX)", ["DX/I10", "KIND/dx"]))


def test_parents_of_several_rows_and_rules_add_up(tmp_path: Path) -> None:
    items(tmp_path, ("1", "A", "x", "P2"), ("1", "A", "x", "P1"), ("1", "A", "x", "P2"), ("2", "B", "x", None))
    rules: list[dict[str, Any]] = [
        LAB | {"parents": "UP/{up}"},
        {"code": "LAB/{id}", "table": "items", "parents": ["ALL", "UP/{up|NONE}"]},
    ]
    assert described(tmp_path, source_of(rules), ["LAB/1", "LAB/2"]) == {
        "LAB/1": ("A", ["ALL", "UP/P1", "UP/P2"]),
        "LAB/2": ("B", ["ALL", "UP/NONE"]),
    }
    # An empty parent is left out; the description and the other parents stay.
    assert described(tmp_path, source_of(rules[:1]), ["LAB/2"]) == {"LAB/2": ("B", None)}


def test_of_several_descriptions_the_first_text_stays(tmp_path: Path) -> None:
    rows = [("1", "B", "x", None), ("1", "A", "x", "P"), ("1", None, "x", None)]
    for order in (rows, rows[::-1]):
        items(tmp_path, *order)
        assert described(tmp_path, source_of([LAB]), ["LAB/1"]) == {"LAB/1": ("A", None)}


def test_rows_that_a_condition_leaves_out_describe_nothing(tmp_path: Path) -> None:
    items(tmp_path, (1, "A", "lab", "P"), (2, "B", "chart", "P"), (3, "C", None, "P"))
    rule = LAB | {"where": "kind = 'lab'", "parents": ["{up}"]}
    assert described(tmp_path, source_of([rule]), ["LAB/1", "LAB/2", "LAB/3"]) == {
        "LAB/1": ("A", ["P"]), "LAB/2": (None, None), "LAB/3": (None, None),
    }  # fmt: skip


def test_an_optional_column_that_is_absent_gives_no_parent_and_a_missing_one_is_named(tmp_path: Path) -> None:
    items(tmp_path, (1, "A"), header="id label")
    rule = LAB | {"parents": ["LOINC/{loinc}", "ALL"]}
    optional = source_of([rule], items=REFERENCE | {"optional_columns": ["loinc"]})
    assert described(tmp_path, optional, ["LAB/1"]) == {"LAB/1": ("A", ["ALL"])}
    with pytest.raises(TimeloomError, match="table items: lacks the column loinc"):
        described(tmp_path, source_of([rule]), ["LAB/1"])
    items(tmp_path, (1, "A", "2951-2"), header="id label loinc")
    assert described(tmp_path, optional, ["LAB/1"]) == {"LAB/1": ("A", ["ALL", "LOINC/2951-2"])}


def test_a_dictionary_that_is_absent_describes_nothing(tmp_path: Path) -> None:
    assert described(tmp_path, source_of([LAB], items=REFERENCE | {"optional": True}), ["LAB/1"]) == {
        "LAB/1": (None, None)
    }


@pytest.mark.parametrize("memory", [1, 96 << 20])
def test_a_rule_may_look_columns_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(joins, "LOOKUP_BYTES", memory)
    items(tmp_path, (1, "A", "x", "7"), (2, "B", "x", "8"), (3, "C", "x", None))
    items(tmp_path, (7, "Seven"), (8, "Eight"), name="parents", header="number name")
    join = {"table": "parents", "key": {"up": "number"}, "columns": {"above": "name"}}
    rule = LAB | {"joins": [join], "parents": ["UP/{above}"]}
    found = described(tmp_path, source_of([rule], parents=REFERENCE), ["LAB/1", "LAB/2", "LAB/3"])
    assert found == {"LAB/1": ("A", ["UP/Seven"]), "LAB/2": ("B", ["UP/Eight"]), "LAB/3": ("C", None)}


def test_a_crosswalk_gives_parents_where_the_site_supplies_it(tmp_path: Path) -> None:
    items(tmp_path, ("1", "Aspirin", "drug", None))
    crosswalks = {"atc": {"columns": ["drug", "atc"]}}
    rules = [LAB, {"code": "LAB/{drug}", "table": "crosswalk/atc", "parents": "ATC/{atc}"}]
    file = tmp_path / "site.csv"
    file.write_text(csv_text(["drug", "atc"], [(1, "B01AC06"), (1, "N02BA01"), (2, "X")]))
    (tmp_path / "tables").mkdir()
    (tmp_path / "items.csv").rename(tmp_path / "tables" / "items.csv")
    source, tables = source_of(rules, crosswalks), tmp_path / "tables"
    assert described(tables, source, ["LAB/1"]) == {"LAB/1": ("Aspirin", None)}
    assert described(tables, source, ["LAB/1"], {"atc": file}) == {"LAB/1": ("Aspirin", ["ATC/B01AC06", "ATC/N02BA01"])}
    file.write_text("drug\n1\n")
    with pytest.raises(TimeloomError, match="table crosswalk/atc: lacks the column atc"):
        described(tables, source, ["LAB/1"], {"atc": file})


def test_a_dictionary_of_several_rules_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items(tmp_path, (1, "A", "lab", "7"), (2, "B", "chart", "8"))
    items(tmp_path, (7, "Seven"), (8, "Eight"), name="parents", header="number name")
    join = {"table": "parents", "key": {"up": "number"}, "columns": {"above": "name"}}
    rules: list[dict[str, Any]] = [
        LAB | {"where": "kind = 'lab'"},
        LAB | {"code": "CHART/{id}", "where": "kind = 'chart'"},
        {"code": "LAB/{id}", "table": "items", "joins": [join], "parents": ["UP/{above}"]},
    ]
    opened: list[str] = []
    real = Export.open

    def noted(export: Export, path: Path, table: str, label: str | None = None) -> RawTable:
        opened.append(table)
        return real(export, path, table, label)

    monkeypatch.setattr(Export, "open", noted)
    found = described(tmp_path, source_of(rules, parents=REFERENCE), ["LAB/1", "LAB/2", "CHART/1", "CHART/2"])
    assert found == {
        "LAB/1": ("A", ["UP/Seven"]), "LAB/2": (None, ["UP/Eight"]), "CHART/1": (None, None), "CHART/2": ("B", None),
    }  # fmt: skip
    assert opened == ["items", "items", "parents"], "once for both plain rules, once with the parents"


def test_dictionaries_of_several_sources_add_up(tmp_path: Path) -> None:
    exports = []
    for name, label, parent in (("one", "B", "P1"), ("two", "A", "P2")):
        (tmp_path / name).mkdir()
        items(tmp_path / name, (1, label, "x", parent))
        exports.append(Export(tmp_path / name, source_of([LAB | {"parents": "{up}"}])))
    frame = describe(pl.Series(["LAB/1"]), exports)
    assert frame.rows() == [("LAB/1", "A", ["P1", "P2"])]


def test_a_damaged_dictionary_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('id,label\n1,"SECRET\n2,x\n')
    with pytest.raises(TimeloomError, match="table items: record 1 has a quoted field that is never closed") as caught:
        described(tmp_path, source_of([LAB]), ["LAB/1"])
    assert "SECRET" not in str(caught.value)


ROW = st.tuples(*[st.sampled_from(["", "a", "b", "c d", "1"])] * 3)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, max_size=25), st.sampled_from([16, 1 << 20]), st.sampled_from([0, 1 << 20]))
def test_descriptions_are_those_of_a_plain_dictionary(rows: list[tuple[str, str, str]], chunk: int, held: int) -> None:
    codes = ["X/a", "X/b", "X/1", "Y/a"]
    rule = {"code": "X/{id}", "table": "items", "description": "{label}", "parents": ["P/{up}", "ALL/{label|-}"]}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_reader, "CHUNK_BYTES", chunk)
        patch.setattr(dictionaries, "_HELD_ROWS", held)
        items(Path(folder), *rows, header="id label up")
        found = described(Path(folder), source_of([rule]), codes)
    for code in codes:
        rows_of_code = [row for row in rows if row[0] and f"X/{row[0]}" == code]
        texts = sorted(label for _, label, _ in rows_of_code if label)
        parents = {f"P/{up}" for *_, up in rows_of_code if up} | {f"ALL/{label or '-'}" for _, label, _ in rows_of_code}
        assert found[code] == (texts[0] if texts else None, sorted(parents) or None)
