"""Visits of events → their graphs: nodes of what was found and done, pairs that occur together, and classes above."""

from collections import Counter
from collections.abc import Iterator

import polars as pl

from pipelines.clinifuse.ontology import Ontology
from pipelines.clinifuse.settings import GraphsConfig, NodeRule
from warehouse.schemas import CLINICAL_NODES, CO_OCCURS, IS_A, NODE_TYPES

COLUMNS = ("subject_id", "visit_id", "time", "available_time", "code", "kind", "source", "numeric_value", "unit")
CONCEPT = "concept"
KIND = pl.Enum(NODE_TYPES)
# So many pairs are made at a time.
PAIRS = 1 << 22
_NODE = ["row", "type", "node"]
_EDGE = ["row", "source_type", "relation", "target_type", "source", "target"]


def types_of(pairs: pl.DataFrame, config: GraphsConfig) -> pl.DataFrame:
    """The type of each pair of `source` (a table) and `code`, where it is a node of one: columns source, code, type."""
    slashed, kind = pl.col("code") + "/", pl.lit(None, pl.String)
    ranked = sorted(((begin, name) for name, rule in config.rules.items() for begin in rule.codes), key=_longest)
    for begin, name in ranked:
        kind = pl.when(slashed.str.starts_with(f"{begin}/")).then(pl.lit(name)).otherwise(kind)
    for name, rule in reversed(config.rules.items()):
        kind = pl.when(_of_table(rule)).then(pl.lit(name)).otherwise(kind)
    left_out = pl.any_horizontal(pl.lit(False), *(slashed.str.starts_with(f"{begin}/") for begin in config.left_out))
    return pairs.filter(~left_out).with_columns(kind.cast(KIND).alias("type")).drop_nulls("type")


def _longest(entry: tuple[str, str]) -> int:
    return len(entry[0])


def _of_table(rule: NodeRule) -> pl.Expr:
    """Whether a row's table is one of the rule's, whatever folder it is named with."""
    return pl.col("source").str.split("/").list.last().is_in(list(rule.tables)) | pl.col("source").is_in(
        list(rule.tables)
    )


def nodes_of(events: pl.DataFrame, visits: pl.DataFrame, config: GraphsConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The clinical nodes of visits, and which event is of which.

    A code in two units is two nodes.

    Args:
        events: COLUMNS.
        visits: subject_id, visit_id, row and start.

    Returns:
        row, type, node, code, unit, available_time (of the first of its events), times, values (by when they could be
        read), sorted by row, type and node; and of each event row, type, node, time, start and available_time.
    """
    pairs = types_of(events.select("source", "code").unique(), config)
    rows = (
        events.drop_nulls("visit_id")
        .join(pairs, on=["source", "code"])
        .join(visits.select("subject_id", "visit_id", "row", "start"), on=["subject_id", "visit_id"])
        .with_columns(pl.coalesce("available_time", "time").alias("available_time"))
        .sort("row", "type", "code", "unit", "available_time", "time", "numeric_value")
    )
    same = ["row", "type", "code", "unit"]
    nodes = rows.group_by(same, maintain_order=True).agg(
        pl.col("available_time").first(),
        pl.col("available_time").alias("times"),
        pl.col("numeric_value").alias("values"),
    )
    nodes = nodes.with_columns(_numbers())
    placed = rows.join(nodes.select(*same, "node"), on=same, nulls_equal=True).select(
        *_NODE, "time", "start", "available_time"
    )
    return nodes, placed


def _numbers() -> pl.Expr:
    """A node's number among those of its visit and type, in the order of the rows."""
    return pl.int_range(pl.len(), dtype=pl.Int32).over("row", "type").alias("node")


def concepts_of(nodes: pl.DataFrame, ontology: Ontology) -> pl.DataFrame:
    """The classes above a visit's nodes, as further nodes: known when the first of their codes is."""
    found = (
        nodes.select("row", "code", "available_time")
        .join(ontology.above, on="code")
        .group_by("row", code="parent")
        .agg(pl.col("available_time").min())
        .sort("row", "code")
    )
    return found.with_columns(
        pl.lit(CONCEPT).cast(KIND).alias("type"),
        pl.lit(None, pl.String).alias("unit"),
        pl.lit([], pl.List(pl.Datetime("us"))).alias("times"),
        pl.lit([], pl.List(pl.Float32)).alias("values"),
    ).with_columns(_numbers())


def ontology_edges(nodes: pl.DataFrame, concepts: pl.DataFrame, ontology: Ontology) -> pl.DataFrame:
    """From each node to the classes one step up, and to the class that is its own code; from class to class."""
    known = concepts.select("row", "node", parent="code")
    every = pl.concat([frame.select(*_NODE, "code", "available_time") for frame in (nodes, concepts)])
    up = every.join(ontology.ties, on="code").join(known, on=["row", "parent"], suffix="_above")
    itself = every.head(len(nodes)).with_columns(parent="code").join(known, on=["row", "parent"], suffix="_above")
    return _edges(
        pl.concat([up.select(itself.columns), itself]).select(
            "row",
            source_type="type",
            relation=pl.lit(IS_A),
            target_type=pl.lit(CONCEPT).cast(KIND),
            source="node",
            target="node_above",
            available_time="available_time",
        )
    )


def _edges(frame: pl.DataFrame) -> pl.DataFrame:
    """Each edge once, from when it can first be known."""
    return frame.group_by(_EDGE).agg(pl.col("available_time").min()).sort(_EDGE)


def span_edges(placed: pl.DataFrame, hours: float) -> Iterator[pl.DataFrame]:
    """Pairs of a visit's nodes that have events in one span of so many hours from its start, each pair once.

    Args:
        placed: as `nodes_of` gives it.
    """
    span = (pl.col("time") - pl.col("start")).dt.total_microseconds() // int(hours * 3_600_000_000)
    occurring = (
        placed.group_by(*_NODE, span=span).agg(pl.col("available_time").min()).sort("row", "span", "type", "node")
    )
    sizes = occurring.group_by("row", "span").agg((pl.len().cast(pl.Int64) ** 2).alias("pairs"))
    part = sizes.group_by("row").agg(pl.col("pairs").sum()).sort("row")
    part = part.select("row", (pl.col("pairs").cum_sum() // PAIRS).alias("part"))
    for of_part in occurring.join(part, on="row").partition_by("part", maintain_order=True):
        both = of_part.join(of_part, on=["row", "span"], suffix="_other")
        later = (pl.col("type") < pl.col("type_other")) | (
            (pl.col("type") == pl.col("type_other")) & (pl.col("node") < pl.col("node_other"))
        )
        yield _edges(
            both.filter(later).select(
                "row",
                source_type="type",
                relation=pl.lit(CO_OCCURS),
                target_type="type_other",
                source="node",
                target="node_other",
                available_time=pl.max_horizontal("available_time", "available_time_other"),
            )
        )


def node_counts(visits: pl.DataFrame, nodes: pl.DataFrame) -> pl.DataFrame:
    """Visits with a column for each type of node: how many there are, 0 for none."""
    number = nodes.group_by("row").agg((pl.col("type") == name).sum().cast(pl.Int32).alias(name) for name in NODE_TYPES)
    return visits.join(number, on="row", how="left", maintain_order="left").with_columns(
        pl.col(NODE_TYPES).fill_null(0)
    )


def not_in_visits(events: pl.DataFrame, config: GraphsConfig) -> Counter[str]:
    """By type, events that would be nodes and are of no visit."""
    outside = events.filter(pl.col("visit_id").is_null())
    typed = outside.join(types_of(outside.select("source", "code").unique(), config), on=["source", "code"])
    counted = dict(typed["type"].cast(pl.String).value_counts().iter_rows())
    return Counter({name: counted.get(name, 0) for name in CLINICAL_NODES})
