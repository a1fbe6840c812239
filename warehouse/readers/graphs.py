"""Graphs of visits: a visit as arrays, as tensors, or as PyTorch Geometric's `HeteroData` where that is installed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from warehouse.arrays import F32, I64, U8, Bools
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.parquet import read_frame
from warehouse.readers.pinned import PinnedRelease
from warehouse.schemas import CLINICAL_NODES, CO_OCCURS, GRAPH_CODES, IS_A, NODE_TYPES

if TYPE_CHECKING:
    import torch

EdgeType = tuple[str, str, str]
# Every graph has all of them, with no edge where there is none: a model's layers are the same for each visit.
EDGE_TYPES: tuple[EdgeType, ...] = (
    *((source, CO_OCCURS, target) for source, target in product(CLINICAL_NODES, repeat=2)),
    *((source, IS_A, "concept") for source in NODE_TYPES),
)

# The types of each kind's source and target, as places in NODE_TYPES (2, 31).
_ENDS = np.array([[NODE_TYPES.index(kind[side]) for kind in EDGE_TYPES] for side in (0, 2)])


@dataclass(frozen=True)
class VisitGraph:
    """One visit. Of each of NODE_TYPES the n nodes are numbered from 0 to n - 1, and n may be 0.

    Attributes:
        subject_id, visit: whose, and its number among the subject's, from 0.
        type: the code that began it; None where no event did.
        start, end: of the visit; no end where none is known.
        days_since_prev: days since the visit before; None for the first.
        codes: by type of node, their codes.
        code_ids: by type, int64 (n,): places in `VisitGraphs.codes`.
        counts: by type, int64 (n,): events of each; 0 for classes.
        values: by type, float32 (n,): the last number of each, NaN where there is none.
        edge_index: by each of EDGE_TYPES, int64 (2, e): numbers of source and target. Pairs that occur together stand
            in both directions.
    """

    subject_id: int
    visit: int
    type: str | None
    start: datetime
    end: datetime | None
    days_since_prev: float | None
    codes: dict[str, list[str]]
    code_ids: dict[str, I64]
    counts: dict[str, I64]
    values: dict[str, F32]
    edge_index: dict[EdgeType, I64]

    @property
    def num_nodes(self) -> dict[str, int]:
        """Nodes of each type."""
        return {name: len(codes) for name, codes in self.codes.items()}

    def tensors(self) -> dict[str, dict[Any, "torch.Tensor"]]:
        """`code_ids`, `counts` and `values` by type of node and `edge_index` by type of edge, as tensors."""
        import torch

        return {
            name: {key: torch.tensor(array) for key, array in getattr(self, name).items()}
            for name in ("code_ids", "counts", "values", "edge_index")
        }

    def hetero_data(self) -> Any:
        """The visit as `torch_geometric.data.HeteroData`: `code_id`, `count` and `value` of each type of node, with
        `num_nodes`, and `edge_index` of each type of edge.

        Raises:
            TimeloomError: PyTorch Geometric is not installed.
        """
        try:
            from torch_geometric.data import HeteroData
        except ImportError as error:
            raise TimeloomError(
                "PyTorch Geometric is not installed", remedy="pip install torch_geometric; `tensors()` needs none"
            ) from error
        data, held = HeteroData(), self.tensors()
        for name, number in self.num_nodes.items():
            data[name].num_nodes = number
            data[name].code_id = held["code_ids"][name]
            data[name].count = held["counts"][name]
            data[name].value = held["values"][name]
        for kind, edges in held["edge_index"].items():
            data[kind].edge_index = edges
        return data


@dataclass(frozen=True)
class _Bucket:
    """A bucket's files as arrays.

    Attributes:
        visits: its visits.
        codes: of each node (n,), its code's number.
        kind: of each node (n,), its place in NODE_TYPES; a visit's nodes stand together, by kind and number.
        known: of each node (n,), µs: when the first of its events could be read.
        events: where each node's events begin (n + 1,).
        times, values: of each event (e,), µs and a number or NaN.
        node_row, edge_row: where each visit's nodes and edges begin (v + 1,).
        edge_kind: of each edge (m,), its place in EDGE_TYPES.
        ends: source and target (2, m).
        edge_known: µs (m,).
    """

    visits: pl.DataFrame
    codes: I64
    kind: U8
    known: I64
    events: I64
    times: I64
    values: F32
    node_row: I64
    edge_row: I64
    edge_kind: U8
    ends: I64
    edge_known: I64


class VisitGraphs:
    """The graphs of a release's visits; a bucket's are in memory at a time, or the last two buckets'.

    Raises:
        TimeloomError: the release has none.
    """

    def __init__(self, release: PinnedRelease) -> None:
        if release.manifest.graphs is None:
            raise TimeloomError("the release has no graphs of visits", remedy="give `graphs: {}` in the configuration")
        self._release = release
        self._pairs = release.manifest.graphs.rules["co_occurrence"]
        self._bucket = lru_cache(maxsize=2)(self._read)

    @cached_property
    def codes(self) -> pl.Series:
        """Every code and class, by its number in `VisitGraph.code_ids`. Another release may number them otherwise."""
        return read_frame(self._release.checked(self._release.files.graph_codes)).select(GRAPH_CODES.names)["code"]

    def visits(self) -> pl.LazyFrame:
        """Every visit (warehouse.schemas.VISITS)."""
        files, buckets = self._release.files, range(self._release.manifest.buckets)
        return pl.scan_parquet(self._release.checked_all(map(files.graph_visits, buckets)))

    def of_subject(self, subject_id: int, until: datetime | None = None) -> list[VisitGraph]:
        """A subject's visits, by start; none for a subject without one.

        Args:
            until: only visits that began by then, and of them what could be read by then: nodes and their numbers,
                events and values are those of that moment.

        Raises:
            TimeloomError: `until` has a time zone, or a file of the release is gone or damaged.
        """
        if until is not None and until.tzinfo is not None:
            raise TimeloomError(
                "`until` has a time zone and events have none", remedy="give the site's own time, without"
            )
        number = int(bucket_of(np.array([subject_id]), self._release.manifest.buckets)[0])
        bucket = self._bucket(number)
        rows = np.flatnonzero(bucket.visits["subject_id"].to_numpy() == subject_id)
        graphs = (self._graph(bucket, int(row), until) for row in rows)
        return [graph for graph in graphs if until is None or graph.start <= until]

    def __iter__(self) -> Iterator[list[VisitGraph]]:
        """Each subject's visits."""
        for number in range(self._release.manifest.buckets):
            subjects = self._bucket(number).visits["subject_id"].unique(maintain_order=True)
            yield from map(self.of_subject, subjects)

    def _read(self, number: int) -> _Bucket:
        files = self._release.files
        paths = (files.graph_visits(number), files.graph_nodes(number), files.graph_edges(number))
        visits, nodes, edges = (read_frame(self._release.checked(path)) for path in paths)
        edges = edges.sort("row", maintain_order=True)
        wanted, names = np.arange(len(visits) + 1), pl.Series(NODE_TYPES)
        kinds = pl.DataFrame(EDGE_TYPES, schema=["source_type", "relation", "target_type"], orient="row")
        kinds = kinds.with_row_index("kind")
        lengths = nodes["times"].list.len().to_numpy()
        return _Bucket(
            visits=visits,
            codes=_numbers(self.codes.search_sorted(nodes["code"]) if len(nodes) else nodes["row"]),
            kind=nodes["type"].replace_strict(names, np.arange(len(names)), return_dtype=pl.UInt8).to_numpy(),
            known=_numbers(nodes["available_time"]),
            events=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            times=_numbers(nodes["times"].list.explode(empty_as_null=False)),
            values=nodes["values"].list.explode(empty_as_null=False).fill_null(np.nan).to_numpy(),
            node_row=np.searchsorted(nodes["row"].to_numpy(), wanted),
            edge_row=np.searchsorted(edges["row"].to_numpy(), wanted),
            edge_kind=edges.join(kinds, on=kinds.columns[1:], how="left", maintain_order="left")["kind"]
            .cast(pl.UInt8)
            .to_numpy(),
            ends=np.stack([_numbers(edges["source"]), _numbers(edges["target"])]),
            edge_known=_numbers(edges["available_time"]),
        )

    def _graph(self, bucket: _Bucket, row: int, until: datetime | None) -> VisitGraph:
        visit = bucket.visits.row(row, named=True)
        moment = np.iinfo(np.int64).max if until is None else _micros(until)
        nodes = slice(bucket.node_row[row], bucket.node_row[row + 1])
        begin, end = bucket.events[nodes], bucket.events[nodes.start + 1 : nodes.stop + 1]
        counts, values = _as_of(bucket, begin, end, moment)
        kept = bucket.known[nodes] <= moment
        # Of each type, where its nodes begin among all, and among those that are kept.
        types = np.searchsorted(bucket.kind[nodes], np.arange(len(NODE_TYPES) + 1))
        before = np.concatenate([[0], np.cumsum(kept)])
        pairs = self._pairs_of(bucket, row, moment, kept, types, before)
        parts = [slice(first, last) for first, last in pairwise(before[types])]
        codes = bucket.codes[nodes][kept]
        named = self.codes.gather(codes).to_list() if len(codes) else []
        return VisitGraph(
            subject_id=visit["subject_id"],
            visit=visit["visit"],
            type=visit["type"],
            start=visit["start"],
            end=visit["end"] if until is None or visit["end"] is None or visit["end"] <= until else None,
            days_since_prev=visit["days_since_prev"],
            codes={name: named[part] for name, part in zip(NODE_TYPES, parts, strict=True)},
            code_ids={name: codes[part] for name, part in zip(NODE_TYPES, parts, strict=True)},
            counts={name: counts[kept][part] for name, part in zip(NODE_TYPES, parts, strict=True)},
            values={name: values[kept][part] for name, part in zip(NODE_TYPES, parts, strict=True)},
            edge_index=pairs,
        )

    def _pairs_of(
        self, bucket: _Bucket, row: int, moment: int, kept: Bools, types: I64, before: I64
    ) -> dict[EdgeType, I64]:
        """Edges by kind, with the numbers that nodes have among those that are kept.

        Args:
            kept: which nodes of the visit (n,) are.
            types: where each type's nodes begin (7,).
            before: how many nodes before each are kept (n + 1,).
        """
        edges = slice(bucket.edge_row[row], bucket.edge_row[row + 1])
        kind, ends = bucket.edge_kind[edges], bucket.ends[:, edges]
        places = types[_ENDS[:, kind]] + ends
        known = (bucket.edge_known[edges] <= moment) & kept[places].all(axis=0)
        kind, numbers = kind[known], (before[places] - before[types[_ENDS[:, kind]]])[:, known]
        sizes = dict(zip(NODE_TYPES, np.diff(before[types]).tolist(), strict=True))
        pairs: dict[EdgeType, I64] = {}
        for place, (source, relation, target) in enumerate(EDGE_TYPES):
            found = numbers[:, kind == place]
            if relation == CO_OCCURS and self._pairs == "visit":
                found = _all_pairs(sizes[source], sizes[target], source == target)
            elif relation == CO_OCCURS:
                mirrored = numbers[::-1, kind == EDGE_TYPES.index((target, relation, source))]
                found = np.concatenate([found, mirrored], axis=1)
            pairs[source, relation, target] = np.ascontiguousarray(found)
        return pairs


def _micros(moment: datetime) -> int:
    return int(np.datetime64(moment, "us").astype(np.int64))


def _numbers(column: pl.Series) -> I64:
    numbers: I64 = column.to_physical().cast(pl.Int64).to_numpy()
    return numbers


def _as_of(bucket: _Bucket, begin: I64, end: I64, moment: int) -> tuple[I64, F32]:
    """Of nodes (n,), whose events stand from `begin` up to `end`: how many were known at a moment, and the last number.

    Nodes without a number have NaN.
    """
    if not len(begin):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    first, last = int(begin[0]), int(end[-1])
    known, values = bucket.times[first:last] <= moment, bucket.values[first:last]
    passed = np.concatenate([[0], np.cumsum(known)])
    place = np.where(known & ~np.isnan(values), np.arange(last - first), -1)
    latest = np.concatenate([[-1], np.maximum.accumulate(place)])[end - first]
    has_number = latest >= begin - first
    found = np.full(len(begin), np.nan, np.float32)
    found[has_number] = values[latest[has_number]]
    return passed[end - first] - passed[begin - first], found


def _all_pairs(sources: int, targets: int, alike: bool) -> I64:
    """Every pair (2, e) of so many nodes; of nodes of one type none with itself."""
    pairs: I64 = np.indices((sources, targets), dtype=np.int64).reshape(2, -1)
    return pairs[:, pairs[0] != pairs[1]] if alike else pairs
