"""What is measured of labels: whether their attrition adds up, and whether each is made of what was known by then.

Nothing here reads a definition: an event of the subject must have become known at the very moment of a prediction, and
nobody is predicted after his death, whatever the task is.
"""

from collections.abc import Mapping

import polars as pl

from pipelines.tasks.attrition import NEGATIVE, NO_SPLIT, POSITIVE, START, totals
from validation.measure.reading import collect, gather, scan
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry
from warehouse.schemas import ATTRITION, LABELS, SPLITS

KEYS = ["subject_id", "prediction_time"]
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
_DEATH = "^MEDS_DEATH(/|$)"


def read_attrition(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """A row per task, rule and split, summed over the buckets; columns of ATTRITION.

    Raises:
        TimeloomError: a file is damaged.
    """
    return totals(gather(map(tree.attrition, range(buckets)), ATTRITION, ATTRITION.names))


def measure_labels(
    tree: ReleaseLayout, buckets: int, tasks: Mapping[str, LabelsEntry], attrition: pl.DataFrame
) -> pl.DataFrame:
    """A row per task; columns of MEASURED. One bucket's columns are in memory at a time.

    Args:
        attrition: as `read_attrition` gives it.

    Raises:
        TimeloomError: a file is damaged.
    """
    found = [pl.DataFrame(schema=MEASURED)]
    audited = {name: [0, 0, 0, 0] for name in tasks}
    for bucket in range(buckets):
        labels = {name: gather([tree.labels(name, bucket)], LABELS, KEYS) for name in tasks}
        if not any(frame.height for frame in labels.values()):
            continue
        known = _known(tree, bucket, pl.concat(list(labels.values()))["subject_id"].unique())
        for name, frame in labels.items():
            for place, number in enumerate(_audit(frame, tasks[name], known)):
                audited[name][place] += number
    for name, (number, repeated, unknown, dead) in audited.items():
        of_task = attrition.filter(pl.col("task") == name)
        rule, left = pl.col("rule"), pl.col("left")
        sums = of_task.select(
            start=left.filter(rule == START).sum(),
            removed=pl.col("removed").sum(),
            labelled=left.filter(rule.is_in([POSITIVE, NEGATIVE])).sum(),
        ).row(0, named=True)
        row = {
            "task": name,
            "labels": number,
            "difference": sums["start"] - sums["removed"] - sums["labelled"],
            "uncounted": abs(number - sums["labelled"]),
            "repeated": repeated,
            "unknown_by_then": unknown,
            "after_death": dead,
        }
        found.append(pl.DataFrame([row], schema=MEASURED))
    return pl.concat(found)


def _known(tree: ReleaseLayout, bucket: int, subjects: pl.Series) -> dict[str, pl.DataFrame]:
    """By clock, each moment at which something of a subject became known, once; `death`: the last moment of a life."""
    path = tree.events(bucket)
    events = collect(
        scan(path)
        .filter(pl.col("subject_id").is_in(subjects.implode()) & pl.col("time").is_not_null())
        .select("subject_id", "time", "available_time", pl.col("code").str.contains(_DEATH).alias("death")),
        path,
    )
    clocks = {
        clock: events.select("subject_id", pl.col(clock).alias("prediction_time")).unique()
        for clock in ("time", "available_time")
    }
    deaths = events.filter("death").group_by("subject_id").agg(pl.col("available_time").min().alias("died"))
    return clocks | {"death": deaths}


def _audit(labels: pl.DataFrame, task: LabelsEntry, known: Mapping[str, pl.DataFrame]) -> tuple[int, int, int, int]:
    moments = known[str(task.rules["clock"])]
    unknown = labels.join(moments, on=KEYS, how="anti").height
    dead = labels.join(known["death"], on="subject_id").filter(pl.col("died") <= pl.col("prediction_time")).height
    return labels.height, labels.height - labels.unique().height, unknown, dead


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
