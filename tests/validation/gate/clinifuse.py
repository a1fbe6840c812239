"""Mutations of what CliniFuse reads: each makes it rightly from the release's own content, and breaks one thing."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import polars as pl

from pipelines.align import CODE_COUNTS
from pipelines.clinifuse.settings import GraphsConfig, NodeRule
from pipelines.papers import graphs
from tests.support import releases
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import COPIES, EVENTS, FUNNEL, GRAPH_EDGES, GRAPH_NODES, TRIPLETS, VISITS

NOON = datetime(2024, 1, 1, 12)
Edit = Callable[[pl.DataFrame], pl.DataFrame]


def with_graphs(tree: ReleaseLayout) -> int:
    """Gives the laboratory events a visit a subject, and makes the graphs; gives a bucket that has some."""
    labs, rules = pl.col("source") == "labs", {"lab": NodeRule(tables=("labs",))}
    settings = GraphsConfig(nodes=rules).model_dump(mode="json")
    graphs.run({"bucket": None, "settings": settings}, tree.path)
    sizes = {}
    for bucket in range(releases.BUCKETS):
        events = read_frame(tree.events(bucket))
        visit = pl.when(labs).then("subject_id").alias("visit_id")
        write_table(tree.events(bucket), events.with_columns(visit), EVENTS, "events")
        counted = events.group_by("code").agg(pl.len().cast(pl.Int64).alias("events"))
        write_table(tree.codes_of(bucket), counted, CODE_COUNTS, "codes")
        graphs.run({"bucket": bucket, "settings": settings}, tree.path)
        sizes[bucket] = read_frame(tree.graph_nodes(bucket)).height
    return max(sizes, key=sizes.__getitem__)


def early(nodes: pl.DataFrame) -> pl.DataFrame:
    """The first node is known a minute earlier."""
    before = pl.col("available_time") - pl.duration(minutes=1)
    return nodes.with_columns(
        pl.when(pl.int_range(pl.len()) == 0).then(before).otherwise("available_time").alias("available_time")
    )


def lost_visit(tree: ReleaseLayout) -> None:
    bucket = with_graphs(tree)
    write_table(tree.graph_visits(bucket), read_frame(tree.graph_visits(bucket))[:-1], VISITS, "visits")
    left = pl.col("row") < read_frame(tree.graph_visits(bucket)).height
    write_table(tree.graph_nodes(bucket), read_frame(tree.graph_nodes(bucket)).filter(left), GRAPH_NODES, "nodes")
    write_table(tree.graph_edges(bucket), read_frame(tree.graph_edges(bucket)).filter(left), GRAPH_EDGES, "edges")


def known_early(tree: ReleaseLayout) -> None:
    bucket = with_graphs(tree)
    write_table(tree.graph_nodes(bucket), early(read_frame(tree.graph_nodes(bucket))), GRAPH_NODES, "nodes")


def loose_edge(tree: ReleaseLayout) -> None:
    bucket = with_graphs(tree)
    node = read_frame(tree.graph_nodes(bucket)).row(0, named=True)
    edge = {
        "row": node["row"], "source_type": "lab", "relation": "co_occurs", "target_type": "lab", "source": 0,
        "target": 1, "available_time": node["available_time"],
    }  # fmt: skip
    write_table(tree.graph_edges(bucket), pl.DataFrame([edge]), GRAPH_EDGES, "edges")


def with_triplets(tree: ReleaseLayout, **changed: Any) -> None:
    """Two subjects' triplets, of usable items of theirs; a visit is made of the first one's laboratory events."""
    items = releases.read_all(tree, "items").filter(pl.col("verdict") == "ok").sort("item_key")
    splits = read_frame(tree.subject_splits)
    keys = items.group_by("subject_id").agg("item_key").join(splits, on="subject_id").sort("subject_id")
    rows = [
        {
            "triplet_id": str(number), "subject_id": subject, "split": split, "source": "ct", "image_keys": owned[:1],
            "image_times": [NOON], "prior_flags": [False], "text_key": owned[-1], "text_time": NOON,
            "text_available_time": NOON, "text_role": "report", "text_source": "t", "segment_begins": [0],
            "segment_ends": [1], "sentence_begins": None, "sentence_ends": None, "has_ehr": False,
            "link_rule": "none", "ehr_cutoff_time": None, "visit_id": None, "visit_ids": None, "primary_dx": None,
            "primary_dx_time": None, "set_aside": None,
        } | (changed if number == 0 else {})
        for number, (subject, owned, split) in enumerate(keys.iter_rows())
    ]  # fmt: skip
    schema = pl.DataFrame(pl.from_arrow(TRIPLETS.empty_table())).schema
    frame = pl.DataFrame(rows, schema=schema)
    for bucket in range(releases.BUCKETS):
        of_bucket = frame.join(
            read_frame(tree.items(bucket)).select("subject_id").unique(), on="subject_id", how="semi"
        )
        write_table(tree.triplets(bucket), of_bucket, TRIPLETS, "triplets")
        steps = [("ct", "text", "report"), ("ct", "visit", "none"), ("ct", "outcome", "train")]
        funnel = pl.DataFrame([(*step, len(of_bucket)) for step in steps], schema=FUNNEL.names, orient="row")
        write_table(tree.funnel(bucket), funnel, FUNNEL, "the funnel")


def uncounted_study(tree: ReleaseLayout) -> None:
    with_triplets(tree)
    bucket = next(bucket for bucket in range(releases.BUCKETS) if read_frame(tree.triplets(bucket)).height)
    funnel = read_frame(tree.funnel(bucket))
    more = pl.when(pl.col("step") == "text").then(pl.col("number") + 1).otherwise("number").alias("number")
    write_table(tree.funnel(bucket), funnel.with_columns(more), FUNNEL, "the funnel")


def copy_in_two_splits(tree: ReleaseLayout) -> None:
    with_triplets(tree)
    texts = pl.concat(read_frame(tree.triplets(bucket)) for bucket in range(releases.BUCKETS))
    two = texts.unique("split", keep="first").sort("text_key").head(2)
    assert two["split"].n_unique() == 2
    rows = two.select(
        "subject_id", "split", item_key="text_key", modality=pl.lit("note"), method=pl.lit("exact"), group=pl.lit("a"),
        members=pl.lit(2, pl.Int64), across=True, set_aside=False,
    )  # fmt: skip
    write_table(tree.copies, rows, COPIES, "copies")


MUTATIONS: Mapping[str, Callable[[ReleaseLayout], None]] = {
    "graphs.visits_off": lost_visit,
    "graphs.known_early": known_early,
    "graphs.malformed": loose_edge,
    "triplets.difference": uncounted_study,
    "triplets.foreign": lambda tree: with_triplets(tree, text_key="nobody's"),
    "triplets.unmasked": lambda tree: with_triplets(tree, has_ehr=True),
    "triplets.across_splits": copy_in_two_splits,
}
