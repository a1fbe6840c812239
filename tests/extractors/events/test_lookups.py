"""Lookups: in memory and in a file they find the same, and a key that only looks like another finds nothing."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from extractors.events import joins, lookups
from extractors.events.joins import attach_all
from extractors.events.lookups import HASHES, Asking, Lookup, StoredLookup
from extractors.source import JoinRule, Source
from extractors.tables.export import Export
from extractors.tables.rows import Rows, TextColumn

RULE = JoinRule.model_validate({"table": "u", "key": "k", "columns": {"found": "value", "kind": "kind"}})


def rows_of(**columns: list[str | None]) -> Rows:
    number = len(next(iter(columns.values())))
    given = {name: TextColumn(pl.Series(texts, dtype=pl.String)) for name, texts in columns.items()}
    return Rows(given, np.arange(number), np.zeros(number, np.uint64))


def answers(keys: Sequence[str | None], values: Sequence[str | None]) -> pl.DataFrame:
    first, second = lookups.hashes_of(pl.DataFrame({"k": list(keys)}, schema={"k": pl.String}))
    found = pl.Series("found", values, dtype=pl.String)
    return pl.DataFrame([found, pl.Series(HASHES[0], first), pl.Series(HASHES[1], second)])


def in_memory(_folder: Path, *parts: pl.DataFrame) -> Lookup:
    return Lookup(pl.concat(parts))


def in_a_file(folder: Path, *parts: pl.DataFrame) -> StoredLookup:
    with StoredLookup(folder / "answers") as stored:
        for part in parts:
            stored.add(part)
        assert stored.seal()
    return stored


KINDS = pytest.mark.parametrize("build", [in_memory, in_a_file])
Build = Callable[..., Lookup | StoredLookup]


@KINDS
def test_rows_get_what_stands_beside_their_key(build: Build, tmp_path: Path) -> None:
    lookup = build(
        tmp_path, answers(["a", "b"], ["A", None]), answers([], []), answers(["c", "", None], ["C", "E", "N"])
    )
    asked = rows_of(k=["c", None, "x", "a", "c", "b", ""], other=list("1234567"))
    for _ in range(2):
        made = lookup.attach(asked, Asking(["k"]))
        assert made.columns["found"].rows.to_list() == ["C", None, None, "A", "C", None, "E"]
        assert made.columns["other"].rows.to_list() == list("1234567")
        assert made.number.tolist() == list(range(7))
    assert lookup.attach(rows_of(k=["x", None]), Asking(["k"])).columns["found"].rows.to_list() == [None, None]
    assert len(lookup.attach(rows_of(k=[]), Asking(["k"])).columns["found"].rows) == 0


@KINDS
def test_a_key_that_shares_one_hash_finds_nothing(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = {"a": (2**63, 1), "b": (2, 2), "x": (2**63, 9), "y": (2**63 + 1, 1)}

    def hashes_of(keys: pl.DataFrame) -> tuple[lookups.U64, lookups.U64]:
        first, second = np.array([hashed[key] for key in keys.to_series()], np.uint64).T
        return first.copy(), second.copy()

    monkeypatch.setattr(lookups, "hashes_of", hashes_of)
    lookup = build(tmp_path, answers(["a", "b"], ["A", "B"]))
    made = lookup.attach(rows_of(k=["x", "a", "y", "b"]), Asking(["k"]))
    assert made.columns["found"].rows.to_list() == [None, "A", None, "B"]


def test_a_stored_lookup_says_that_a_key_stands_there_twice_and_gives_its_rows_back(tmp_path: Path) -> None:
    parts = [answers(["a", "b"], ["A", "B"]), answers(["c", "a"], ["C", "D"])]
    with StoredLookup(tmp_path / "answers") as stored:
        for part in parts:
            stored.add(part)
        assert stored.rows == 4
        assert not stored.seal()
        assert pl.concat(stored.frames()).equals(pl.concat(parts))


def test_a_lookup_of_nothing_finds_nothing() -> None:
    made = Lookup(answers([], [])).attach(rows_of(k=["a", None]), Asking(["k"]))
    assert made.columns["found"].rows.to_list() == [None, None]
    assert made.columns["found"].rows.dtype == pl.String


@pytest.mark.parametrize(("memory", "file", "pieces"), [(1 << 30, 0, 0), (100_000, 1, 0), (20_000, 1, 1)])
def test_what_does_not_fit_is_kept_in_a_file_and_rows_stay_in_their_order(
    memory: int, file: int, pieces: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = random.Random(5)
    keys = [f"key {number}" for number in range(3_000)]
    seeded.shuffle(keys)
    (tmp_path / "u.csv").write_text(
        "k,value,kind\n" + "".join(f"{key},the value of {key},{len(key)}\n" for key in keys)
    )
    source = Source.model_validate({"name": "s", "subject": "k", "tables": {"u": {"role": "reference"}}})
    asked = pl.DataFrame({"k": [f"key {seeded.randrange(3_500)}" for _ in range(5_000)]})
    used = {"file": 0, "pieces": 0}
    stored, by_pieces = StoredLookup.seal, joins._attach_by_pieces

    def seal(lookup: StoredLookup) -> bool:
        used["file"] += 1
        return stored(lookup)

    def cut(*given: object) -> object:
        used["pieces"] += 1
        return by_pieces(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredLookup, "seal", seal)
    monkeypatch.setattr(joins, "_attach_by_pieces", cut)
    monkeypatch.setattr(joins, "LOOKUP_BYTES", memory)
    monkeypatch.setattr("extractors.tables.csv_reader.CHUNK_BYTES", 20_000)
    scratch = tmp_path / "private"
    made = pl.concat(attach_all(iter([asked[:2_000], asked[2_000:]]), Export(tmp_path, source), [RULE], scratch))
    assert used == {"file": file, "pieces": pieces}
    if not pieces:
        assert made["k"].to_list() == asked["k"].to_list()
    known = {f"key {number}" for number in range(3_000)}
    for key, found, kind in made.select("k", "found", "kind").iter_rows():
        assert found == (f"the value of {key}" if key in known else None)
        assert kind == (str(len(key)) if key in known else None)
    assert len(made) == 5_000
    assert not scratch.exists() or list(scratch.iterdir()) == []


def test_a_file_is_forgotten_page_by_page(tmp_path: Path) -> None:
    """What was read of the file does not stay with the process: a lookup of any size would fill its memory."""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("this system does not say which pages are held")
    size = 20_000
    keys = [str(number) for number in range(size)]
    stored = in_a_file(tmp_path, answers(keys, [f"{'x' * 200}{key}" for key in keys]))
    made = stored.attach(rows_of(k=list(keys)), Asking(["k"]))
    assert made.columns["found"].rows.null_count() == 0
    text = Path("/proc/self/smaps").read_text().split(str(tmp_path / "answers"))[1]
    held = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Rss:"))
    assert held < 100, "kB of the file are still held"
