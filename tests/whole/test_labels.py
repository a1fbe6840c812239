"""Labels of a night: the planted patients' answers, who is left out, what stands where, what is done again."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from meds import LabelSchema

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.simulate import simulate
from extractors.simulate.task_cases import CASES
from pipelines.tasks.attrition import discrepancies
from pipelines.tasks.definition import BUILT_IN
from tests.support.nights.site import Site
from validation.measure.anew import measure_anew
from validation.measure.examples.labels import measure_labels, read_attrition
from validation.measure.tasks import Facts
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.publish import current_release

BUCKETS = 4


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "hospital"
    simulate(folder, subjects=40, seed=3, imaging_share=0.0, task_cases=True)
    return folder


def site_at(folder: Path, export: Path) -> Site:
    shutil.copytree(export / "tables", folder / "tables")
    return Site(folder, {"buckets": BUCKETS, "limits": {"unparsable_times": 0.05}})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    found = site_at(tmp_path_factory.mktemp("labels"), export)
    found.night()
    return found


def tree_of(site: Site) -> ReleaseLayout:
    tree = current_release(site.layout)
    assert tree is not None
    return tree


def labels_of(tree: ReleaseLayout, task: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(tree.labels(task, bucket)) for bucket in range(BUCKETS)])


def subjects(site: Site, patients: pl.Series) -> pl.Series:
    deid = DeidConfig(mode="synthetic")
    return Deidentifier(deid, load_key(deid, site.layout.private)).subject_ids(patients)


def test_every_planted_patient_has_the_answer_that_is_known(site: Site, export: Path) -> None:
    truth = pl.read_csv(export / "truth" / "labels.csv")
    truth = truth.with_columns(subjects(site, truth["patient_id"]).alias("subject_id"))
    assert set(truth["case"]) == set(CASES)
    wrong = []
    for (task,), part in truth.group_by("task"):
        found: dict[int, list[str]] = {}
        for subject, _, value in labels_of(tree_of(site), str(task)).iter_rows():
            found.setdefault(subject, []).append(str(value).lower())
        for case, subject, answer in part.select("case", "subject_id", "answer").iter_rows():
            if found.get(subject, []) != ([] if answer == "none" else [answer]):
                wrong.append((task, case, answer, found.get(subject)))
    assert not wrong


def test_planted_patients_change_no_other_row(export: Path, tmp_path: Path) -> None:
    simulate(tmp_path / "without", subjects=40, seed=3, imaging_share=0.0)
    for path in sorted((tmp_path / "without" / "tables").glob("*.csv")):
        assert (export / "tables" / path.name).read_bytes().startswith(path.read_bytes())


def test_labels_are_label_files_of_meds(site: Site) -> None:
    tree = tree_of(site)
    for task in BUILT_IN:
        for bucket in range(BUCKETS):
            table = pq.read_table(tree.labels(task, bucket))
            LabelSchema.validate(table)
            assert table.column_names == ["subject_id", "prediction_time", "boolean_value"]


def test_every_attrition_table_adds_up(site: Site) -> None:
    tree = tree_of(site)
    attrition = read_attrition(tree, BUCKETS)
    assert set(attrition["task"]) == set(BUILT_IN)
    assert discrepancies(attrition)["difference"].to_list() == [0] * discrepancies(attrition).height
    for task in BUILT_IN:
        counted = attrition.filter((pl.col("task") == task) & pl.col("rule").is_in(["positive", "negative"]))
        assert counted["left"].sum() == labels_of(tree, task).height
        entry = site.manifest.labels[task]
        assert entry.positive + entry.negative == labels_of(tree, task).height
        assert entry.rules["clock"] == "available_time", "which clock is recorded"


def test_derived_events_stand_in_a_folder_of_their_own(site: Site) -> None:
    """Neither data/, codes, vocabularies, timelines nor shards know a derived code."""
    tree = tree_of(site)
    derived = pl.concat([pl.read_parquet(tree.derived(bucket)) for bucket in range(BUCKETS)])
    kinds = {code.split("//")[1] for code in derived["code"]}
    assert kinds == {"AKI_KDIGO", "LOT", "NEUTROPENIC_FEVER"}
    elsewhere = [path for path in tree.path.rglob("*") if path.is_file() and path.parent.name != "derived"]
    named = {path.relative_to(tree.path).parts[0] for path in elsewhere}
    assert {"data", "codes", "vocabularies", "timelines", "shards", "metadata"} <= named
    for path in elsewhere:
        top = path.relative_to(tree.path).parts[0]
        if top in ("quality", "manifest.json"):  # which name the rules of labels
            continue
        assert b"DERIVED//" not in path.read_bytes(), path.name
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path)
            texts = [frame[name] for name in frame.columns if frame[name].dtype == pl.String]
            assert not any(text.str.starts_with("DERIVED").any() for text in texts), path.name


def test_the_audit_finds_a_planted_leak(site: Site, tmp_path: Path) -> None:
    """A label that looks one second ahead, one that stands there twice, one that nobody counted."""
    tree = ReleaseLayout(tmp_path / "release")
    shutil.copytree(tree_of(site).path, tree.path)
    tasks = {"mortality": site.manifest.labels["mortality"]}
    attrition = read_attrition(tree, BUCKETS)

    def audited() -> dict[str, Any]:
        measures = measure_anew(tree, Facts(BUCKETS, {}, tasks, "mehrt", None))
        return measure_labels(tasks, attrition, measures).row(0, named=True)

    clean = audited()
    assert clean["labels"] > 10
    faults = ("difference", "uncounted", "repeated", "unknown_by_then", "after_death")
    assert [clean[name] for name in faults] == [0, 0, 0, 0, 0]
    bucket = next(bucket for bucket in range(BUCKETS) if pl.read_parquet(tree.labels("mortality", bucket)).height)
    frame = pl.read_parquet(tree.labels("mortality", bucket))
    ahead = frame.with_columns(pl.col("prediction_time") - pl.duration(seconds=1))
    pl.concat([ahead.head(1), frame.tail(-1), frame.tail(1)]).write_parquet(tree.labels("mortality", bucket))
    found = audited()
    assert (found["unknown_by_then"], found["repeated"], found["uncounted"]) == (1, 1, 1)
    events = pl.concat([pl.read_parquet(tree.events(bucket)) for bucket in range(BUCKETS)])
    moment = pl.col("available_time").alias("prediction_time")
    dead = events.filter(pl.col("code") == "MEDS_DEATH").select(
        "subject_id", moment, pl.lit(True).alias("boolean_value")
    )
    (home,) = bucket_of(dead["subject_id"].head(1).to_numpy(), BUCKETS)
    dead.head(1).write_parquet(tree.labels("mortality", int(home)))
    assert audited()["after_death"] == 1


def up_to_labels(site: Site) -> tuple[int, int]:
    """How many tasks of the step ran and were done before, in a night that goes no further."""
    with site._run(None, None) as run:
        for name, step in run.steps:
            done = run.carry_out(name, step)
            if name == "labels":
                return done["ran"], done["linked"] + done["resumed"]
    raise AssertionError("there is no such step")


def test_a_night_redoes_the_changed_bucket_alone(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.folder, tmp_path / "site", symlinks=True)
    changed = Site(tmp_path / "site", site.config)
    assert up_to_labels(changed) == (0, BUCKETS)
    table = changed.folder / "tables" / "deaths.csv"
    head, _, *others = table.read_text().splitlines()
    table.write_text("\n".join([head, *others]) + "\n")
    assert up_to_labels(changed) == (1, BUCKETS - 1), "of the bucket that lost a death"


def test_another_list_of_derived_events_makes_labels_anew(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.folder, tmp_path / "site", symlinks=True)
    severe = {"codes": {"aki_kdigo": {"any": ["DERIVED//AKI_KDIGO//3"]}}}
    changed = Site(tmp_path / "site", site.config | {"labels": severe})
    assert up_to_labels(changed) == (BUCKETS, 0)


def test_without_tasks_there_are_no_labels(export: Path, tmp_path: Path) -> None:
    site = site_at(tmp_path / "site", export)
    site.config["labels"] = {"tasks": {}}
    site.killed_before("vocabulary")
    work = next(site.layout.work.iterdir())
    assert not any((work / "release" / name).exists() for name in ("labels", "derived", "attrition"))


def test_a_task_without_its_codes_is_empty_and_says_which_mapping_it_wants(export: Path, tmp_path: Path) -> None:
    site = site_at(tmp_path / "site", export)
    no_drugs = {"any": ["ATC/L01*"]}
    site.config["labels"] = {"tasks": {"mortality": {}, "icu_mortality": {}}, "codes": {"treatment": no_drugs}}
    outcome = site.night()
    tree = tree_of(site)
    assert labels_of(tree, "mortality").is_empty()
    rules = read_attrition(tree, BUCKETS).filter(pl.col("task") == "mortality")
    assert rules.filter(pl.col("rule") == "withheld")["removed"].sum() == 40 + len(CASES)
    assert (site.manifest.labels["mortality"].positive, site.manifest.labels["mortality"].negative) == (0, 0)
    (line,) = outcome.withheld
    assert line.startswith("task mortality has no labels: it wants ATC codes for treatment (index event)")
    assert "labels.mappings" in line and "\n" not in line
    assert line in outcome.lines()
