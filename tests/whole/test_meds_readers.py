"""Other people's MEDS tools read a release and the converted MIMIC-IV demo unchanged: docs/meds-tools.md is run."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import meds
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.raw.mimic_raw import Raw
from warehouse import Release

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "meds-tools.md").read_text(encoding="utf-8")
MIMIC, RELEASE = "the MIMIC demo", "a release"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def shell(command: str, folder: Path) -> str:
    """Runs a command of the page in a folder, with the environment's tools, as a person would."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CONVERT, READER, ACES, TRANSFORMS = blocks("bash")
TASK, PIPELINE = blocks("yaml")
(COUNT,) = blocks("python")


@dataclass(frozen=True)
class Place:
    """A folder in which `mimic-meds` is a MEDS dataset, and the page's task in the codes of that dataset."""

    folder: Path
    task: str
    pipeline: str
    counted: frozenset[int]

    @property
    def dataset(self) -> Path:
        return self.folder / "mimic-meds"

    def events(self) -> pl.DataFrame:
        return pl.read_parquet(sorted((self.dataset / "data").glob("*.parquet")))


@pytest.fixture(scope="module")
def mimic(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("mimic")
    (folder / "docs").symlink_to(ROOT / "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIMELOOM_DATA", str(real_data))
        assert "472745 events of 100 subjects" in shell(CONVERT, folder)
    place = Place(folder, TASK, PIPELINE, frozenset())
    return replace(place, counted=frozenset(place.events()["subject_id"]))


@pytest.fixture(scope="module")
def published(demo_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The simulated hospital's release: it has other codes, and splits."""
    folder, release = tmp_path_factory.mktemp("release"), Release.open(demo_release)
    (folder / "mimic-meds").symlink_to(release.path)
    task = TASK.replace("HOSPITAL_ADMISSION/", "ENCOUNTER_START/INPATIENT").replace(
        "HOSPITAL_DISCHARGE/", "ENCOUNTER_END/INPATIENT"
    )
    splits = pl.read_parquet(release.files.subject_splits)
    train = frozenset(splits.filter(pl.col("split") == "train")["subject_id"])
    return Place(folder, task, PIPELINE.replace("      train_only: false\n", ""), train)


@pytest.fixture(scope="module", params=[MIMIC, RELEASE])
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.getfixturevalue({MIMIC: "mimic", RELEASE: "published"}[request.param])
    return chosen


def test_meds_schemas_validate_every_file(place: Place) -> None:
    events, metadata = sorted((place.dataset / "data").glob("*.parquet")), place.dataset / "metadata"
    assert len(events) > 1
    for path in events:
        meds.DataSchema.validate(pq.read_table(path))
    meds.CodeMetadataSchema.validate(pq.read_table(metadata / "codes.parquet"))
    described = json.loads((metadata / "dataset.json").read_text(encoding="utf-8"))
    meds.DatasetMetadataSchema.validate(described)
    extra = set(pq.read_schema(events[0]).names) - set(meds.DataSchema.schema().names)
    classified = [name for key, names in described.items() if key.endswith("_columns") for name in names]
    assert sorted(classified) == sorted(extra)


def test_meds_schema_validates_the_splits(published: Place) -> None:
    meds.SubjectSplitSchema.validate(pq.read_table(published.dataset / "metadata" / "subject_splits.parquet"))


def test_meds_schema_would_notice_a_wrong_type(published: Place) -> None:
    table = pq.read_table(next((published.dataset / "data").glob("*.parquet")))
    index = table.schema.get_field_index("code")
    wrong = table.set_column(index, "code", table.column("code").cast(pa.large_string()))
    with pytest.raises(Exception, match="code"):
        meds.DataSchema.validate(wrong)


def test_meds_reader_reads_every_event(place: Place) -> None:
    shell(READER, place.folder)
    # The reader keeps its files mapped, so it runs in a separate process.
    (place.folder / "count.py").write_text(COUNT, encoding="utf-8")
    events = place.events()
    said = shell("python count.py", place.folder)
    assert said == f"{events['subject_id'].n_unique()} subjects, {len(events)} events\n"
    columns = "import meds_reader as m; print(*sorted(m.SubjectDatabase('mimic-reader').properties))"
    assert set(shell(f'python -c "{columns}"', place.folder).split()) >= set(events.columns) - {"subject_id"}


Label = tuple[int, datetime, bool]
# The admissions, discharges and deaths of a subject.
Stays = dict[int, tuple[set[datetime], set[datetime], set[datetime]]]


def stays_of_mimic(folder: Path) -> Stays:
    """Read from the raw files, without any code of the packages."""
    raw, found = Raw(folder), defaultdict(lambda: (set(), set(), set()))
    deaths: dict[int, datetime] = {}
    for row in raw.rows("hosp/admissions"):
        subject = int(str(row["subject_id"]))
        for column, times in zip(("admittime", "dischtime"), found[subject], strict=False):
            times.add(datetime.fromisoformat(str(row[column])))
        if row["deathtime"]:
            died = datetime.fromisoformat(row["deathtime"])
            deaths[subject] = min(died, deaths.get(subject, died))
    for row in raw.rows("hosp/patients"):
        subject = int(str(row["subject_id"]))
        if subject in deaths or row["dod"]:
            end = datetime.fromisoformat(str(row["dod"])[:10]) + timedelta(days=1, microseconds=-1)
            found[subject][2].add(deaths.get(subject, end))
    return found


def stays_of_release(events: pl.DataFrame) -> Stays:
    found: Stays = defaultdict(lambda: (set(), set(), set()))
    starts = ("ENCOUNTER_START/INPATIENT", "ENCOUNTER_END/INPATIENT", "MEDS_DEATH")
    for subject, time, code in events.select("subject_id", "time", "code").iter_rows():
        for start, times in zip(starts, found[subject], strict=True):
            if code.startswith(start):
                times.add(time)
    return found


def labels_of(stays: Stays, hours: int = 24) -> tuple[set[Label], set[int]]:
    """A label for each admission that lasts longer than `hours`, which is whether it ends with death; and the
    subjects with an admission that has not ended."""
    found, unended = set(), set()
    for subject, (admissions, discharges, deaths) in stays.items():
        for begun in admissions:
            asked, ends = begun + timedelta(hours=hours), sorted(discharges | deaths)
            if any(begun < time <= asked for time in (*ends, *admissions)):
                continue
            end = next((time for time in ends if time > asked), None)
            if end is None:
                unended.add(subject)
            else:
                found.add((subject, asked, any(asked < time <= end for time in deaths)))
    return found, unended


def test_aces_labels_equal_an_own_count(place: Place, request: pytest.FixtureRequest) -> None:
    (place.folder / "tasks").mkdir()
    (place.folder / "tasks" / "in_hospital_mortality.yaml").write_text(place.task, encoding="utf-8")
    shell(ACES, place.folder)
    files = sorted((place.folder / "tasks" / "in_hospital_mortality").glob("*.parquet"))
    assert [path.name for path in files] == [path.name for path in sorted((place.dataset / "data").glob("*.parquet"))]
    rows = pl.read_parquet(files).select("subject_id", "prediction_time", "boolean_value").rows()
    labels = [row for row in rows if row[1] is not None]
    if place.task == TASK:
        stays = stays_of_mimic(request.getfixturevalue("real_data") / "mimic-iv-demo-2.2")
        assert (len(rows), len(labels), sum(died for *_, died in labels)) == (245, 245, 10)
    else:
        stays = stays_of_release(place.events())
    assert len(labels) == len(set(labels)) > 20
    assert (set(labels), {subject for subject, time, _ in rows if time is None}) == labels_of(stays)
    assert set(labels) != labels_of(stays, hours=48)[0]


def count(events: pl.DataFrame, subjects: Iterable[int]) -> dict[str, tuple[int, int, int]]:
    """The numbers of events, subjects and values of each code, of some subjects."""
    asked, number, values, of = set(subjects), Counter[str](), Counter[str](), defaultdict(set)
    for subject, code, value in events.select("subject_id", "code", "numeric_value").iter_rows():
        if subject in asked:
            number[code] += 1
            values[code] += value is not None
            of[code].add(subject)
    return {code: (number[code], len(of[code]), values[code]) for code in number}


def test_meds_transforms_counts_and_filters_as_we_do(place: Place) -> None:
    (place.folder / "pipeline.yaml").write_text(place.pipeline, encoding="utf-8")
    shell(TRANSFORMS, place.folder)
    out, events = place.folder / "mimic-frequent", place.events()
    columns = ("code", "code/n_occurrences", "code/n_subjects", "values/n_occurrences", "description")
    transformed = pl.read_parquet(out / "metadata" / "codes.parquet").select(columns)
    expected = count(events, place.counted)
    assert {code: tuple(numbers) for code, *numbers, _ in transformed.iter_rows() if numbers[0]} == expected
    assert count(events, list(place.counted)[1:]) != expected
    descriptions = pl.read_parquet(place.dataset / "metadata" / "codes.parquet").select("code", "description")
    known = dict(descriptions.iter_rows())
    assert {code: text for code, *_, text in transformed.iter_rows()} == {
        code: known.get(code) for code in transformed["code"]
    }
    frequent = [code for code, (_, subjects, _) in expected.items() if subjects >= 11]
    assert 0 < len(frequent) < len(expected)
    for path in sorted((place.dataset / "data").glob("*.parquet")):
        kept = pl.read_parquet(out / "data" / path.name)
        assert kept.equals(pl.read_parquet(path).filter(pl.col("code").is_in(frequent)))
