"""Simulated visit notes as their authors published them: what the index says is what Python's csv module reads."""

import csv

import pytest

from extractors.note.tokens import load_tokens
from tests.support.notes import found_in
from tests.support.real_data import REAL_DATA

DATA = REAL_DATA / "notes"
COLUMNS = {"aci-bench": "note", "mts-dialog": "section_text"}
pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason="TIMELOOM_DATA has no folder notes"),
    pytest.mark.whole,  # In `make test` alone: thousands of notes.
]


def rows_of(folder: str) -> dict[str, list[str]]:
    """By file, the texts of its notes."""
    found = {}
    for path in sorted((DATA / folder).glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        if COLUMNS[folder] in rows[0]:
            found[path.name] = [row[COLUMNS[folder]] for row in rows]
    return found


@pytest.mark.parametrize(("folder", "notes"), [("aci-bench", 207), ("mts-dialog", 1_701)])
def test_every_row_is_one_note_with_its_verdict_tokens_and_no_time(folder: str, notes: int) -> None:
    expected = rows_of(folder)
    found = found_in(DATA / folder)
    by_file = {name: [item for item in found if item.paths == (name,)] for name in expected}
    assert len(found) == sum(map(len, expected.values())) == notes
    for name, texts in expected.items():
        for item, text in zip(by_file[name], texts, strict=True):
            says = any(letter.isalnum() for letter in text)
            assert item.verdict == ("ok" if says else "refused_empty")
            assert (item.time, item.raw_subject, item.time_source) == (None, None, "")
            if says:
                ((_, (encoding,)),) = load_tokens(None).of([text])
                wanted = 1 if len(encoding.ids) <= 510 else 1 + -(-(len(encoding.ids) - 510) // 384)
                assert item.geometry["tokens"] == len(encoding.ids)
                assert item.units_expected == min(wanted, 8)


def test_copies_are_those_of_a_plain_comparison() -> None:
    texts = [text for texts in rows_of("mts-dialog").values() for text in texts]
    tidy = [" ".join(text.split()) for text in texts]
    found = found_in(DATA / "mts-dialog")
    assert [item.geometry.get("exact_copies", 0) for item in found] == [tidy.count(text) - 1 for text in tidy]
