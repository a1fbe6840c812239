"""Lines of therapy: the drugs that start together, and the next line where another drug starts later.

A line is worked out in one pass over all subjects; there are as many passes as the longest course has lines.
"""

import polars as pl

from pipelines.tasks.facts import Facts
from pipelines.tasks.instants import DAY
from warehouse.arrays import I64

CODE = "DERIVED//LOT//"
_INGREDIENT = "RXNORM/"


def agents_of(members: pl.DataFrame) -> pl.DataFrame:
    """`code`, `agent`: of each drug's code its ingredients; where no ingredient is known, its class.

    Args:
        members: `code`, `node` of the drugs, as pipelines.tasks.codes.resolve gives them.
    """
    ingredient = pl.col("node").str.starts_with(_INGREDIENT)
    return members.filter(ingredient | ~ingredient.any().over("code")).select("code", pl.col("node").alias("agent"))


def lines_of_therapy(facts: Facts, drugs: I64, agents: pl.DataFrame, days: int, most: int) -> pl.DataFrame:
    """`subject` (a place), `time`, `available`, `precision`, `line` of each line's beginning.

    A drug that is outside the current line and given `days` or more after its start begins the next one.

    Args:
        drugs: rows (n,) of the list.
        agents: as `agents_of` gives them.
    """
    rows = facts.rows.take(drugs)
    given = (
        pl.DataFrame(
            {
                "subject": rows.subject,
                "time": rows.time,
                "available": rows.available,
                "precision": rows.precision,
                "code": facts.codes[rows.code],
            }
        )
        .join(agents, on="code")
        .sort("subject", "time", "available", "agent", "precision")
    )
    starts = []
    begun = given.unique("subject", keep="first", maintain_order=True)
    for line in range(1, most + 1):
        if begun.is_empty():
            break
        starts.append(begun.with_columns(pl.lit(line, pl.Int64).alias("line")))
        since = begun.select("subject", pl.col("time").alias("start"))
        given = given.join(since, on="subject").filter(pl.col("time") >= pl.col("start"))
        later = pl.col("time") >= pl.col("start") + days * DAY
        of_line = given.filter(~later).select("subject", "agent").unique()
        given = given.filter(later).drop("start")
        begun = given.join(of_line, on=["subject", "agent"], how="anti").unique(
            "subject", keep="first", maintain_order=True
        )
    wanted = ["subject", "time", "available", "precision", "line"]
    none = given.clear().with_columns(pl.lit(0, pl.Int64).alias("line"))
    return pl.concat([none, *starts]).select(wanted).sort("subject", "time", "line")
