"""Graphs of visits: every number, edge and visit fits, and nothing stands in one before it was known."""

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.examples.graphs import measure_graphs
from validation.measure.measured_release import MeasuredRelease


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """One row, see `measure_graphs`."""
    return measure_graphs(release.tree, release.measures)


def _right(frame: pl.DataFrame) -> str:
    visits = int(frame["visits"].sum())
    return f"{visits:,} visits; every edge has its ends, nothing is known early" if visits else "there are none"


GRAPHS = Check("graphs", measure, _right)

AREA = Area(
    "graphs",
    measure,
    (
        Expectation(
            "visits_off",
            "Every visit of the events has a graph, and no other has one.",
            check=GRAPHS,
            fault="visits without a graph, or graphs without a visit",
        ),
        Expectation(
            "known_early",
            "No node is known before the first event of its code in its visit.",
            kind="number",
            check=GRAPHS,
            fault="nodes that are known before their events",
        ),
        Expectation(
            "malformed",
            "In each visit the nodes of a type are numbered from 0 without a gap, and every edge has both of its ends.",
            kind="number",
            check=GRAPHS,
            fault="types of a visit, edges or codes whose numbers do not fit",
        ),
    ),
)
