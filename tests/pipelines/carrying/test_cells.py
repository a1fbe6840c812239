"""Cells: where they end hangs on the ids around; which of them are as they were."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.carrying import cells
from pipelines.carrying.cells import Contents, cell_starts


def contents_of(made: dict[int, int], rows: int = 10) -> Contents:
    """Subjects by id, each made of a number."""
    ids = np.array(sorted(made), np.int64)
    hashes = np.array([[made[subject], 7] for subject in ids.tolist()], np.uint64).reshape(-1, 2)
    return Contents.of(ids, hashes, np.full(len(ids), rows))


def members(contents: Contents) -> list[list[int]]:
    return [part.tolist() for part in np.split(contents.subjects, contents.starts[1:])] if len(contents.starts) else []


@pytest.mark.parametrize("rows", [30, 300, 3_000, 30_000])
def test_cells_have_about_so_many_rows(rows: int) -> None:
    ids = np.sort(np.random.default_rng(3).choice(10**9, 20_000, replace=False)).astype(np.int64)
    starts = cell_starts(ids, rows * len(ids))
    mean = rows * len(ids) / len(starts)
    assert starts[0] == 0 and (np.diff(starts) > 0).all()
    assert rows == mean or cells.CELL_ROWS / 2 < mean < cells.CELL_ROWS * 2


def test_a_new_subject_moves_the_ends_beside_it_alone() -> None:
    draw = random.Random(5)
    ids = sorted(draw.sample(range(10**6), 3_000))
    before = contents_of(dict.fromkeys(ids, 1), rows=375)
    now = contents_of(dict.fromkeys([*ids, ids[1_500] + 1], 1), rows=375)
    assert len(members(before)) > 50
    assert len([cell for cell in members(now) if cell not in members(before)]) <= 3


@given(
    st.dictionaries(st.integers(0, 60), st.integers(0, 2), max_size=30),
    st.dictionaries(st.integers(0, 60), st.integers(0, 2), max_size=30),
    st.booleans(),
    st.sampled_from([2_000, 5_000, 20_000]),
)
def test_a_cell_is_kept_if_all_its_subjects_are_as_they_were(
    before: dict[int, int], now: dict[int, int], same: bool, rows: int
) -> None:
    now = before | {k: v for k, v in now.items() if k % 5 == 0} if same else now
    old, new = contents_of(before, rows), contents_of(now, rows)
    expected = [
        members(old).index(cell)
        if cell in members(old) and all(before.get(subject) == now[subject] for subject in cell)
        else -1
        for cell in members(new)
    ]
    assert new.kept_cells(old).tolist() == expected
    assert new.unchanged(old).tolist() == [before.get(subject) == now[subject] for subject in sorted(now)]


def test_the_second_half_of_a_hash_counts_too() -> None:
    old = contents_of({1: 1})
    assert Contents.of(old.subjects, old.hashes + np.array([0, 1], np.uint64), old.rows).kept_cells(old).tolist() == [
        -1
    ]
