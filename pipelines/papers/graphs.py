"""graphs: one bucket's events → the graphs of its visits.

Schema in: EVENTS. Schema out: VISITS, GRAPH_NODES, GRAPH_EDGES, GRAPH_CODES.
One task more numbers the codes. A large bucket is done some subjects at a time, so that memory does not grow with it.
"""

from collections import Counter
from pathlib import Path
from typing import Any, TypedDict

import polars as pl

from pipelines.clinifuse.graph import (
    COLUMNS,
    concepts_of,
    node_counts,
    nodes_of,
    not_in_visits,
    ontology_edges,
    span_edges,
)
from pipelines.clinifuse.ontology import Ontology, read_crosswalk
from pipelines.clinifuse.settings import GraphsConfig
from pipelines.clinifuse.visits import read_events, visits_of
from pipelines.engine.context import counts_of
from pipelines.engine.task import RawFile, Result, Task, make_task
from pipelines.night import Night, Stage
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import GraphsEntry
from warehouse.parquet import read_frame, table_writer, write_table
from warehouse.schemas import GRAPH_CODES, GRAPH_EDGES, GRAPH_NODES, NODE_TYPES, VISITS

CODES = "codes"


class Counts(TypedDict):
    """What a task tells: its visits, those of them without a start or whose end lies before it, nodes by type, edges
    that are written, and events that would be nodes and are of no visit."""

    visits: int
    without_start: int
    out_of_order: int
    nodes: dict[str, int]
    edges: int
    without_visit: dict[str, int]


class Params(TypedDict):
    """What a task is given: paths and settings; without a bucket it numbers the codes."""

    bucket: int | None
    settings: dict[str, Any]


def ready(night: Night) -> None:
    """Reads the crosswalks: a file that is wrong should not be found out after hours of work.

    Raises:
        TimeloomError: a crosswalk is missing, or lacks a column.
    """
    for path in night.config.graphs.crosswalks if night.config.graphs else ():
        read_crosswalk(path)


def plan(night: Night) -> list[Task]:
    """One task per bucket, up to date as long as its events and the classes of its codes are; and one for all codes."""
    config = night.config.graphs
    if config is None:
        return []
    night.report("metadata")
    tree, events, crosswalks = night.tree, night.report("align").hashes(), _raw_files(night, config)
    ontology = _ontology(tree, config)
    settings = config.model_dump(mode="json")
    rules = config.model_dump(mode="json", exclude={"crosswalks"})
    tasks = [
        make_task(
            STAGE,
            CODES,
            night.context.staging,
            settings=None,
            inputs=[sorted(ontology.codes(_codes(tree)["code"]))],
            params=Params(bucket=None, settings=settings),
            raw_files=crosswalks,
        )
    ]
    for bucket in range(night.config.buckets):
        codes = read_frame(tree.codes_of(bucket))["code"]
        tasks.append(
            make_task(
                STAGE,
                bucket_name(bucket),
                night.context.staging,
                settings=rules,
                inputs=[events[str(ReleaseLayout(Path()).events(bucket))], ontology.of_codes(codes).digest()],
                params=Params(bucket=bucket, settings=settings),
                raw_files=crosswalks,
            )
        )
    return tasks


def _raw_files(night: Night, config: GraphsConfig) -> dict[str, RawFile]:
    found: dict[str, RawFile] = {}
    for path in config.crosswalks:
        night.fingerprints.of(path)
        found |= night.fingerprints.planned(path, "a crosswalk of graphs.crosswalks")
    return found


def _codes(tree: ReleaseLayout) -> pl.DataFrame:
    return read_frame(tree.codes).select("code", "parent_codes")


def _ontology(tree: ReleaseLayout, config: GraphsConfig) -> Ontology:
    return Ontology.of(_codes(tree), config)


def run(params: Params, base: Path) -> Result:
    """Writes one bucket's graphs, or the codes' numbers."""
    tree, config = ReleaseLayout(base), GraphsConfig.model_validate(params["settings"])
    ontology, bucket = _ontology(tree, config), params["bucket"]
    if bucket is None:
        codes = ontology.codes(_codes(tree)["code"])
        frame = pl.DataFrame({"code": codes}, schema={"code": pl.String}).with_row_index("id")
        rows = write_table(tree.graph_codes, frame, GRAPH_CODES, "codes of graphs")
        return Result({str(tree.graph_codes.relative_to(base)): rows}, {})
    ontology = ontology.of_codes(read_frame(tree.codes_of(bucket))["code"])
    counts = Counts(
        visits=0, without_start=0, out_of_order=0, nodes=dict.fromkeys(NODE_TYPES, 0), edges=0, without_visit={}
    )
    outside: Counter[str] = Counter()
    paths = [tree.graph_visits(bucket), tree.graph_nodes(bucket), tree.graph_edges(bucket)]
    with (
        table_writer(paths[0], VISITS, "visits") as visits_file,
        table_writer(paths[1], GRAPH_NODES, "nodes") as nodes_file,
        table_writer(paths[2], GRAPH_EDGES, "edges") as edges_file,
    ):
        for events in read_events(tree.events(bucket), COLUMNS):
            visits = visits_of(events, config.days_from).with_columns(
                pl.int_range(visits_file.rows, visits_file.rows + pl.len(), dtype=pl.Int32).alias("row")
            )
            clinical, placed = nodes_of(events, visits, config)
            concepts = concepts_of(clinical, ontology)
            nodes = pl.concat([clinical, concepts.select(clinical.columns)]).sort("row", "type", "node")
            visits_file.add(node_counts(visits, nodes))
            nodes_file.add(nodes)
            edges_file.add(ontology_edges(clinical, concepts, ontology))
            for edges in span_edges(placed, config.span_hours) if config.co_occurrence == "span" else ():
                edges_file.add(edges)
            outside += not_in_visits(events, config)
            counts["without_start"] += visits["type"].null_count()
            counts["out_of_order"] += int(visits["out_of_order"].sum())
            for name, number in nodes["type"].value_counts().iter_rows():
                counts["nodes"][name] += number
        written = [visits_file, nodes_file, edges_file]
    counts["visits"], counts["edges"] = visits_file.rows, edges_file.rows
    counts["without_visit"] = {name: number for name, number in sorted(outside.items()) if number}
    rows_of = zip(paths, (file.rows for file in written), strict=True)
    return Result({str(path.relative_to(base)): rows for path, rows in rows_of}, counts)


def declare(night: Night) -> dict[str, Any]:
    """How much the graphs hold."""
    config = night.config.graphs
    if config is None:
        return {}
    entries = night.report(STAGE.name).entries
    counted = [counts_of(entry, Counts) for key, entry in entries.items() if key != CODES]
    outside: Counter[str] = Counter()
    for counts in counted:
        outside.update(counts["without_visit"])
    return {
        "graphs": GraphsEntry(
            rules=config.model_dump(mode="json", exclude={"crosswalks"}),
            visits=sum(counts["visits"] for counts in counted),
            without_start=sum(counts["without_start"] for counts in counted),
            out_of_order=sum(counts["out_of_order"] for counts in counted),
            nodes={name: sum(counts["nodes"][name] for counts in counted) for name in NODE_TYPES},
            edges=sum(counts["edges"] for counts in counted),
            without_visit=dict(sorted(outside.items())),
        )
    }


STAGE = Stage(
    "graphs",
    version=2,
    run="pipelines.papers.graphs:run",
    after=("align", "metadata"),
    keys=("graphs",),
    plan=plan,
    ready=ready,
    declare=declare,
    settings_are=("graphs",),
    inputs_are=("events and crosswalks",),
)
