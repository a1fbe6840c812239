"""One bucket's visit graphs, held against its events: numbers, edges and visits fit, and no node is known early."""

import polars as pl

from validation.measure.files.events import Part
from validation.measure.reading import gather
from validation.measure.tally import Tally
from warehouse.arrays import NO_TIME
from warehouse.layout import ReleaseLayout
from warehouse.schemas import GRAPH_EDGES, GRAPH_NODES, NODE_TYPES, VISITS

_VISIT = ["subject_id", "visit_id"]
_EVENTS: dict[str, pl.DataType | type[pl.DataType]] = {
    "subject_id": pl.Int64,
    "visit_id": pl.Int64,
    "code": pl.String,
    "first": pl.Datetime("us"),
}


class GraphAudit:
    """The first event of each code in each visit, gathered part by part."""

    def __init__(self, tree: ReleaseLayout, bucket: int) -> None:
        self._tree, self._bucket = tree, bucket
        self._events = [pl.DataFrame(schema=_EVENTS)]

    def add(self, part: Part) -> None:
        """Takes up a part's events of visits."""
        code = part.texts["code"]
        wanted = part.visited & (part.time != NO_TIME)
        known = part.available[wanted]
        known[known == NO_TIME] = part.time[wanted][known == NO_TIME]
        columns = {
            "subject_id": part.subject[wanted],
            "visit_id": part.visit[wanted],
            "place": code.place[wanted],
            "first": known,
        }
        first = pl.DataFrame(columns).group_by(*_VISIT, "place").agg(pl.col("first").min())
        self._events.append(
            first.with_columns(
                code.at(first["place"].to_numpy()).alias("code"), pl.col("first").cast(pl.Datetime("us"))
            ).select(list(_EVENTS))
        )

    def count(self, tally: Tally) -> None:
        """Adds visits, those of the events without a graph or the other way round, nodes that are known early, and what
        does not fit; and how many nodes each code has."""
        tree, bucket = self._tree, self._bucket
        visits = gather([tree.graph_visits(bucket)], VISITS, [*_VISIT, *NODE_TYPES]).with_row_index("row")
        visits = visits.with_columns(pl.col("row").cast(pl.Int32))
        columns = ["row", "type", "node", "code", "available_time"]
        nodes = gather([tree.graph_nodes(bucket)], GRAPH_NODES, columns)
        edges = gather([tree.graph_edges(bucket)], GRAPH_EDGES, GRAPH_EDGES.names)
        events = pl.concat(self._events)
        first = events.join(visits.select(*_VISIT, "row"), on=_VISIT).select("row", "code", "first")
        clinical = nodes.filter(pl.col("type") != "concept").join(first, on=["row", "code"], how="left")
        of_type = nodes.group_by("row", "type").agg(pl.len(), pl.col("node").sort())
        gaps = of_type.filter(pl.col("node") != pl.int_ranges(pl.col("len"), dtype=pl.Int32))
        said = visits.unpivot(NODE_TYPES, index="row", variable_name="type", value_name="said")
        said = said.join(of_type, on=["row", "type"], how="full", coalesce=True)
        known = events.select(_VISIT).unique()
        both = known.join(visits, on=_VISIT, how="semi")
        tally.count(
            "graphs",
            {
                "visits": len(visits),
                "visits_off": len(known) + len(visits) - 2 * len(both),
                "known_early": clinical.filter((pl.col("available_time") < pl.col("first")).fill_null(True)).height,
                "malformed": len(gaps)
                + said.filter(pl.col("said").fill_null(0) != pl.col("len").fill_null(0)).height
                + _loose(nodes, edges),
            },
        )
        tally.add("code", nodes.group_by("code").agg(pl.len().alias("nodes")), of="code")


def _loose(nodes: pl.DataFrame, edges: pl.DataFrame) -> int:
    """Edges without one of their ends."""
    ends = nodes.select("row", "type", "node").with_columns(pl.lit(True).alias("there"))
    loose = pl.Series([False] * len(edges), dtype=pl.Boolean)
    for side in ("source", "target"):
        found = edges.select("row", type=f"{side}_type", node=side).join(
            ends, on=["row", "type", "node"], how="left", maintain_order="left"
        )
        loose = loose | found["there"].is_null()
    return int(loose.sum())
