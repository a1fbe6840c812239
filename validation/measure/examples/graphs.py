"""What is measured of visit graphs: that numbers, edges and visits fit, and that no node is known before its events."""

import polars as pl

from validation.measure.measures import Measures
from validation.measure.reading import gather
from warehouse.layout import ReleaseLayout
from warehouse.schemas import GRAPH_CODES

# Of a release: visits; visits of the events that have no graph, and the other way round; nodes known before the first
# event of their code; and what does not fit: types of a visit whose nodes are not numbered from 0 without a gap, or are
# not as many as it says, edges without an end, and nodes whose code has no number.
MEASURED = {
    "visits": pl.Int64,
    "visits_off": pl.Int64,
    "known_early": pl.Int64,
    "malformed": pl.Int64,
}


def measure_graphs(tree: ReleaseLayout, measures: Measures) -> pl.DataFrame:
    """One row, columns of MEASURED.

    Raises:
        TimeloomError: a file is damaged.
    """
    codes = gather([tree.graph_codes], GRAPH_CODES, ["code"])
    nodes = measures.counted("code", ["nodes"], of="code")
    without = int(nodes.join(codes, on="code", how="anti")["nodes"].sum())
    return measures.counted("graphs", list(MEASURED)).with_columns(pl.col("malformed") + without)
