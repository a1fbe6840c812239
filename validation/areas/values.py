"""Values: whether a column still holds numbers, against the release before."""

import polars as pl

from validation.areas.area import Area, Expectation
from validation.measure.ledger import read_ledger
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per table and column of values; one empty row where there is none.

    `values`, `numbers`: cells that hold something, and a number; `values_before`, `numbers_before`: those of the
    release before, 0 where it has no such column; `share`, `share_before`: of numbers among the values. `fallen`: 1
    where the share fell by more than the limit.
    """
    now = _counted(release.ledger)
    before = _counted(read_ledger(release.before)) if release.before is not None else now.clear()
    found = now.join(before, on=["table", "column"], how="left", suffix="_before").with_columns(
        pl.col(pl.Int64).fill_null(0)
    )
    if found.is_empty():
        found = pl.DataFrame([["", "", 0, 0, 0, 0]], schema=found.schema, orient="row")
    share, share_before = (
        pl.col(f"numbers{when}") / pl.col(f"values{when}").clip(lower_bound=1) for when in ("", "_before")
    )
    enough = (pl.col("values") >= release.limits.fewest) & (pl.col("values_before") >= release.limits.fewest)
    # What the limit allows stays allowed where the shares are rounded.
    fallen = enough & (share_before - share > release.limits.fewer_numbers + 1e-9)
    return found.with_columns(
        share.alias("share"), share_before.alias("share_before"), fallen.cast(pl.Int64).alias("fallen")
    ).sort("table", "column")


def _counted(ledger: pl.DataFrame) -> pl.DataFrame:
    """A row per table and column: `values`, `numbers`."""
    counted = [
        ledger.filter(pl.col("outcome") == outcome)
        .group_by("table", pl.col("reason").alias("column"))
        .agg(pl.col("rows").sum().alias(outcome))
        for outcome in ("values", "numbers")
    ]
    return counted[0].join(counted[1], on=["table", "column"])


def _words(broken: pl.DataFrame) -> str:
    return "; ".join(
        f"{line['share']:.1%} of the values in {line['column']} of table {line['table']} are numbers, "
        f"{line['share_before']:.1%} were"
        for line in broken.iter_rows(named=True)
    )


AREA = Area(
    "values",
    measure,
    (
        Expectation(
            "fallen",
            "In no column the share of numbers among its values has fallen against the release before.",
            "warning",
            kind="number",
            words=_words,
            remedy=lambda _: "look at `timeloom check-source`: signs of numbers, flags and units, or another column",
        ),
    ),
)
