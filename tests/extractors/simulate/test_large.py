"""The large simulated hospital: its bytes, its lengths, and that another night changes what it says and no more."""

import gzip
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from extractors.simulate.codes import CANCERS
from extractors.simulate.large import hospital, simulate_large
from extractors.simulate.large.course import RANGE
from extractors.simulate.large.hospital import Arguments, draw_range
from extractors.simulate.large.images import IMAGES
from extractors.simulate.record import TABLES
from pipelines.config import load_config
from warehouse.errors import TimeloomError

SUBJECTS = 1_500
Rows = dict[str, list[list[str]]]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("large") / "first")


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("large") / "next", night="next")


def made(out: Path, subjects: int = SUBJECTS, **arguments: object) -> Path:
    simulate_large(out, subjects=subjects, workers=1, **arguments)  # type: ignore[arg-type]
    return out


def table(root: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(root / "tables" / f"{name}.csv", infer_schema=False)


def by_patient(root: Path) -> dict[str, dict[str, list[str]]]:
    """Lines by table and patient, in their order."""
    found: dict[str, dict[str, list[str]]] = {name: defaultdict(list) for name in TABLES}
    for name, columns in TABLES.items():
        place = list(columns).index("patient_id")
        for line in (root / "tables" / f"{name}.csv").read_text().splitlines()[1:]:
            found[name][line.split(",")[place]].append(line)
    return found


def bytes_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != "SIMULATED.json")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def seconds(text: pl.Series) -> pl.Series:
    return text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=True).dt.epoch("s")


def test_a_patient_is_the_same_in_a_hospital_of_any_size(first: Path, tmp_path: Path) -> None:
    small = made(tmp_path / "small", subjects=30)
    assert len(table(small, "patients")) == 30
    for name in TABLES:
        fewer = (small / "tables" / f"{name}.csv").read_bytes()
        more = (first / "tables" / f"{name}.csv").read_bytes()
        assert more.startswith(fewer), name
        assert len(more) > len(fewer)
    names = set(pl.read_csv(small / "ct.csv")["name"])
    assert names < set(pl.read_csv(first / "ct.csv")["name"])
    other = made(tmp_path / "other", subjects=30, seed=1)
    assert table(other, "labs")["value"].head(500).to_list() != table(small, "labs")["value"].head(500).to_list()


# In `make test` alone: worker processes are started.
@pytest.mark.whole
def test_two_processes_write_the_bytes_of_one(first: Path, tmp_path: Path) -> None:
    simulate_large(tmp_path / "two", subjects=SUBJECTS, workers=2)
    assert bytes_of(tmp_path / "two") == bytes_of(first)


def test_compressed_tables_hold_the_same(tmp_path: Path) -> None:
    plain, packed = (made(tmp_path / name, subjects=40, compressed=name == "packed") for name in ("plain", "packed"))
    for name in TABLES:
        text = gzip.decompress((packed / "tables" / f"{name}.csv.gz").read_bytes())
        assert text == (plain / "tables" / f"{name}.csv").read_bytes()


def test_lengths_are_those_of_the_cohort() -> None:
    """Three quarters of the figures of Table A1: 677 on average, 248 in the middle, a quarter beyond 703."""
    events: list[np.ndarray] = []
    imaging: list[np.ndarray] = []
    images = 0
    for index in range(8):
        rows, _, drawn = draw_range(Arguments(0, 10**6, 0.15, False, "first"), index)
        counts = 3.0 * np.ones(RANGE) + (rows.subjects.death >= 0)
        for name, weight in (("encounters", 3), ("diagnoses", 1), ("procedures", 1), ("medications", 1), ("labs", 1)):
            counts += weight * np.bincount(rows.tables[name]["subject"], minlength=RANGE)
        events.append(counts)
        imaging.append(rows.subjects.imaging)
        images += len(drawn["ct"].names)
    lengths, with_images = np.concatenate(events), np.concatenate(imaging)
    assert lengths.mean() == pytest.approx(500, rel=0.1)
    for share, tokens in ((0.5, 248), (0.75, 703)):
        assert np.quantile(lengths, share) == pytest.approx(0.74 * tokens, rel=0.15), share
    assert 40 < np.quantile(lengths, 0.25) < 80
    assert lengths.max() > 15_000, "the tail is heavy"
    assert with_images.mean() == pytest.approx(0.15, abs=0.015)
    assert np.median(lengths[with_images]) > 4 * np.median(lengths), "imaging patients have long records"
    assert images / with_images.sum() == pytest.approx(IMAGES["ct"].mean, rel=0.1)


def test_the_record_is_one_that_could_be(first: Path) -> None:
    patients, encounters, labs, deaths = (table(first, name) for name in ("patients", "encounters", "labs", "deaths"))
    assert patients["patient_id"].is_unique().all() and len(patients) == SUBJECTS
    assert encounters["encounter_id"].is_unique().all() and labs["lab_id"].is_unique().all()
    encounters = encounters.with_columns(start=seconds(encounters["start_time"]), end=seconds(encounters["end_time"]))
    assert (encounters["start"] < encounters["end"]).all()
    for name in ("diagnoses", "procedures", "medications", "labs"):
        joined = table(first, name).join(encounters, ["patient_id", "encounter_id"], "left")
        assert joined["start"].null_count() == 0, f"{name} has rows of no encounter"
    during = labs.join(encounters, ["patient_id", "encounter_id"])
    collected = seconds(during["collected_time"])
    assert ((collected >= during["start"]) & (collected <= during["end"] + 86_400)).all()
    result = during.filter(pl.col("result_time").is_not_null())
    assert (seconds(result["result_time"]) > seconds(result["collected_time"])).all()
    assert 0.005 < 1 - len(result) / len(during) < 0.05, "some result times are lost"
    end = encounters.group_by("patient_id").agg(pl.col("end").max())
    died = deaths.filter(pl.col("death_time").is_not_null()).join(end, "patient_id")
    assert (seconds(died["death_time"]) >= died["end"]).all()
    assert 0.05 < len(deaths) / SUBJECTS < 0.25
    codes = set(table(first, "diagnoses")["code"])
    assert {cancer.diagnoses[0] for cancer in CANCERS} <= codes
    assert {"D70.1", "N17.9", "401.9"} <= codes
    assert len(codes) > 1_000, "most codes are rare"
    visits = encounters.group_by("patient_id").len()["len"]
    assert visits.min() == 1


def test_images_are_ready_vectors_of_patients_with_records(first: Path) -> None:
    for kind in IMAGES.values():
        listed = pl.read_csv(first / f"{kind.folder}.csv")
        vectors = pq.read_table(first / "vectors" / kind.folder)
        assert vectors["item"].to_pylist() == listed["name"].to_list()
        assert vectors["features"].type.list_size == kind.width
        assert np.isfinite(vectors["features"].combine_chunks().flatten().to_numpy()).all()
        assert set(listed["patient_id"]) <= set(table(first, "patients")["patient_id"])
        assert listed.select(pl.struct("patient_id", "time").is_unique().mean()).item() > 0.98
    config = load_config(first / "large.yaml")
    assert [block.all_encoders[0].imported.width for block in config.modalities.values()] == [1024, 1536]  # type: ignore[union-attr]
    bare = made(first.parent / "bare", subjects=20, imaging_share=0.0)
    assert not (bare / "ct.csv").exists()


def test_the_next_night_changes_what_it_says_and_nothing_else(first: Path, following: Path) -> None:
    changes = dict(pl.read_csv(following / "truth" / "changed.csv").iter_rows())
    assert len(changes) == pytest.approx(SUBJECTS / 100, abs=5)
    assert set(changes.values()) >= {"visit", "corrected"}
    before, after = by_patient(first), by_patient(following)
    everyone = {patient for of_table in before.values() for patient in of_table}
    differing = {p for p in everyone for name in TABLES if before[name].get(p) != after[name].get(p)}
    assert differing == set(changes)
    for name in TABLES:
        kept = [(line for p, line in flat(root[name]) if p not in changes) for root in (before, after)]
        assert list(kept[0]) == list(kept[1]), "what did not change stands where it stood"
    for patient, change in changes.items():
        old, new = (of_patient(root, patient) for root in (before, after))
        gone, come = old - new, new - old
        if change == "visit":
            assert not gone
            assert {line[0] for line in come} >= {"encounters", "diagnoses", "labs"}
            assert len({line[1].split(",")[0] for line in come if line[0] == "encounters"}) == 1
        elif change == "corrected":
            ((table_name, was),), ((also, now),) = list(gone.elements()), list(come.elements())
            assert table_name == also == "labs"
            assert [a == b for a, b in zip(was.split(","), now.split(","), strict=True)].count(False) == 1
        elif change == "withdrawn_row":
            assert not come
            assert [line[0] for line in gone.elements()] == ["labs"]
        else:
            assert change == "withdrawn"
            assert not new


def flat(of_table: dict[str, list[str]]) -> Sequence[tuple[str, str]]:
    return [(patient, line) for patient, lines in of_table.items() for line in lines]


def of_patient(root: dict[str, dict[str, list[str]]], patient: str) -> Counter[tuple[str, str]]:
    return Counter((name, line) for name in TABLES for line in root[name].get(patient, []))


def test_each_kind_of_change_comes_in_its_share() -> None:
    found: Counter[str] = Counter()
    for index in range(4):
        found.update(change for _, change in draw_range(Arguments(3, 10**6, 0.15, False, "next"), index)[1])
    assert sum(found.values()) == 40, "1 % of 4,000"
    assert found["visit"] >= 16
    assert found["corrected"] >= 12
    assert found["withdrawn_row"] + found["withdrawn"] == 4
    assert found["withdrawn"] >= 1


def test_one_patient_has_a_visit_more(first: Path, tmp_path: Path) -> None:
    before, after = by_patient(first), by_patient(made(tmp_path / "one", night="one"))
    differing = {p for name in TABLES for p in after[name] if before[name].get(p) != after[name][p]}
    assert differing == {f"P{SUBJECTS // 2 + 1:07d}"}
    assert pl.read_csv(tmp_path / "one" / "truth" / "changed.csv")["change"].to_list() == ["visit"]
    (patient,) = differing
    assert not of_patient(before, patient) - of_patient(after, patient)


def test_another_order_of_the_same_rows(first: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "reordered", night="reordered")
    for name in TABLES:
        lines = [(root / "tables" / f"{name}.csv").read_text().splitlines() for root in (first, other)]
        assert lines[0][0] == lines[1][0]
        assert lines[0] != lines[1]
        assert sorted(lines[0]) == sorted(lines[1])


def test_a_second_call_writes_nothing_and_others_are_refused(tmp_path: Path) -> None:
    root = made(tmp_path / "h", subjects=20)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    made(root, subjects=20)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(TimeloomError, match="of other arguments"):
        made(root, subjects=21)
    with pytest.raises(TimeloomError, match="nobody simulates the night last"):
        made(tmp_path / "x", subjects=20, night="last")
    with pytest.raises(TimeloomError, match="cannot have 19 subjects"):
        made(tmp_path / "x", subjects=19)
    assert not (tmp_path / "x").exists()


def test_times_are_written_as_a_clock_shows_them(first: Path) -> None:
    text = table(first, "labs")["collected_time"][0]
    assert datetime.strptime(text, "%Y-%m-%d %H:%M:%S").strftime("%Y-%m-%d %H:%M:%S") == text


def test_a_process_that_dies_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(hospital, "_ranges", died)
    with pytest.raises(TimeloomError, match="a process that draws the simulated hospital died"):
        made(tmp_path / "h", subjects=20)
    assert list(tmp_path.iterdir()) == []
