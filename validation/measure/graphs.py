"""What is measured of visit graphs: that numbers, edges and visits fit, and that no node is known before its events."""

import polars as pl

from validation.measure.reading import collect, existing, gather, scan
from warehouse.layout import ReleaseLayout
from warehouse.schemas import GRAPH_CODES, GRAPH_EDGES, GRAPH_NODES, NODE_TYPES, VISITS

# Of a release: visits; visits of the events that have no graph, and the other way round; nodes known before the first
# event of their code; and what does not fit: types of a visit whose nodes are not numbered from 0 without a gap, or are
# not as many as it says, edges without an end, and nodes whose code has no number.
MEASURED = {
    "visits": pl.Int64,
    "visits_off": pl.Int64,
    "known_early": pl.Int64,
    "malformed": pl.Int64,
}
_VISIT = ["subject_id", "visit_id"]


def measure_graphs(tree: ReleaseLayout, buckets: int) -> pl.DataFrame:
    """One row, columns of MEASURED; one bucket's columns are in memory at a time.

    Raises:
        TimeloomError: a file is damaged.
    """
    codes = gather([tree.graph_codes], GRAPH_CODES, ["code"])
    rows = [_of_bucket(tree, bucket, codes) for bucket in range(buckets) if existing([tree.graph_visits(bucket)])]
    return pl.DataFrame(rows or [dict.fromkeys(MEASURED, 0)], schema=MEASURED).sum()


def _of_bucket(tree: ReleaseLayout, bucket: int, codes: pl.DataFrame) -> dict[str, int]:
    visits = gather([tree.graph_visits(bucket)], VISITS, [*_VISIT, *NODE_TYPES]).with_row_index("row")
    visits = visits.with_columns(pl.col("row").cast(pl.Int32))
    columns = ["row", "type", "node", "code", "available_time"]
    nodes = gather([tree.graph_nodes(bucket)], GRAPH_NODES, columns)
    edges = gather([tree.graph_edges(bucket)], GRAPH_EDGES, GRAPH_EDGES.names)
    path = tree.events(bucket)
    events = collect(
        scan(path)
        .filter(pl.col("visit_id").is_not_null() & pl.col("time").is_not_null())
        .group_by(*_VISIT, "code")
        .agg(pl.coalesce("available_time", "time").min().alias("first")),
        path,
    )
    first = events.join(visits.select(*_VISIT, "row"), on=_VISIT).select("row", "code", "first")
    clinical = nodes.filter(pl.col("type") != "concept").join(first, on=["row", "code"], how="left")
    of_type = nodes.group_by("row", "type").agg(pl.len(), pl.col("node").sort())
    gaps = of_type.filter(pl.col("node") != pl.int_ranges(pl.col("len"), dtype=pl.Int32))
    counted = visits.unpivot(NODE_TYPES, index="row", variable_name="type", value_name="said")
    counted = counted.join(of_type, on=["row", "type"], how="full", coalesce=True)
    ends = nodes.select("row", "type", "node")
    loose = pl.Series([False] * len(edges), dtype=pl.Boolean)
    for side in ("source", "target"):
        found = edges.select("row", type=f"{side}_type", node=side).join(
            ends.with_columns(pl.lit(True).alias("there")),
            on=["row", "type", "node"],
            how="left",
            maintain_order="left",
        )
        loose = loose | found["there"].is_null()
    known = events.select(_VISIT).unique()
    both = known.join(visits, on=_VISIT, how="semi")
    return {
        "visits": len(visits),
        "visits_off": len(known) + len(visits) - 2 * len(both),
        "known_early": clinical.filter((pl.col("available_time") < pl.col("first")).fill_null(True)).height,
        "malformed": len(gaps)
        + counted.filter(pl.col("said").fill_null(0) != pl.col("len").fill_null(0)).height
        + int(loose.sum())
        + nodes.join(codes, on="code", how="anti").height,
    }
