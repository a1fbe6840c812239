"""Subject ids that the hospital has merged: read from a CSV, de-identified like every other id, grouped.

One person under two ids must not stand in two splits. A merge that is known in time is obeyed; one that comes too late,
after the two ids got different splits, puts both aside.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.ids import SubjectIds
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

COLUMNS = ("old", "new")
ACROSS_SPLITS = "merged_across_splits"
REMEDY = "give a CSV with the columns old and new, a subject id in each"


def read_merges(path: Path, deid: DeidConfig, private: Path, subjects: Collection[SubjectIds] = ()) -> pl.DataFrame:
    """Distinct pairs `old`, `new` of the release's subject ids, sorted; nothing of the hospital's ids is kept.

    Args:
        path: a CSV with the columns old and new, the ids as they stand in the tables.
        private: the folder of the site's key.
        subjects: how the sources' ids become one spelling.

    Raises:
        TimeloomError: the file is missing, is no such CSV, lacks an id, or has one that the sources spell differently.
    """
    try:
        raw = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError(f"cannot read the merges {path.name}", remedy=REMEDY) from error
    missing = [name for name in COLUMNS if name not in raw.columns]
    if missing:
        raise TimeloomError(f"the merges {path.name} have no column {missing[0]}", remedy=REMEDY)
    identifier = Deidentifier(deid, load_key(deid, private))
    spellings = [[spelling.of(raw[name]) for name in COLUMNS] for spelling in {*subjects} or {SubjectIds()}]
    for name, texts in zip(COLUMNS, spellings[0], strict=True):
        for other in spellings[1:]:
            differs = ~texts.eq_missing(other[COLUMNS.index(name)])
            if differs.any():
                line = int(differs.arg_true()[0]) + 2
                raise TimeloomError(
                    f"line {line} of the merges {path.name} has an id that two sources read differently",
                    remedy="write the ids as `subject_normalise` leaves them, or give the sources the same steps",
                )
    pairs = pl.DataFrame([identifier.subject_ids(texts) for texts in spellings[0]])
    empty = pairs.select(pl.any_horizontal(pl.all().is_null())).to_series()
    if empty.any():
        line = int(empty.arg_true()[0]) + 2
        raise TimeloomError(f"line {line} of the merges {path.name} lacks a subject id", remedy=REMEDY)
    return pairs.unique().sort(COLUMNS)


def write_merges(pairs: pl.DataFrame, path: Path) -> None:
    """Leaves the pairs where a task of this run reads them."""
    with atomic_write(path) as temporary:
        pairs.write_parquet(temporary)


def components(pairs: pl.DataFrame) -> pl.DataFrame:
    """`subject_id` and `person` of everyone in `pairs` (old, new): ids that are merged, over however many steps, share
    a person, which is the smallest of them."""
    ids, places = np.unique(np.concatenate([pairs["old"].to_numpy(), pairs["new"].to_numpy()]), return_inverse=True)
    old, new = np.split(places, 2)
    person = np.arange(len(ids))
    while True:
        lower = person.copy()
        for target, source in ((old, new), (new, old)):
            np.minimum.at(lower, person[target], person[source])
        lower = np.minimum(lower, lower[person])
        while not np.array_equal(lower, lower[lower]):
            lower = lower[lower]
        if np.array_equal(lower, person):
            return pl.DataFrame(
                {"subject_id": ids, "person": ids[person]}, schema={"subject_id": pl.Int64, "person": pl.Int64}
            )
        person = lower


def judge_merges(
    pairs: pl.DataFrame, subjects: pl.DataFrame, ledger: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """What the merges mean for this night.

    Args:
        pairs: `old`, `new`.
        subjects: those of the release, columns of SUBJECTS.
        ledger: of the scheme, with everyone it ever knew.

    Returns:
        Present subjects whose merged ids are known under different splits (`subject_id`); new ones that take the split
        of an id they are merged with (`subject_id`, `split`); new ones that take that of another new one, which is
        dealt (`subject_id`, `dealt`): the one with the most events.
    """
    members = components(pairs).join(ledger.select("subject_id", "split"), on="subject_id", how="left")
    splits = members.group_by("person").agg(
        pl.col("split").drop_nulls().n_unique().alias("splits"), pl.col("split").drop_nulls().first().alias("only")
    )
    judged = members.join(subjects.select("subject_id", "events"), on="subject_id").join(splits, on="person")
    aside = judged.filter(pl.col("splits") > 1).select("subject_id").sort("subject_id")
    new = judged.filter(pl.col("split").is_null())
    heirs = new.filter(pl.col("splits") == 1).select("subject_id", pl.col("only").alias("split")).sort("subject_id")
    together = (
        new.filter(pl.col("splits") == 0)
        .sort(["person", "events", "subject_id"], descending=[False, True, False])
        .with_columns(pl.col("subject_id").first().over("person").alias("dealt"))
        .filter(pl.col("subject_id") != pl.col("dealt"))
        .select("subject_id", "dealt")
        .sort("subject_id")
    )
    return aside, heirs, together


def unknown_ids(pairs: pl.DataFrame, subjects: pl.DataFrame, ledger: pl.DataFrame) -> int:
    """How many merged ids nobody has or had: ids are compared as they are written, so that 007 is not 7."""
    named = pl.concat([pairs["old"], pairs["new"]]).unique()
    return int((~named.is_in(pl.concat([subjects["subject_id"], ledger["subject_id"]]).implode())).sum())
