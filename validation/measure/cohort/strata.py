"""Who is in each split, and whose labels are positive: by sex, ethnicity, race, insurance and age.

What CliniFuse names for the fairness of models. A subject has one value of each: the first that is known, and a stated
one before one that says that it is unknown; an age is that at the first event, by ten years.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.measures import Measures
from validation.measure.reading import Texts, existing, gather, unreadable
from validation.measure.tally import Tally
from warehouse.layout import ReleaseLayout
from warehouse.parquet import row_groups
from warehouse.schemas import LABELS

# By attribute what its codes begin with.
ATTRIBUTES = {"sex": "DEMO/SEX/", "ethnicity": "DEMO/ETHNICITY/", "race": "DEMO/RACE/", "insurance": "INSURANCE/"}
AGE, UNKNOWN, OTHER = "age", "unknown", "other"
BY = (*ATTRIBUTES, AGE)
# Patients of a split, and labels of a task, by attribute and value.
PATIENTS = pl.Schema({"attribute": pl.String, "value": pl.String, "split": pl.String, "subjects": pl.Int64})
LABELLED = pl.Schema(
    {"task": pl.String, "attribute": pl.String, "value": pl.String, "positive": pl.Int64, "negative": pl.Int64}
)
# Values of an attribute that are told apart.
MOST = 12
# Between an attribute, which has none, and its value.
_APART = "/"
_ANSWERS = ["positive", "negative"]
_BIRTH, _OLDEST, _DAYS_A_YEAR = "MEDS_BIRTH", 90, 365.2425
_COLUMNS = ["subject_id", "time", "available_time", "code"]
_LIVES: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "born": pl.Datetime("us"),
    "first": pl.Datetime("us"),
}
_FACTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "available_time": pl.Datetime("us"),
    "attribute": pl.String,
    "value": pl.String,
}


def strata_of_bucket(
    tree: ReleaseLayout, bucket: int, splits: pl.DataFrame, tasks: Iterable[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One bucket's patients of each split (PATIENTS), and its labels of each task (LABELLED).

    Args:
        splits: `subject_id`, `split`.

    Raises:
        TimeloomError: a file is damaged.
    """
    patients, labelled = [PATIENTS.to_frame()], [LABELLED.to_frame()]
    for values in _values(tree, bucket):
        placed = values.join(splits.select("subject_id", "split").drop_nulls(), on="subject_id")
        counted = placed.group_by("attribute", "value", "split").agg(_number().alias("subjects"))
        patients.append(counted.select(PATIENTS.names()))
        labels = [
            gather([tree.labels(task, bucket)], LABELS, ["subject_id", "boolean_value"]).with_columns(
                pl.lit(task).alias("task")
            )
            for task in tasks
        ]
        if labels:
            of_tasks = pl.concat(labels).join(values, on="subject_id").group_by("task", "attribute", "value")
            positive, negative = _number(pl.col("boolean_value")), _number(~pl.col("boolean_value"))
            counted = of_tasks.agg(positive.alias("positive"), negative.alias("negative"))
            labelled.append(counted.select(LABELLED.names()))
    return pl.concat(patients), pl.concat(labelled)


def tally_strata(tally: Tally, patients: pl.DataFrame, labelled: pl.DataFrame) -> None:
    """Adds what `strata_of_bucket` gives."""
    tally.add("strata", patients, of="attribute", within="value", split="split")
    named = labelled.select("task", pl.concat_str("attribute", "value", separator=_APART).alias("stratum"), *_ANSWERS)
    tally.add("task_strata", named, of="task", within="stratum")


def measure_strata(measures: Measures) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Patients of each split (PATIENTS), and labels of each task (LABELLED), both in order of attribute and value."""
    patients = measures.counted("strata", ["subjects"], of="attribute", within="value", split="split")
    labelled = measures.counted("task_strata", _ANSWERS, of="task", within="stratum")
    parts = pl.col("stratum").str.splitn(_APART, 2)
    labelled = labelled.with_columns(
        parts.struct.field("field_0").alias("attribute"), parts.struct.field("field_1").alias("value")
    )
    rare = _rare(patients)
    return (
        _summed(patients.select(PATIENTS.names()), ["attribute", "value", "split"], rare),
        _summed(labelled.select(LABELLED.names()), ["task", "attribute", "value"], rare),
    )


def _number(which: pl.Expr | None = None) -> pl.Expr:
    return (pl.len() if which is None else which.sum()).cast(pl.Int64)


def _values(tree: ReleaseLayout, bucket: int) -> Iterable[pl.DataFrame]:
    """`subject_id`, `attribute` and `value` of every subject of a bucket, for each attribute."""
    for path in existing([tree.events(bucket)]):
        subjects, facts = _read(path)
        years = ((pl.col("first") - pl.col("born")).dt.total_days() / _DAYS_A_YEAR).clip(0, _OLDEST)
        decade = (years // 10 * 10).cast(pl.Int64)
        band = pl.format("{}-{}", decade, decade + 9)
        ages = subjects.select(
            "subject_id",
            pl.lit(AGE).alias("attribute"),
            pl.when(decade >= _OLDEST).then(pl.lit(f"{_OLDEST}+")).otherwise(band).alias("value"),
        )
        every = subjects.select("subject_id").join(pl.DataFrame({"attribute": list(BY)}), how="cross")
        known = pl.concat([facts.select(ages.columns), ages])
        yield every.join(known, on=["subject_id", "attribute"], how="left").with_columns(
            pl.col("value").fill_null(UNKNOWN)
        )


def _read(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`subject_id`, `born`, `first` (when something else first was) of every subject, and `subject_id`, `attribute`,
    `value` of what is known of some.

    Raises:
        TimeloomError: the events are damaged.
    """
    lives, facts = [pl.DataFrame(schema=_LIVES)], [pl.DataFrame(schema=_FACTS)]
    try:
        with pq.ParquetFile(path, read_dictionary=["code"], page_checksum_verification=True, pre_buffer=True) as file:
            for groups in row_groups(file):
                table = file.read_row_groups(groups, columns=_COLUMNS)
                code = Texts.of(table["code"])
                frame = pl.DataFrame(table.drop_columns("code"))
                lives.append(_lives(frame, code))
                facts.append(_facts(frame, code))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise unreadable(path) from error
    first = (
        pl.concat(facts)
        .sort(pl.col("value") == UNKNOWN, "available_time", "value", nulls_last=False)
        .group_by("subject_id", "attribute", maintain_order=True)
        .agg(pl.col("value").first())
    )
    return pl.concat(lives).group_by("subject_id").agg(pl.col("born", "first").min()), first


def _lives(frame: pl.DataFrame, code: Texts) -> pl.DataFrame:
    birth, other = code.which((_BIRTH,)), ~code.which((_BIRTH, None))
    time = pl.col("time")
    return (
        frame.with_columns(pl.Series("birth", birth), pl.Series("other", other))
        .group_by("subject_id")
        .agg(time.filter("birth").min().alias("born"), time.filter("other").min().alias("first"))
    )


def _facts(frame: pl.DataFrame, code: Texts) -> pl.DataFrame:
    text = pl.col("code")
    stated = text
    for begin in ATTRIBUTES.values():
        stated = stated.str.strip_prefix(begin)
    name = pl.coalesce(pl.when(text.str.starts_with(begin)).then(pl.lit(key)) for key, begin in ATTRIBUTES.items())
    # Said once for each code that there is, and spread.
    said = pl.DataFrame({"code": pl.Series(code.distinct, dtype=pl.String)}).select(
        name.alias("attribute"), stated.str.to_lowercase().alias("value")
    )
    rows = np.flatnonzero(said["attribute"].is_not_null().to_numpy()[code.place])
    return pl.concat(
        [frame.select("subject_id", "available_time")[rows], said[code.place[rows]]], how="horizontal"
    ).select(list(_FACTS))


def _rare(patients: pl.DataFrame) -> pl.DataFrame:
    """`attribute`, `value` of those that are not among the MOST with the most patients."""
    totals = patients.filter(pl.col("value") != UNKNOWN).group_by("attribute", "value").agg(pl.col("subjects").sum())
    ranked = totals.sort(["attribute", "subjects", "value"], descending=[False, True, False])
    place = pl.int_range(pl.len()).over("attribute")
    return ranked.filter(place >= MOST).select("attribute", "value")


def _summed(counts: pl.DataFrame, by: list[str], rare: pl.DataFrame) -> pl.DataFrame:
    marked = counts.join(rare.with_columns(pl.lit(True).alias("rare")), on=["attribute", "value"], how="left")
    named = marked.with_columns(pl.when("rare").then(pl.lit(OTHER)).otherwise("value").alias("value")).drop("rare")
    order = pl.col("attribute").replace_strict({name: place for place, name in enumerate(BY)}, return_dtype=pl.Int64)
    return (
        named.group_by(by).sum().sort(*(order if name == "attribute" else name for name in by)).select(counts.columns)
    )
