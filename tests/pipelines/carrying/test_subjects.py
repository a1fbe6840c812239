"""Who changed, and what of the release before is taken over for the others."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.carrying import subjects
from pipelines.carrying.cells import Contents
from pipelines.carrying.subjects import Changes, carried, mended
from pipelines.profiles.counting import COUNTED, LEFT_OUT, VALUES, Counts
from pipelines.tasks.attrition import mended_tables
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, write_table
from warehouse.schemas import CONTENTS, ITEMS, LABELS, SCHEME_SUBJECTS


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets as small as these are mended too."""
    monkeypatch.setattr(subjects, "FEWEST_ROWS", 0)


def release(path: Path, made: dict[int, int], vectors: dict[int, str], splits: dict[int, str]) -> ReleaseLayout:
    """A release of a bucket: by subject what it is made of, the key of an item with a vector, and the split."""
    tree = ReleaseLayout(path)
    ids = np.array(sorted(made), np.int64)
    hashes = np.array([[made[subject], 5] for subject in ids.tolist()], np.uint64)
    frame = Contents.of(ids, hashes, np.full(len(ids), 3)).frame().with_columns(pl.lit(None).alias("account"))
    write_table(tree.contents(0), frame, CONTENTS, "contents")
    usual = {"modality": "ct", "verdict": "ok", "units_encoded": 1, "units_failed": 0, "artificial_link": False}
    rows = [usual | {"subject_id": subject, "item_key": key, "store": "a"} for subject, key in vectors.items()]
    rows.append(usual | {"subject_id": 9, "item_key": f"{path.name}", "store": "b"})
    rows.append(usual | {"subject_id": 9, "item_key": f"{path.name}", "store": "a", "verdict": "failed_read"})
    write_table(tree.items(0), pl.DataFrame(rows, empty_frame(ITEMS).schema), ITEMS, "items")
    assigned = pl.DataFrame({"subject_id": splits.keys(), "split": splits.values(), "order": 0.5})
    write_table(tree.scheme_subjects("s"), assigned, SCHEME_SUBJECTS, "splits")
    return tree


MADE = dict.fromkeys(range(10), 1)


@pytest.mark.parametrize(
    ("keys", "now", "before"),
    [
        ({}, [3, 11], [3, 4]),
        ({"stores": {"ct": "a"}}, [3, 5, 6, 11], [3, 4, 5, 6]),
        ({"stores": {}}, [3, 5, 6, 9, 11], [3, 4, 5, 6, 9]),
        ({"scheme": "s"}, [2, 3, 7, 11], [2, 3, 4, 7]),
    ],
)
def test_a_subject_is_changed_by_rows_items_and_splits(
    keys: dict[str, Any], now: list[int], before: list[int], tmp_path: Path
) -> None:
    former = release(tmp_path / "before", MADE, {1: "i", 5: "j"}, {1: "train", 2: "train", 7: "tuning"})
    changed = {k: v for k, v in MADE.items() if k != 4} | {3: 2, 11: 1}
    tree = release(tmp_path / "now", changed, {1: "i", 6: "j"}, {1: "train", 2: "tuning"})
    found = Changes.of(tree, former, 0, **keys)
    assert found is not None or len(now) + len(before) > 8
    if found is not None:
        assert (found.now.tolist(), found.before.tolist()) == (now, before)


def test_where_most_changed_all_is_made_anew(tmp_path: Path) -> None:
    former = release(tmp_path / "before", MADE, {}, {})
    assert Changes.of(release(tmp_path / "now", dict.fromkeys(range(10), 2), {}, {}), former, 0) is None


def test_a_small_bucket_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = release(tmp_path / "before", MADE, {}, {})
    tree = release(tmp_path / "now", MADE | {3: 2}, {}, {})
    monkeypatch.setattr(subjects, "FEWEST_ROWS", 30)
    assert Changes.of(tree, former, 0) is not None, "ten subjects of three rows"
    monkeypatch.setattr(subjects, "FEWEST_ROWS", 31)
    assert Changes.of(tree, former, 0) is None


def test_rows_of_changed_subjects_are_replaced_and_of_no_others() -> None:
    def labels(rows: list[tuple[int, int, bool]]) -> pl.DataFrame:
        return pl.DataFrame(rows, empty_frame(LABELS).schema, orient="row")

    former = labels([(1, 10, True), (2, 10, True), (2, 20, False), (4, 5, True)])
    new = labels([(3, 1, True), (2, 15, False)])
    changes = Changes(np.array([2, 3]), np.array([2, 4]))
    made = carried(former, new, changes, LABELS.names)
    assert made.equals(labels([(1, 10, True), (2, 15, False), (3, 1, True)]))


def test_counts_are_mended_by_those_who_changed() -> None:
    assert mended({"a": 5, "b": 2}, {"a": 1, "b": 2}, {"a": 4, "c": 7}) == {"a": 8, "c": 7}
    schemas = {"tokens": COUNTED, "values": VALUES, "left_out": LEFT_OUT}

    def counts(*tokens: tuple[str, int]) -> Counts:
        frames = {name: pl.DataFrame(schema=schema) for name, schema in schemas.items()}
        rows = [("train", token, "code", number) for token, number in tokens]
        return Counts(**frames | {"tokens": pl.DataFrame(rows, COUNTED, orient="row")})

    made = counts(("A", 3), ("B", 2)).mended(counts(("B", 2), ("A", 1)), counts(("C", 4)))
    assert made.tokens.equals(counts(("A", 2), ("C", 4)).tokens)


def test_attrition_is_mended_row_by_row() -> None:
    def table(*numbers: tuple[int, int]) -> pl.DataFrame:
        return pl.DataFrame(
            {"rule": ["start", "washin"], "removed": [n for n, _ in numbers], "left": [n for _, n in numbers]}
        )

    made = mended_tables(table((0, 9), (2, 7)), table((0, 2), (1, 1)), table((0, 3), (0, 3)))
    assert made.equals(table((0, 10), (1, 9)))
