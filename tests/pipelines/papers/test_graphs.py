"""Visit graphs, held against a patient worked out by hand and against loops over rows."""

from collections import defaultdict
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.clinifuse.graph import types_of
from pipelines.clinifuse.ontology import Ontology, read_crosswalk
from pipelines.clinifuse.settings import GraphsConfig
from pipelines.clinifuse.visits import visits_of
from pipelines.config import parse_config
from tests.support.visits import at, events_of, make_graphs
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame
from warehouse.readers.graphs import EDGE_TYPES, VisitGraph
from warehouse.schemas import CLINICAL_NODES, CO_OCCURS, IS_A, NODE_TYPES

# One patient: an admission of two days with two labs, a drug and a diagnosis that is known at discharge; a stay in the
# emergency department a day later, during which nothing is found; an event outside any visit.
ROWS: list[dict[str, Any]] = [
    {"subject": 1, "visit": 7, "hours": 0, "code": "HOSPITAL_ADMISSION/URGENT", "kind": "visit_start"},
    {"subject": 1, "visit": 7, "hours": 2, "known": 3, "code": "LOINC/2160-0", "value": 1.5, "unit": "mg/dL"},
    {"subject": 1, "visit": 7, "hours": 30, "known": 31, "code": "LOINC/2160-0", "value": 2.5, "unit": "mg/dL"},
    {"subject": 1, "visit": 7, "hours": 2, "known": 3, "code": "LOINC/718-7", "value": 9.0, "unit": "g/dL"},
    {"subject": 1, "visit": 7, "hours": 30, "code": "RXNORM/2555"},
    {"subject": 1, "visit": 7, "hours": 5, "known": 48, "code": "ICD10CM/C50911", "value": 1},
    {"subject": 1, "visit": 7, "hours": 48, "code": "HOSPITAL_DISCHARGE/HOME", "kind": "visit_end"},
    {"subject": 1, "visit": 3, "hours": 72, "code": "ED_ADMISSION/WALK", "kind": "visit_start"},
    {"subject": 1, "visit": 3, "hours": 75, "code": "ED_DISCHARGE/HOME", "kind": "visit_end"},
    {"subject": 1, "hours": 100, "code": "LOINC/718-7", "value": 10.0, "unit": "g/dL"},
]
PARENTS = {"RXNORM/2555": ["ATC/L01XA01"]}
ATC = ["ATC/L", "ATC/L01", "ATC/L01X", "ATC/L01XA", "ATC/L01XA01"]


def edges(graph: VisitGraph) -> dict[tuple[str, str, str], set[tuple[str, str]]]:
    """Edges of a graph by kind, as codes; kinds without an edge are left out."""
    return {
        kind: {(graph.codes[kind[0]][source], graph.codes[kind[2]][target]) for source, target in index.T.tolist()}
        for kind, index in graph.edge_index.items()
        if index.size
    }


def test_a_patient_worked_out_by_hand(tmp_path: Path) -> None:
    counts, reader = make_graphs(tmp_path, events_of(ROWS), parents=PARENTS)
    assert counts == {
        "visits": 2, "without_start": 0, "out_of_order": 0, "edges": 6, "without_visit": {"lab": 1},
        "nodes": {"diagnosis": 1, "procedure": 0, "medication": 1, "lab": 2, "vital": 0, "concept": 6},
    }  # fmt: skip
    stay, emergency = reader.of_subject(1)
    assert (stay.visit, stay.type, stay.start, stay.end) == (0, "HOSPITAL_ADMISSION/URGENT", at(0), at(48))
    assert (stay.days_since_prev, emergency.days_since_prev) == (None, 1.0)
    assert stay.num_nodes == counts["nodes"]
    assert stay.codes["lab"] == ["LOINC/2160-0", "LOINC/718-7"]
    assert stay.codes["concept"] == [*ATC, "ICD10CM/C50"]
    assert stay.counts["lab"].tolist() == [2, 1]
    assert stay.values["lab"].tolist() == [2.5, 9.0]
    assert np.isnan(stay.values["medication"]).all()
    assert stay.edge_index["lab", CO_OCCURS, "lab"].tolist() == [[0, 1], [1, 0]]
    found = edges(stay)
    assert found["diagnosis", IS_A, "concept"] == {("ICD10CM/C50911", "ICD10CM/C50")}
    assert found["medication", IS_A, "concept"] == {("RXNORM/2555", "ATC/L01XA01")}
    assert found["concept", IS_A, "concept"] == set(zip(ATC[1:], ATC[:-1], strict=True))
    assert found["diagnosis", CO_OCCURS, "lab"] == {("ICD10CM/C50911", lab) for lab in stay.codes["lab"]}
    assert emergency.num_nodes == dict.fromkeys(NODE_TYPES, 0)
    assert emergency.edge_index.keys() == set(EDGE_TYPES)
    assert all(index.shape == (2, 0) and index.dtype == np.int64 for index in emergency.edge_index.values())


def test_what_was_known_at_a_moment_is_numbered_anew(tmp_path: Path) -> None:
    _, reader = make_graphs(tmp_path, events_of(ROWS), parents=PARENTS)
    (early,) = reader.of_subject(1, until=at(3))
    assert early.codes["lab"] == ["LOINC/2160-0", "LOINC/718-7"]
    assert (early.counts["lab"].tolist(), early.values["lab"].tolist()) == ([1, 1], [1.5, 9.0])
    assert (early.num_nodes["diagnosis"], early.num_nodes["concept"], early.end) == (0, 0, None)
    (later,) = reader.of_subject(1, until=at(30))
    assert later.codes["concept"] == ATC, "the diagnosis is not known yet, and neither is its class"
    assert later.edge_index["concept", IS_A, "concept"].max() == len(ATC) - 1
    assert later.counts["lab"].tolist() == [1, 1], "the second result comes an hour later"
    assert reader.of_subject(1, until=at(-1)) == []
    assert reader.of_subject(99) == []


def test_pairs_of_one_span(tmp_path: Path) -> None:
    config = GraphsConfig(co_occurrence="span", span_hours=24)
    _, reader = make_graphs(tmp_path, events_of(ROWS), config)
    stay, _ = reader.of_subject(1)
    found = edges(stay)
    creatinine, haemoglobin = stay.codes["lab"]
    # The first day has both labs and the diagnosis, the second a lab and the drug.
    assert found["lab", CO_OCCURS, "lab"] == {(creatinine, haemoglobin), (haemoglobin, creatinine)}
    assert found["lab", CO_OCCURS, "medication"] == {(creatinine, "RXNORM/2555")}
    assert found["medication", CO_OCCURS, "lab"] == {("RXNORM/2555", creatinine)}
    assert ("diagnosis", CO_OCCURS, "medication") not in found
    (early,) = reader.of_subject(1, until=at(30))
    assert ("lab", CO_OCCURS, "medication") not in edges(early), "their span's result is known an hour later"
    none = make_graphs(tmp_path, events_of(ROWS), GraphsConfig(co_occurrence="none"))[1].of_subject(1)[0]
    assert {kind[1] for kind in edges(none)} == {IS_A}


# In `make test` alone: PyTorch Geometric takes many seconds to import.
@pytest.mark.whole
def test_the_same_graph_is_hetero_data(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    _, reader = make_graphs(tmp_path, events_of(ROWS), parents=PARENTS)
    for graph in reader.of_subject(1):
        data = graph.hetero_data()
        assert data.validate()
        assert set(data.node_types) == set(NODE_TYPES)
        assert set(data.edge_types) == set(EDGE_TYPES)
        assert {name: data[name].num_nodes for name in NODE_TYPES} == graph.num_nodes
        for kind, index in graph.edge_index.items():
            assert str(data[kind].edge_index.dtype) == "torch.int64"
            assert data[kind].edge_index.numpy().tolist() == index.tolist()
        assert [reader.codes[int(number)] for number in data["lab"].code_id] == graph.codes["lab"]


def test_without_pyg_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, reader = make_graphs(tmp_path, events_of(ROWS))
    monkeypatch.setitem(__import__("sys").modules, "torch_geometric.data", None)
    with pytest.raises(TimeloomError, match="PyTorch Geometric is not installed"):
        reader.of_subject(1)[0].hetero_data()
    assert reader.of_subject(1)[0].tensors()["edge_index"]["lab", CO_OCCURS, "lab"].shape == (2, 2)


CODES = [
    "ICD10CM/C50911",
    "ICD10CM/C50",
    "ICD10PCS/30233N1",
    "RXNORM/1",
    "RXNORM/2",
    "LOINC/8867-4",
    "LOINC/1",
    "DEMO/SEX/F",
]
EVENT = st.fixed_dictionaries(
    {
        "subject": st.integers(1, 3),
        "visit": st.sampled_from([None, 1, 2]),
        "hours": st.integers(0, 40),
        "code": st.sampled_from(CODES),
        "unit": st.sampled_from([None, "mg"]),
        "value": st.sampled_from([None, 1.0, 2.0]),
    }
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENT, min_size=1, max_size=40), st.sampled_from(["visit", "span"]), st.integers(0, 50))
def test_ids_count_from_0_and_every_edge_has_its_ends(rows: list[dict[str, Any]], pairs: Any, until: int) -> None:
    with TemporaryDirectory() as folder:
        config = GraphsConfig(co_occurrence=pairs, span_hours=10)
        counts, reader = make_graphs(Path(folder), events_of(rows), config, {"RXNORM/1": ["ATC/A01BC02"]})
        tree = ReleaseLayout(Path(folder))
        nodes = read_frame(tree.graph_nodes(0))
        visits = read_frame(tree.graph_visits(0))
        graphs = [graph for subject in (1, 2, 3) for graph in reader.of_subject(subject)]
        partial = [graph for subject in (1, 2, 3) for graph in reader.of_subject(subject, until=at(until))]
        codes = set(reader.codes)
    assert counts["visits"] == len(visits) == len(graphs)
    for (_, _), part in nodes.group_by("row", "type"):
        assert part["node"].to_list() == list(range(len(part)))
    wanted: dict[tuple[int, int], set[tuple[str, str | None]]] = defaultdict(set)
    for row in rows:
        if row["visit"] is not None:
            wanted[row["subject"], row["visit"]] |= (
                {(row["code"], row["unit"])} if not row["code"].startswith("DEMO") else set()
            )
    held = {
        (visit["subject_id"], visit["visit_id"]): {
            (code, unit)
            for code, unit in nodes.filter((pl.col("row") == row) & (pl.col("type") != "concept"))
            .select("code", "unit")
            .iter_rows()
        }
        for row, visit in enumerate(visits.iter_rows(named=True))
    }
    assert held == wanted
    for graph in [*graphs, *partial]:
        assert set(graph.edge_index) == set(EDGE_TYPES)
        for (source, _, target), index in graph.edge_index.items():
            assert index.dtype == np.int64 and index.shape[0] == 2
            limits = [[graph.num_nodes[source]], [graph.num_nodes[target]]]
            assert ((index >= 0) & (index < limits)).all()
            assert len(set(map(tuple, index.T.tolist()))) == index.shape[1], "no edge stands there twice"
        assert all(set(of_type) <= codes for of_type in graph.codes.values())


def test_days_since_the_visit_before() -> None:
    rows = [
        {"subject": 1, "visit": 5, "hours": 0, "code": "A", "kind": "visit_start"},
        {"subject": 1, "visit": 5, "hours": 96, "code": "Z", "kind": "visit_end"},
        # Inside the first; then one without start and end; then one that ends before it begins.
        {"subject": 1, "visit": 2, "hours": 24, "code": "B", "kind": "visit_start"},
        {"subject": 1, "visit": 2, "hours": 48, "code": "Z", "kind": "visit_end"},
        {"subject": 1, "visit": 1, "hours": 120, "code": "LOINC/1"},
        {"subject": 1, "visit": 1, "hours": 132, "code": "LOINC/1"},
        {"subject": 1, "visit": 9, "hours": 180, "code": "B", "kind": "visit_start"},
        {"subject": 1, "visit": 9, "hours": 170, "code": "Z", "kind": "visit_end"},
        {"subject": 2, "visit": 4, "hours": 0, "code": "A", "kind": "visit_start"},
    ]
    visits = visits_of(events_of(rows))
    assert visits["visit_id"].to_list() == [5, 2, 1, 9, 4], "by start, not by number"
    assert visits["visit"].to_list() == [0, 1, 2, 3, 0]
    assert visits["days_since_prev"].to_list() == [None, 0.0, 1.0, 2.0, None]
    assert visits["out_of_order"].to_list() == [False, False, False, True, False]
    assert visits["type"].to_list() == ["A", "B", None, "B", "A"]
    by_start = visits_of(events_of(rows), "start")
    assert by_start["days_since_prev"].to_list() == [None, 1.0, 4.0, 2.5, None]


def test_a_moment_with_a_time_zone_is_one_line(tmp_path: Path) -> None:
    rows = [{"subject": 1, "visit": 1, "hours": 0, "code": "A", "kind": "visit_start"}]
    _, graphs = make_graphs(tmp_path, events_of(rows))
    assert len(graphs.of_subject(1, until=at(0))) == 1
    with pytest.raises(TimeloomError, match="has a time zone"):
        graphs.of_subject(1, until=at(0).replace(tzinfo=UTC))


def test_days_do_not_hang_on_what_was_recorded_later() -> None:
    """Of a visit without an end, nobody knows at the next one's start what is still to come."""
    rows: list[dict[str, Any]] = [
        {"subject": 1, "visit": 1, "hours": 0, "code": "A", "kind": "visit_start"},
        {"subject": 1, "visit": 1, "hours": 24, "code": "LOINC/1"},
        {"subject": 1, "visit": 2, "hours": 72, "code": "B", "kind": "visit_start"},
        {"subject": 1, "visit": 2, "hours": 71, "code": "LOINC/1"},
        {"subject": 2, "visit": 3, "hours": 70, "code": "A", "kind": "visit_start"},
    ]
    later = [
        {"subject": 1, "visit": 1, "hours": 96, "code": "LOINC/1"},
        {"subject": 1, "visit": 1, "hours": 48, "known": 96, "code": "LOINC/1"},
    ]
    for recorded in (rows, [*rows, *later]):
        assert visits_of(events_of(recorded))["days_since_prev"].to_list() == [None, 2.0, None]


def test_which_events_are_nodes() -> None:
    pairs = pl.DataFrame(
        [
            ("conditions", "SNOMED/1", "diagnosis"),
            ("synthea/procedures", "SNOMED/1", "procedure"),
            ("conditions", "CONDITION_END/SNOMED/1", None),
            ("observations", "LOINC/8867-4", "vital"),
            ("observations", "LOINC/8867-40", "lab"),
            ("labs", "LOINC/718-7", "lab"),
            ("t", "EMAR/NOT GIVEN/X", None),
            ("t", "EMAR/ADMINISTERED/X", "medication"),
            ("t", "ICD10CMX/1", None),
        ],
        schema=["source", "code", "wanted"],
        orient="row",
    )
    found = pairs.join(types_of(pairs.drop("wanted"), GraphsConfig()), on=["source", "code"], how="left")
    assert found.select(pl.col("type").cast(pl.String)).to_series().to_list() == pairs["wanted"].to_list()


def test_a_crosswalk_of_the_site(tmp_path: Path) -> None:
    path = tmp_path / "atc.csv"
    path.write_text("code,parent\nRXNORM/1,ATC/A01BC02\nRXNORM/1,RXNORM/1\nATC/A01BC02,ATC/A01BC02\n", encoding="utf-8")
    codes = pl.DataFrame(
        {"code": ["RXNORM/1"], "parent_codes": [None]}, schema_overrides={"parent_codes": pl.List(pl.String)}
    )
    one_step = Ontology.of(codes, GraphsConfig(crosswalks=(path,), steps=1))
    assert one_step.above.rows() == [("RXNORM/1", "ATC/A01BC02")]
    assert Ontology.of(codes, GraphsConfig(crosswalks=(path,))).above["parent"].to_list() == [
        "ATC/A", "ATC/A01", "ATC/A01B", "ATC/A01BC", "ATC/A01BC02",
    ]  # fmt: skip
    assert Ontology.of(codes, GraphsConfig(crosswalks=(path,), steps=0)).above.is_empty()
    circle = tmp_path / "circle.csv"
    circle.write_text("code,parent\nRXNORM/1,X/1\nX/1,RXNORM/1\n", encoding="utf-8")
    assert Ontology.of(codes, GraphsConfig(crosswalks=(circle,), steps=20)).above.rows() == [("RXNORM/1", "X/1")]
    path.write_text("rxnorm,atc\n1,A01\n", encoding="utf-8")
    with pytest.raises(TimeloomError, match="lacks the column code"):
        read_crosswalk(path)
    with pytest.raises(TimeloomError, match="cannot be read"):
        read_crosswalk(tmp_path / "none.csv")


def test_a_type_of_node_that_there_is_not(tmp_path: Path) -> None:
    raw = {"sources": [{"source": "synthea", "path": "t"}], "graphs": {"nodes": {"allergy": {"codes": ["ALLERGY"]}}}}
    with pytest.raises(TimeloomError, match="there is no type of node allergy: write one of diagnosis"):
        parse_config(raw, tmp_path, "test")
    assert set(GraphsConfig().rules) == set(CLINICAL_NODES)
