"""Mutations of labels: a right release with the labels of one task, and what breaks each expectation of them alone."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import polars as pl

from tests.support import releases
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry
from warehouse.parquet import write_table
from warehouse.schemas import ATTRITION, LABELS

TASK = "case"
ENTRY = LabelsEntry(
    id="test.case.v1",
    title="A test's own",
    rules={"clock": "available_time"},
    rules_hash="0",
    scheme=releases.SCHEME,
    positive=0,
    negative=0,
)


def right_labels(tree: ReleaseLayout) -> pl.DataFrame:
    """A label of each subject when his first laboratory result became known."""
    labs = releases.read_all(tree, "events").filter(pl.col("source") == "labs")
    return labs.group_by("subject_id", maintain_order=True).agg(
        pl.col("available_time").first().alias("prediction_time"), pl.lit(True).alias("boolean_value")
    )


def write_labels(tree: ReleaseLayout, labels: pl.DataFrame, *, start: int, positive: int) -> None:
    """Label files, and an attrition table that counts so many."""
    home = bucket_of(labels["subject_id"].to_numpy(), releases.BUCKETS)
    for bucket in range(releases.BUCKETS):
        write_table(tree.labels(TASK, bucket), labels.filter(pl.Series(home == bucket)), LABELS, "labels")
        counted = [("start", start), ("positive", positive), ("negative", 0)] if bucket == 0 else []
        rows = [(TASK, step, rule, "train", 0, left) for step, (rule, left) in enumerate(counted)]
        kinds = [pl.String, pl.Int32, pl.String, pl.String, pl.Int64, pl.Int64]
        schema = dict(zip(ATTRITION.names, kinds, strict=True))
        write_table(tree.attrition(bucket), pl.DataFrame(rows, schema, orient="row"), ATTRITION, "attrition")


def one_second_ahead(tree: ReleaseLayout) -> None:
    labels = right_labels(tree)
    ahead = labels.head(1).with_columns(pl.col("prediction_time") - timedelta(seconds=1))
    write_labels(tree, pl.concat([ahead, labels.tail(-1)]), start=labels.height, positive=labels.height)


def at_death(tree: ReleaseLayout) -> None:
    """Right labels, as nobody of the release dies; tests/whole/test_labels.py plants one. The test sets the figure."""
    labels = right_labels(tree)
    write_labels(tree, labels, start=labels.height, positive=labels.height)


def a_history_ahead(tree: ReleaseLayout) -> None:
    """Right labels; tests/validation/measure/probes/test_bucket.py plants leaks. The test sets the figure."""
    at_death(tree)


def someone_lost(tree: ReleaseLayout) -> None:
    labels = right_labels(tree)
    write_labels(tree, labels, start=labels.height + 1, positive=labels.height)


def a_label_gone(tree: ReleaseLayout) -> None:
    labels = right_labels(tree)
    write_labels(tree, labels.tail(-1), start=labels.height, positive=labels.height)


def a_label_twice(tree: ReleaseLayout) -> None:
    labels = right_labels(tree)
    more = labels.height + 1
    write_labels(tree, pl.concat([labels, labels.head(1)]), start=more, positive=more)


MUTATIONS: Mapping[str, Callable[[ReleaseLayout], None]] = {
    "labels.unknown_by_then": one_second_ahead,
    "labels.after_death": at_death,
    "labels.difference": someone_lost,
    "labels.uncounted": a_label_gone,
    "labels.repeated": a_label_twice,
    "probes.ahead": a_history_ahead,
}
FIGURES = {"labels.after_death", "probes.ahead"}
KNOWN: Mapping[str, dict[str, Any]] = {name: {"labels": {TASK: ENTRY}} for name in MUTATIONS}
