"""Folds and few-shot subsets: by subject, stratified, nested, drawn by the seed."""

from datetime import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import TimeloomError
from warehouse.readers.tasks.labels import FOLDS, few_shot, fold_ids, with_splits

SPLITS = ("train", "train", "train", "train", "tuning", "held_out", None)
Rows = list[tuple[int, bool]]


def placed(rows: Rows) -> pl.DataFrame:
    schema = {"subject_id": pl.Int64, "boolean_value": pl.Boolean, "split": pl.String}
    return pl.DataFrame([(of, label, SPLITS[of % 7]) for of, label in rows], schema=schema, orient="row")


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=150), seed=st.integers(0, 5))
def test_folds_are_by_subject_and_even_in_either_class(rows: Rows, seed: int) -> None:
    folds = dict(fold_ids(placed(rows), seed).iter_rows())
    positive = {of for of, label in rows if label}
    everyone = {of for of, _ in rows if SPLITS[of % 7] in ("train", "tuning")}
    assert folds.keys() == everyone
    for kind in (everyone, everyone & positive, everyone - positive):
        sizes = [sum(folds[of] == fold for of in kind) for fold in range(FOLDS)]
        assert max(sizes) - min(sizes) <= 1
    assert dict(fold_ids(placed(rows[::-1]), seed).iter_rows()) == folds


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=400), seed=st.integers(0, 5))
def test_few_shot_subsets_are_nested_sized_and_mixed_as_the_whole(rows: Rows, seed: int) -> None:
    found = dict(few_shot(placed(rows), seed=seed).iter_rows())
    train = {of for of, _ in rows if SPLITS[of % 7] == "train"}
    positive = {of for of, label in rows if label} & train
    assert found.keys() <= train
    before: set[int] = set()
    for share in (0.01, 0.05, 0.10):
        subset = {of for of, smallest in found.items() if smallest <= share}
        assert before <= subset
        assert len(subset) == (max(1, round(share * len(train))) if train else 0)
        if train:
            assert abs(len(subset & positive) - len(subset) * len(positive) / len(train)) <= 1
        before = subset
    assert dict(few_shot(placed(rows[::-1]), seed=seed).iter_rows()) == found


def test_another_seed_draws_others() -> None:
    rows = [(of, of % 3 == 0) for of in range(700)]
    assert (
        few_shot(placed(rows), seed=0)["subject_id"].to_list() != few_shot(placed(rows), seed=1)["subject_id"].to_list()
    )
    assert not fold_ids(placed(rows), 0).sort("subject_id").equals(fold_ids(placed(rows), 1).sort("subject_id"))
    for shares in ([], [0.1, 0.05], [0.0], [1.1]):
        with pytest.raises(TimeloomError, match="shares"):
            few_shot(placed(rows), shares)


def test_rows_keep_their_order_and_held_out_has_neither_fold_nor_subset() -> None:
    rows = pl.DataFrame(
        {"subject_id": [5, 0, 6, 0], "prediction_time": [datetime(2020, 1, 1)] * 4, "boolean_value": [True] * 4}
    )
    splits = pl.DataFrame({"subject_id": [0, 5], "split": ["train", "held_out"]})
    found = with_splits(rows, splits)
    assert found["subject_id"].to_list() == [5, 0, 6, 0] and found["split"].to_list() == [
        "held_out",
        "train",
        None,
        "train",
    ]
    assert found["fold"].to_list() == [None, 0, None, 0] and found["few_shot"].to_list() == [None, 0.01, None, 0.01]
