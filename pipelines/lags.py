"""lags: how long a result usually takes; used for rows that have no result time.

Schema in: the lags that segments counted. Schema out: LAGS, append-only: what a code's rows were once given stays, so
that a night with more results moves no timeline.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from extractors.events.converted import LAG_STEP_US
from extractors.events.lag_counts import LAGS as COUNTED
from pipelines.aligning.segments import read_frame_blob, read_texts
from pipelines.engine.context import counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.meds import Counts as MedsCounts
from pipelines.night import Night, Stage
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, read_frame, write_table
from warehouse.schemas import LAGS

PERCENTILE = 0.95
# With fewer rows a code takes its table's lag.
MIN_ROWS = 100
WHOLE_TABLE = ""


class Counts(TypedDict):
    """What the task tells: codes whose lag is known."""

    codes: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    segments: list[dict[str, Any]]
    before: str | None


def plan(night: Night) -> list[Task]:
    """One task over every segment that counted lags, and over the lags that were given out so far."""
    path = ReleaseLayout(Path()).lags
    (before,) = night.context.inherited(path)
    segments = [
        {
            "source": counts_of(entry, MedsCounts)["table"],
            "path": str(night.layout.segments / counts_of(entry, MedsCounts)["segment"]),
        }
        | {name: counts_of(entry, MedsCounts)["blobs"][name] for name in ("codes", "lags")}
        for entry in night.report("meds").entries.values()
        if counts_of(entry, MedsCounts)["blobs"]
    ]
    return [
        make_task(
            STAGE,
            "all",
            night.context.staging,
            settings=[PERCENTILE, MIN_ROWS],
            inputs=sorted([segment["source"], segment["codes"][-1], segment["lags"][-1]] for segment in segments),
            continued={str(path): before.sha256 if before else None},
            params=Params(segments=segments, before=str(before.path) if before else None),
        )
    ]


def run(params: Params, base: Path) -> Result:
    """Adds the codes that have enough rows by now."""
    tree = ReleaseLayout(base)
    known = read_frame(Path(params["before"])) if params["before"] else empty_frame(LAGS)
    counted = pl.concat([_counted(param) for param in params["segments"]] or [_NOTHING])
    whole = counted.with_columns(pl.lit(WHOLE_TABLE).alias("code"))
    fitted = pl.concat([fit(counted).filter(pl.col("rows") >= MIN_ROWS), fit(whole)])
    new = fitted.join(known, on=["source", "code"], how="anti")
    lags = pl.concat([known, new.select(known.columns)]).sort("source", "code")
    rows = write_table(tree.lags, lags, LAGS, "the lags")
    return Result({str(tree.lags.relative_to(base)): rows}, Counts(codes=rows))


_NOTHING = pl.DataFrame(schema={"source": pl.String, "code": pl.String, "step": pl.Int64, "rows": pl.Int64})


def _counted(segment: dict[str, Any]) -> pl.DataFrame:
    counted = read_frame_blob(Path(segment["path"]), segment["lags"], COUNTED)
    codes = pl.Series("code", read_texts(Path(segment["path"]), segment["codes"]), dtype=pl.String)
    return counted.select(
        pl.lit(segment["source"]).alias("source"), codes.gather(counted["code"]).alias("code"), "step", "rows"
    )


def fit(counted: pl.DataFrame) -> pl.DataFrame:
    """The 95th percentile of each code's lags, as the end of the step that it lies in.

    Args:
        counted: columns source, code, step, rows: rows whose lag lies in (step - 1, step] steps.

    Gives columns source, code, lag_us, rows.
    """
    each = counted.group_by("source", "code", "step").agg(pl.col("rows").sum()).sort("source", "code", "step")
    below = pl.col("rows").cum_sum().over("source", "code")
    total = pl.col("rows").sum().over("source", "code")
    reached = each.with_columns(below.alias("below"), total.alias("total"))
    return (
        reached.filter(pl.col("below") >= PERCENTILE * pl.col("total"))
        .group_by("source", "code", maintain_order=True)
        .agg((pl.col("step").min() * LAG_STEP_US).alias("lag_us"), pl.col("total").first().alias("rows"))
    )


def awaited(lags: pl.DataFrame, wanted: dict[str, set[str]]) -> dict[str, dict[str, int]]:
    """By source and code, the lag in microseconds of each wanted code that has one, its own or its table's."""
    known: dict[str, dict[str, int]] = defaultdict(dict)
    for source, code, lag in lags.select("source", "code", "lag_us").iter_rows():
        known[source][code] = lag
    found = {}
    for source, codes in sorted(wanted.items()):
        of = known[source]
        found[source] = {code: of.get(code, of.get(WHOLE_TABLE)) for code in sorted(codes)}
    return {source: {code: lag for code, lag in of.items() if lag is not None} for source, of in found.items()}


STAGE = Stage(
    "lags",
    1,
    "pipelines.lags:run",
    after=("meds",),
    in_conversion=True,
    plan=plan,
    lasting=("lags.parquet",),
    settings_are=("percentile", "least rows"),
    inputs_are=("rows of tables",),
)
