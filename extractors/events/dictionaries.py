"""What codes mean: rows of a source's dictionaries become descriptions and parents of the codes that occur."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from extractors.events.convert import code_expression
from extractors.events.joins import attach_all
from extractors.source import CodeRule, sql
from extractors.tables.export import Export
from warehouse.errors import TimeloomError

# Rows that are held before those that say the same become one.
_HELD_ROWS = 1 << 20


def describe(codes: pl.Series, exports: list[Export]) -> pl.DataFrame:
    """Codes (n,) with columns code, description, parent_codes; null where no dictionary knows them.

    Parents of several rows add up, in the order of their texts; of several descriptions the first in that order stays.

    Raises:
        TimeloomError: a dictionary is unreadable or lacks a column.
    """
    wanted = codes.unique().implode()
    known, rows = [_NOTHING], 0
    with TemporaryDirectory() as scratch:
        for export in exports:
            for rules in _read_together(export.source.codes):
                for described in _rows(export, rules, wanted, Path(scratch)):
                    known.append(described)
                    rows += len(described)
                    if rows > _HELD_ROWS:
                        known, rows = [pl.concat(known).unique()], 0
    described = pl.concat(known).group_by("code").agg(
        pl.col("description").drop_nulls().min(),
        pl.col("parent").drop_nulls().unique().sort().alias("parent_codes"),
    )  # fmt: skip
    frame = codes.alias("code").to_frame().join(described, on="code", how="left", maintain_order="left")
    parents = pl.col("parent_codes")
    return frame.with_columns(pl.when(parents.list.len() > 0).then(parents).alias("parent_codes"))


_NOTHING = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "parent": pl.String})


def _held(frame: pl.DataFrame, rule: CodeRule, export: Export) -> pl.DataFrame:
    """The rows that describe something."""
    try:
        return frame.filter(sql(rule.where)) if rule.where else frame
    except pl.exceptions.PolarsError:
        raise TimeloomError(
            f"source {export.source.name}, codes of {rule.table}: where fails: `{rule.where}`",
            remedy="mend the expression; docs/sources.md lists what works",
        ) from None


def _read_together(rules: list[CodeRule]) -> list[list[CodeRule]]:
    """Rules of one table and the same joins: its files are then read once."""
    together: dict[str, list[CodeRule]] = {}
    for rule in rules:
        together.setdefault(repr((rule.table, rule.joins)), []).append(rule)
    return list(together.values())


def _rows(export: Export, rules: list[CodeRule], wanted: pl.Series, scratch: Path) -> Iterator[pl.DataFrame]:
    """Code, description and one parent a row, of the wanted codes."""
    table, joins = rules[0].table, rules[0].joins
    columns = sorted(set().union(*(rule.columns() for rule in rules)))
    for path in export.files(table):
        raw = export.open(path, table)
        raw.require(set(columns))
        blocks = (block.frame for block in raw.blocks(columns))
        for frame in attach_all(blocks, export, joins, scratch):
            for rule in rules:
                held = _held(frame, rule, export)
                for template in rule.code:
                    known = held.with_columns(code_expression(template).alias("_code")).filter(
                        pl.col("_code").is_in(wanted)
                    )
                    description = code_expression(rule.description) if rule.description else pl.lit(None, pl.String)
                    for parent in (pl.lit(None, pl.String), *map(code_expression, rule.parents)):
                        yield known.select(
                            pl.col("_code").alias("code"), description.alias("description"), parent.alias("parent")
                        )
