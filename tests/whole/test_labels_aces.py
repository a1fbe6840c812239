"""Labels beside ES-ACES, row by row, where it can express a task: on the simulated hospital and on MIMIC-IV's demo."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.simulate import simulate
from pipelines.papers.labels import label_bucket
from pipelines.tasks.codes import resolve
from pipelines.tasks.labelling import lists_of
from pipelines.tasks.members import LabelCodes
from pipelines.tasks.settings import LabelsConfig
from tests.support.aces import Labels, aces_labels, write_events
from tests.support.aces_tasks import EXPRESSIBLE, expressible
from tests.support.nights.site import Site
from warehouse.layout import ReleaseLayout

BUCKETS = 4
CLOCKS = ("available_time", "time")
INGREDIENTS = Path(__file__).parents[1] / "fixtures" / "rxnorm_ingredients.csv"
STAY_TASKS = ("hospital_mortality", "icu_mortality", "icu_admission", "icu_readmission")
# MIMIC's demo has few treatments: any drug of any patient with a diagnosis makes the rules meet more of them.
ANYBODY = {"treatment": {"any": ["EMAR/*", "PHARMACY/*"]}, "cancer": {"any": ["ICD9CM/*", "ICD10CM/*"]}}
ANYBODY |= {"aki": {"any": ["ICD9CM/584*", "ICD10CM/N17*"]}, "transfusion": {"any": ["ICD9PCS/990*"]}}
ANYBODY |= {"metastasis": {"any": ["ICD9CM/4019", "ICD10CM/I10"]}}


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@dataclass(frozen=True)
class Place:
    """A release up to its labels, and what its lists of codes are."""

    tree: ReleaseLayout
    folder: Path
    labels: dict[str, Any] = field(default_factory=dict)

    def read(self, kind: str) -> pl.DataFrame:
        wanted = ["subject_id", "time", "available_time", "code"]
        files = [getattr(self.tree, kind)(bucket) for bucket in range(BUCKETS)]
        return pl.concat([pl.read_parquet(path).select(wanted) for path in files])

    def both(self, name: str, clock: str) -> tuple[Labels, Labels]:
        """A task's labels: timeloom's, and those of ACES."""
        settings = LabelsConfig.model_validate({**self.labels, "tasks": {name: expressible(name, clock).model_dump()}})
        codes, (task,) = LabelCodes.of(self.tree, settings), settings.read_tasks.values()
        events = pl.concat([self.read("events"), self.read("derived")])
        subjects = events.select("subject_id", pl.lit("train").alias("split")).unique()
        ours: Labels = {}
        for bucket in range(BUCKETS):
            derived = pl.read_parquet(self.tree.derived(bucket))
            made, _ = label_bucket(self.tree, bucket, settings.read_tasks, codes, subjects, derived, [])[name]
            ours |= {(subject, moment): value for subject, moment, value in made.iter_rows()}
        members = resolve(lists_of({name: task}), codes.lists, events["code"].unique(), codes.edges)
        lists = {
            wanted: members.filter(pl.col("list") == wanted)["code"].unique().sort().to_list()
            for wanted in lists_of({name: task})
        }
        return ours, aces_labels(write_events(self.folder, events, clock), task, lists)


def up_to_labels(site: Site) -> ReleaseLayout:
    site.killed_before("vocabulary")
    (work,) = site.layout.work.iterdir()
    return ReleaseLayout(work / "release")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder / "hospital", subjects=150, seed=5, imaging_share=0.0, modalities=["ct"], task_cases=True)
    (folder / "site").mkdir()
    sources = [{"source": "simulated-hospital", "path": str(folder / "hospital" / "tables")}]
    site = Site(folder / "site", {"sources": sources, "buckets": BUCKETS, "limits": {"unparsable_times": 0.05}})
    return Place(up_to_labels(site), folder / "aces")


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Place:
    folder = tmp_path_factory.mktemp("mimic")
    export = {"source": "mimic-iv", "path": str(real_data / "mimic-iv-demo-2.2")}
    crosswalks = {"crosswalks": {"drug_rxnorm": str(INGREDIENTS)}}
    deid = {"mode": "limited", "subject_ids": "keep", "dates": "keep"}
    (folder / "site").mkdir()
    site = Site(folder / "site", {"sources": [export | crosswalks], "buckets": BUCKETS, "deid": deid})
    return Place(up_to_labels(site), folder / "aces", {"codes": ANYBODY})


def contradicted(place: Place) -> set[int]:
    """Subjects with a stay in hospital without an end, with one that is not after its start, inside another, or after
    death: told by each visit alone."""
    frames = [pl.read_parquet(place.tree.events(bucket)) for bucket in range(BUCKETS)]
    events = pl.concat(frames).filter(pl.col("code").str.contains("^(ENCOUNTER_(START|END)/INPATIENT|MEDS_DEATH)"))
    found = set()
    for (subject,), part in events.group_by("subject_id"):
        deaths = part.filter(pl.col("kind") == "death")["time"].to_list()
        stays: dict[int, list[Any]] = {}
        for visit, kind, time in part.filter(pl.col("kind") != "death").select("visit_id", "kind", "time").iter_rows():
            stays.setdefault(visit, [None, None])[kind == "visit_end"] = time
        spans = sorted(stays.values(), key=str)
        wrong = any(end is None or end <= start or (deaths and deaths[0] <= start) for start, end in spans)
        if wrong or any(first[1] > then[0] for first, then in pairwise(spans)):
            found.add(int(str(subject)))
    return found


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_labels_agree_on_the_simulated_hospital(simulated: Place, name: str, clock: str) -> None:
    ours, theirs = simulated.both(name, clock)
    if name in STAY_TASKS:
        wrong = contradicted(simulated)
        assert 5 < len(wrong) < 30
        ours = {key: value for key, value in ours.items() if key[0] not in wrong}
        theirs = {key: value for key, value in theirs.items() if key[0] not in wrong}
    assert ours == theirs
    assert len(ours) > (40 if name not in ("icu_mortality", "icu_readmission") else 1)
    assert len(set(ours.values())) == 2 or name in ("icu_mortality", "icu_readmission")


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_labels_agree_on_mimics_demo(mimic: Place, name: str) -> None:
    ours, theirs = mimic.both(name, "available_time")
    assert ours == theirs
    if name in STAY_TASKS:
        stays = {"hospital_mortality": 275, "icu_mortality": 140, "icu_admission": 275, "icu_readmission": 109}
        assert len(ours) == stays[name]
