"""Mutations of what a release is held against: the releases before it, its manifest, its other tables, its profiles."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from pipelines.limits import LimitsConfig
from tests.support import releases
from tests.validation.gate import labels
from validation.measure.losses import Earlier
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ContentEntry
from warehouse.parquet import write_table
from warehouse.schemas import LEDGER
from warehouse.vocabulary import COVERAGE

MORE_LABS = ContentEntry(kind="table", name="labs", counts={"rows": 500, "events": 400, "subjects": 40})


def unchanged(_: ReleaseLayout) -> None:
    """What the release is held against changes, and not the tree."""


def image_of_a_stranger(tree: ReleaseLayout) -> None:
    """A refused CT of a patient who is in no table: one of four patients with CT."""
    items = releases.read_all(tree, "items")
    stranger = items.filter(pl.col("item_key") == "ct-scout").with_columns(
        pl.lit(999, pl.Int64).alias("subject_id"), pl.lit("ct-stranger").alias("item_key")
    )
    releases.write_buckets(tree, pl.concat([items, stranger]), "items")


def no_laboratory_tokens(tree: ReleaseLayout) -> None:
    dropped = ("train", "LOINC", "dropped", "not_in_profile", 10_000)
    frame = pl.DataFrame([dropped], schema=COVERAGE.names, orient="row")
    write_table(tree.coverage(releases.PROFILE), frame, COVERAGE, "coverage")


def missed_join(tree: ReleaseLayout) -> None:
    asked = [("labs", "join_found", "units by unit", 40, 0), ("labs", "join_missed", "units by unit", 60, 0)]
    ledger = pl.read_parquet(tree.ledger)
    more = pl.DataFrame(asked, schema=ledger.schema, orient="row")
    write_table(tree.ledger, pl.concat([ledger, more]), LEDGER, "ledger")


def fewer_numbers(tree: ReleaseLayout) -> None:
    """Of a hundred values of two columns, 94 and 95 are numbers, and all were."""
    before = ReleaseLayout(tree.path.with_name("before"))
    for layout, numbers in ((before, (100, 100)), (tree, (94, 95))):
        columns = zip(("a", "b"), numbers, strict=True)
        rows = [
            ("labs", outcome, name, rows, 0)
            for name, number in columns
            for outcome, rows in (("values", 100), ("numbers", number))
        ]
        ledger = pl.read_parquet(tree.ledger)
        more = pl.DataFrame(rows, schema=ledger.schema, orient="row")
        write_table(layout.ledger, pl.concat([ledger, more]), LEDGER, "ledger")


MUTATIONS: Mapping[str, Callable[[ReleaseLayout], None]] = {
    "contents.lost": unchanged,
    "contents.miscounted": unchanged,
    "subjects.alone_many": image_of_a_stranger,
    "subjects.alone_some": image_of_a_stranger,
    "tokens.silent": no_laboratory_tokens,
    "ledger.missed_share": missed_join,
    "values.fallen": fewer_numbers,
}
# What the release is measured with, beside its tree.
KNOWN: Mapping[str, dict[str, Any]] = {
    "contents.lost": {"earlier": [Earlier("before", [MORE_LABS], {})]},
    "contents.miscounted": {"declared": [MORE_LABS]},
    "subjects.alone_some": {"limits": LimitsConfig(unknown_subjects=0.3)},
    **labels.KNOWN,
}
# What is said where nothing is published, and what is advised.
SAID = {
    "contents.lost": (
        "table labs has 181 of 500 rows, 180 of 400 events",
        "mend the export, or agree to the loss for this night: --accept-loss labs",
    ),
    "subjects.alone_many": (
        "1 of 4 subjects of modality ct are in no other table",
        "write ids alike with subject_normalise, or raise limits.unknown_subjects",
    ),
    "values.fallen": (
        "94.0% of the values in a of table labs are numbers, 100.0% were",
        "look at `timeloom check-source`: signs of numbers, flags and units, or another column",
    ),
    "tokens.silent": (
        "profile mehrt makes no token of LOINC, 100.0% of train's events",
        "add to profiles.mehrt.namespaces, or to profiles.mehrt.left_out: LOINC",
    ),
}
