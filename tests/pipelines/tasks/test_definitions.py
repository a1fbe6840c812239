"""Definitions of tasks as data: what is built in, what a site overrides, and what is wrong in one line."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.commands.check_task import check, json_schema
from pipelines.config import RunConfig, parse_config
from pipelines.papers import derive
from pipelines.tasks.codes import entries_of, unknown_systems
from pipelines.tasks.definition import BUILT_IN, built_in, load_task
from pipelines.tasks.settings import LabelsConfig
from tests.support.label_cases import Event, answers, label, treated, write_bucket
from warehouse.errors import TimeloomError

DOCS = Path(__file__).parents[3] / "docs"
SOURCES = [{"source": "simulated-hospital", "path": "tables"}]
ONCOLOGY = {"mortality", "metastasis", "progression_proxy", "aki_icd", "aki_kdigo", "neutropenic_fever", "transfusion"}
ICU = {"hospital_mortality", "icu_mortality", "icu_admission", "icu_readmission"}


def config(labels: Any = None, **others: Any) -> RunConfig:
    raw = {"sources": SOURCES, **({} if labels is None else {"labels": labels}), **others}
    return parse_config(raw, Path(), "run.yaml")


def test_the_tasks_of_the_papers_are_built_in() -> None:
    assert set(BUILT_IN) == ONCOLOGY | ICU
    assert set(config().labels.tasks) == set(BUILT_IN)
    assert set(config({"tasks": "all"}).labels.tasks) == set(BUILT_IN)
    assert config({"tasks": {}}).labels.tasks == {}


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_says_that_it_is_a_proposal_and_why(name: str) -> None:
    task = built_in(name)
    assert task.id.startswith("onc." if name in ONCOLOGY else "icu.") and task.version == 1
    assert len(task.proposal) > 60 and len(task.prose) > 40
    assert task.clock == "available_time", "a fact counts when it could be known"
    assert (task.horizon_days, task.index.min_age) == ((365, 18) if name in ONCOLOGY else (None, None))


def test_a_key_overrides_a_definition() -> None:
    tasks = config({"tasks": {"mortality": {"index": {"washin_days": 90}, "clock": "time"}}}).labels.tasks
    assert tasks["mortality"].index.washin_days == 90
    assert tasks["mortality"].index.min_age == 18, "what the key does not say stays"
    assert tasks["mortality"].clock == "time"


def test_a_site_adds_a_task_by_a_file(tmp_path: Path) -> None:
    """With a list of codes of its own, which no other task reads."""
    (tmp_path / "stroke.yaml").write_text(
        "id: ours.stroke.v2\ntitle: Stroke\nproposal: A test's own.\n"
        "codes:\n  stroke: {any: ['ICD10CM/I63*']}\n  treatment: {any: [RXNORM/2555]}\n"
        "index: {event: treatment}\noutcomes: [{codes: stroke}]\nhorizon_days: 90\n"
    )
    raw = {"sources": SOURCES, "labels": {"tasks": {"stroke": {"definition": "stroke.yaml"}, "mortality": {}}}}
    labels = parse_config(raw, tmp_path, "run.yaml").labels
    assert (labels.tasks["stroke"].id, labels.tasks["stroke"].version) == ("ours.stroke.v2", 2)
    lists = labels.all_lists()
    assert entries_of("stroke.treatment", lists)[0] == ["RXNORM/2555"]
    assert len(entries_of("treatment", lists)[0]) > 50
    events: list[Event] = [
        *treated(1),
        (1, 30, "ICD10CM/I639"),
        *treated(2, drug="RXNORM/3002"),
        (2, 30, "ICD10CM/I639"),
    ]
    found, left_out = label(write_bucket(tmp_path, events), load_task("stroke.yaml", tmp_path))
    assert answers(found) == {1: True}
    assert left_out["no_treatment"] == 1


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"tasks": {"mortality": {"horizn_days": 3}}}, "did you mean horizon_days"),
        ({"tasks": {"ours": {"definition": "nowhere.yaml"}}}, "there is no task nowhere.yaml"),
        ({"tasks": {"ours": {}}}, "Field required"),
        ({"tasks": {"mortality": {"exclude": ["strokes"]}}}, "names the list strokes, which is not among codes"),
        ({"codes": {"ours": {"any": ["N17"]}}}, "N17 names no code system"),
        ({"codes": {"ours": {"any": ["^ICD10CM/(N17"]}}}, "is no regular expression"),
        ({"codes": {"ours": {"lists": ["nobody"]}}}, "names the list nobody"),
        ({"codes": {"ours": {}}}, "a list needs codes"),
        ({"scheme": "other"}, "labels.scheme other is not among splits"),
        ({"tasks": {"mortality": {"id": "mine"}}}, "id"),
        ({"tasks": {"mortality": {"codes": {"death": {"any": ["ICD10CM/R99"]}}}}}, "write it under labels.codes"),
        ({"tasks": {"aki_kdigo": {"codes": {"creatinine": {"any": ["LOINC/1"]}}}}}, "creatinine is read by no rule"),
        ({"tasks": {"mortality": {"index": {"stay": "icu"}}}}, "either an event or a stay"),
        ({"tasks": {"mortality": {"horizon_days": None}}}, "horizon_days is missing"),
        ({"tasks": {"aki_icd": {"follow_up": {"register_days": 365}}}}, "a register of deaths proves no absence"),
        ({"tasks": {"progression_proxy": {"follow_up": {"register_days": 1}}}}, "a register of deaths proves no"),
        ({"tasks": {"icu_mortality": {"index": {"orders": "orders"}}}}, "orders gives way to a first event"),
        ({"tasks": {"mortality": {"index": {"which": "each"}}}}, "orders gives way to a first event"),
    ],
)
def test_what_is_wrong_is_one_line(labels: dict[str, Any], said: str) -> None:
    with pytest.raises(TimeloomError, match=said) as caught:
        config(labels)
    assert "\n" not in str(caught.value)


def test_a_definition_may_name_another_one_and_not_itself(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "ours.yaml").write_text("definition: base.yaml\nindex: {washin_days: 90}\n")
    (tmp_path / "tasks" / "base.yaml").write_text("definition: mortality\nid: ours.death.v1\nhorizon_days: 90\n")
    (tmp_path / "loop.yaml").write_text("definition: loop.yaml\n")
    raw = {"sources": SOURCES, "labels": {"tasks": {"ours": {"definition": "tasks/ours.yaml", "clock": "time"}}}}
    task = parse_config(raw, tmp_path, "run.yaml").labels.tasks["ours"]
    assert (task.id, task.horizon_days, task.clock) == ("ours.death.v1", 90, "time")
    assert (task.index.washin_days, task.index.min_age) == (90, 18)
    assert load_task("tasks/ours.yaml", tmp_path).rules() == task.model_copy(update={"clock": "available_time"}).rules()
    with pytest.raises(TimeloomError, match=r"the definition loop\.yaml names itself"):
        load_task("loop.yaml", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("definition: mortality\nexclude: [strokes]\n", r"ours.yaml: .*names the list strokes, which is not among"),
        ("definition: base.yaml\nhorizon_days: 90\n", "has no release yet"),
    ],
)
def test_what_check_task_cannot_take_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    """A definition beside the file is found wherever the command is run."""
    (tmp_path / "base.yaml").write_text(
        "id: ours.base.v1\ntitle: Base\nproposal: A test's own.\nindex: {event: treatment}\nhorizon_days: 9\n"
        "outcomes: [{codes: death}]\n"
    )
    (tmp_path / "ours.yaml").write_text(text)
    with pytest.raises(TimeloomError, match=said) as caught:
        check(str(tmp_path / "ours.yaml"), tmp_path / "root", None, lambda *_: None)
    assert "\n" not in str(caught.value)


def test_a_mapping_that_is_missing_stops_a_run_before_any_work(tmp_path: Path) -> None:
    night: Any = SimpleNamespace(config=config({"tasks": "all", "mappings": [str(tmp_path / "nowhere.csv")]}))
    assert derive.STAGE.ready is not None
    with pytest.raises(TimeloomError, match=r"a file of labels\.mappings cannot be read"):
        derive.STAGE.ready(night)


def test_a_scheme_without_held_out_evaluates_nothing() -> None:
    splits = {"all": {"train": 0.9, "tuning": 0.1, "held_out": 0}}
    assert config(splits=splits).labels.tasks == {}, "nobody asked for labels"
    with pytest.raises(TimeloomError, match="the scheme all has no held_out"):
        config({"tasks": "all"}, splits=splits)


def test_an_unknown_code_system_is_named() -> None:
    assert unknown_systems(["ICD10/N17*", "ICD10CM/N17*"], []) == [
        "ICD10 is no code system of this release, did you mean ICD10CM?"
    ]
    assert unknown_systems(["HOUSE/7"], ["HOUSE"]) == []


def test_the_lists_name_what_the_publications_name() -> None:
    lists = LabelsConfig(tasks={}).all_lists()
    ingredients = [entry for entry in entries_of("antineoplastic", lists)[0] if entry.startswith("RXNORM/")]
    fixture = Path(__file__).parents[2] / "fixtures" / "rxnorm_ingredients.csv"
    published = {line.split(",")[1] for line in fixture.read_text().splitlines()[1:]}
    assert {entry.removeprefix("RXNORM/") for entry in ingredients} == published


def test_the_schema_is_published() -> None:
    """If not: timeloom check-task --schema > docs/task.schema.json"""
    assert (DOCS / "task.schema.json").read_text(encoding="utf-8") == json_schema()


def test_the_page_has_the_answers_of_planted_patients() -> None:
    """If not: python docs/examples/tasks.py --planted"""
    spec = spec_from_file_location("example", DOCS / "examples" / "tasks.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "```\n" + "\n".join(module.planted()) + "\n```" in (DOCS / "tasks.md").read_text(encoding="utf-8")
