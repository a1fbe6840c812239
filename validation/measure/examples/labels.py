"""What is measured of labels: whether their attrition adds up, and whether each is made of what was known by then."""

from collections.abc import Mapping

import polars as pl

from pipelines.tasks.attrition import NEGATIVE, NO_SPLIT, POSITIVE, START, totals
from validation.measure.files.labels import AUDITED
from validation.measure.measures import Measures
from validation.measure.reading import gather
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry
from warehouse.schemas import ATTRITION, SPLITS

# A row per task: labels, candidates that the attrition does not account for, labels that the attrition does not count,
# labels of subjects without the split or of a moment twice, at whose moment nothing became known, and after death.
MEASURED = {
    "task": pl.String,
    "labels": pl.Int64,
    "difference": pl.Int64,
    "uncounted": pl.Int64,
    "repeated": pl.Int64,
    "unknown_by_then": pl.Int64,
    "after_death": pl.Int64,
}


def read_attrition(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """A row per task, rule and split, summed over the buckets; columns of ATTRITION.

    Raises:
        TimeloomError: a file is damaged.
    """
    return totals(gather(map(tree.attrition, range(buckets)), ATTRITION, ATTRITION.names))


def measure_labels(tasks: Mapping[str, LabelsEntry], attrition: pl.DataFrame, measures: Measures) -> pl.DataFrame:
    """A row per task; columns of MEASURED.

    Args:
        attrition: as `read_attrition` gives it.

    Raises:
        TimeloomError: a file is damaged.
    """
    found = [pl.DataFrame(schema=MEASURED)]
    audited = measures.counted("labels", AUDITED, of="task").rows_by_key("task", named=True, unique=True)
    for name in tasks:
        of_task = attrition.filter(pl.col("task") == name)
        rule, left = pl.col("rule"), pl.col("left")
        sums = of_task.select(
            start=left.filter(rule == START).sum(),
            removed=pl.col("removed").sum(),
            labelled=left.filter(rule.is_in([POSITIVE, NEGATIVE])).sum(),
        ).row(0, named=True)
        counts = {measure: audited.get(name, {}).get(measure, 0) for measure in AUDITED}
        row = counts | {
            "task": name,
            "difference": sums["start"] - sums["removed"] - sums["labelled"],
            "uncounted": abs(counts["labels"] - sums["labelled"]),
        }
        found.append(pl.DataFrame([row], schema=MEASURED))
    return pl.concat(found)


def examples(attrition: pl.DataFrame) -> pl.DataFrame:
    """The numbers of Table A3: `task`, `split`, `positive`, `negative`."""
    counted = attrition.filter(pl.col("rule").is_in([POSITIVE, NEGATIVE]))
    return (
        counted.pivot("rule", index=["task", "split"], values="left", aggregate_function="sum")
        .sort("task", pl.col("split").cast(pl.Enum([*SPLITS, NO_SPLIT])))
        .select("task", "split", POSITIVE, NEGATIVE)
        if counted.height
        else pl.DataFrame(schema={"task": pl.String, "split": pl.String, POSITIVE: pl.Int64, NEGATIVE: pl.Int64})
    )
