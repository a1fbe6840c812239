"""The simulated hospital: a seed gives the same bytes, standard readers read them, faults and signal are present."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import polars as pl
import pydicom
import pytest
from numpy.typing import NDArray

from extractors.ct.index import index_ct
from extractors.items import VERDICTS
from extractors.simulate import SimulationSummary, simulate
from extractors.simulate.codes import CT_FINDINGS, MORTALITY_BY_CLASS, SLIDE_FINDINGS
from extractors.simulate.course import BLOCK, imaging_plan, simulate_subject
from extractors.simulate.ct import phantom
from extractors.simulate.faults import BAD_TIMES
from extractors.simulate.record import DAY
from extractors.simulate.slides import tissue
from extractors.wsi.index import index_slides
from tests.support.simulated import TIME, faults_of, not_the_very_next, signal_of, table, tree_hash
from warehouse.errors import TimeloomError

SUBJECTS = 40
IMAGES = ("ct", "wsi")
TABLES = ("patients", "encounters", "diagnoses", "procedures", "medications", "labs", "deaths")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    out = tmp_path_factory.mktemp("simulated") / "hospital"
    return out, simulate(out, subjects=SUBJECTS, seed=0, modalities=IMAGES)


def read_hu(folder: Path) -> NDArray[np.float64]:
    """(slices, rows, columns) in HU, sorted by position."""
    slices = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices])


def ct_feature(volume: NDArray[Any]) -> NDArray[np.float64]:
    """Mean HU of the middle tenth of the field."""
    middle, reach = volume.shape[1] // 2, max(2, volume.shape[1] // 20)
    box = volume[:, middle - reach : middle + reach, middle - reach : middle + reach]
    return np.array([box.mean()])


def slide_feature(image: NDArray[Any]) -> NDArray[np.float64]:
    """Mean colour of the pixels that are not white."""
    stained = image[image.min(axis=2) < 225]
    return np.asarray(stained.mean(axis=0))


def nearest(centres: NDArray[np.float64], feature: NDArray[np.float64]) -> int:
    return int(np.argmin(((centres - feature) ** 2).sum(axis=1)))


@pytest.mark.whole
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first, second, other_seed = (tmp_path / name for name in ("one", "deeper/two", "other"))
    simulate(first, subjects=25, seed=3)
    simulate(second, subjects=25, seed=3)
    simulate(other_seed, subjects=25, seed=4)
    assert tree_hash(first) == tree_hash(second) != tree_hash(other_seed)
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    again = simulate(first, subjects=25, seed=3)
    assert before == {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert again.truth == first / "truth"


@pytest.mark.whole
def test_a_subject_stays_the_same_when_the_hospital_grows(
    hospital: tuple[Path, SimulationSummary], tmp_path: Path
) -> None:
    grown = hospital[0]
    small = tmp_path / "small"
    simulate(small, subjects=25, seed=0, modalities=IMAGES)
    for name in TABLES:
        before = table(small, name)
        after = table(grown, name).filter(pl.col("patient_id") <= "P000025")
        changed = len(set(before.rows()) ^ set(after.rows()))
        # A spoilt row may differ in both exports; no other row may differ.
        planted = sum(f["count"] for root in (small, grown) for f in faults_of(root).values() if f["table"] == name)
        assert changed <= 2 * planted, name
    images = [*small.glob("ct/*/*/*"), *small.glob("slides/*.svs")]
    assert images
    for path in images:
        assert (grown / path.relative_to(small)).read_bytes() == path.read_bytes()


def test_arguments_and_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = [{"subjects": 19}, {"seed": -1}, {"imaging_share": 1.5}]
    for wrong in [*refused, {"modalities": ["pet"]}, {"modalities": []}]:
        with pytest.raises(TimeloomError):
            simulate(tmp_path / "never", **wrong)
    assert not (tmp_path / "never").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(TimeloomError, match="something else"):
        simulate(tmp_path / "full", subjects=20)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TimeloomError, match="is a file"):
        simulate(tmp_path / "file", subjects=20)
    (tmp_path / "empty").mkdir()
    simulate(tmp_path / "empty", subjects=20)
    with pytest.raises(TimeloomError, match="another seed"):
        simulate(tmp_path / "empty", subjects=20, seed=1)


@pytest.mark.whole
def test_a_kill_leaves_nothing_and_the_next_run_is_whole(tmp_path: Path) -> None:
    out, reference = tmp_path / "hospital", tmp_path / "reference"
    program = (
        f"from pathlib import Path\nfrom extractors.simulate import simulate\nsimulate(Path({str(out)!r}), subjects=25)"
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".hospital.part/ct/*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert any(tmp_path.glob(".hospital.part/ct/*")), "the kill came too late to show anything"
    simulate(out, subjects=25)
    simulate(reference, subjects=25)
    assert tree_hash(out) == tree_hash(reference)
    assert {p.name for p in tmp_path.iterdir()} == {"hospital", "reference"}


def test_counts_of_the_summary_are_those_of_the_files(hospital: tuple[Path, SimulationSummary]) -> None:
    root, summary = hospital
    assert summary.rows == {name: len(table(root, name)) for name in TABLES}
    said = signal_of(root)["image_kind"].value_counts()
    assert dict(said.iter_rows()) == {"ct": summary.items["ct"], "slide": summary.items["wsi"]}
    assert len(list(root.glob("ct/*/*"))) == summary.items["ct"] + 3
    assert len(list(root.glob("slides/*.svs"))) == summary.items["wsi"] + 2
    manifest = pl.read_csv(root / "slides/manifest.csv", infer_schema=False)
    assert set(manifest["path"]) == {path.name for path in root.glob("slides/*.svs")}
    assert summary.faults == {name: fault["count"] for name, fault in faults_of(root).items()}
    assert signal_of(root)["patient_id"].n_unique() == 6  # 15 % of 40


def test_tables_look_like_an_export(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    diagnoses, labs = table(root, "diagnoses"), table(root, "labs")
    assert set(diagnoses["code_system"]) == {"ICD10CM", "ICD9CM"}
    assert (diagnoses.filter(pl.col("code_system") == "ICD9CM")["recorded_date"] < "2015-10-01").all()
    assert table(root, "procedures")["code"].str.len_chars().eq(7).all()
    assert {"<0.1", ">100", "NEGATIVE"} <= set(labs["value"])
    assert labs["result_time"].null_count() and labs["unit"].null_count()
    assert labs["collected_time"].str.starts_with("2016-02-29").any()
    deaths = table(root, "deaths")
    assert deaths["death_time"].null_count() and deaths["death_time"].is_not_null().any()


def test_timelines_are_skewed() -> None:
    plan = imaging_plan(0, 500, 0.15)
    records = (simulate_subject(0, index, plan.get(index, frozenset())).rows() for index in range(1, 501))
    events = np.array([sum(map(len, rows.values())) + len(rows["encounters"]) - 1 for rows in records])
    assert 60 <= np.median(events) <= 120 and events.mean() > 1.4 * np.median(events)
    assert 5 <= (events > 600).sum() <= 60 and events.min() >= 5


def test_pydicom_reads_every_good_series(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    suffixes = set()
    for row in signal_of(root).filter(pl.col("image_kind") == "ct").iter_rows(named=True):
        files = [pydicom.dcmread(path) for path in (root / row["image_id"]).iterdir()]
        heights = sorted(float(d.ImagePositionPatient[2]) for d in files)
        assert 8 <= len(files) <= 14 and set(np.diff(heights)) == {5.0}
        assert {d.PatientID for d in files} == {row["patient_id"]}
        assert len({d.SeriesInstanceUID for d in files}) == 1 and len({d.SOPInstanceUID for d in files}) == len(files)
        first = min(d.AcquisitionDate + d.AcquisitionTime for d in files)
        assert first == row["image_time"].translate(str.maketrans("", "", "-: "))
        hu = read_hu(root / row["image_id"])
        assert hu[:, 0, 0].max() == -1000 and hu.max() > 600
        suffixes |= {path.suffix for path in (root / row["image_id"]).iterdir()}
    assert suffixes == {"", ".dcm"}


def test_openslide_opens_every_good_slide(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    for image_id in signal_of(root).filter(pl.col("image_kind") == "slide")["image_id"]:
        with openslide.OpenSlide(root / image_id) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert (slide.properties["openslide.mpp-x"], slide.properties["aperio.AppMag"]) in {
                ("0.5", "20"),
                ("0.25", "40"),
            }
            assert slide.level_count == 3 and slide.level_downsamples == (1.0, 2.0, 4.0)
            assert not slide.associated_images
            pixels = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]).convert("RGB"))
            assert 0.3 < (pixels.min(axis=2) < 225).mean() < 0.75


def test_image_faults_are_in_the_files(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    faults = faults_of(root)
    path = {name: root / fault["where"][0] for name, fault in faults.items() if fault["expect"] == "verdict"}
    assert len(path) == 5 and {faults[name]["reason"] for name in path} <= set(VERDICTS)

    scout = [pydicom.dcmread(p) for p in path["ct_localizer"].iterdir()]
    assert all("LOCALIZER" in d.ImageType for d in scout)

    heights = sorted(float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in path["ct_missing_slice"].iterdir())
    assert sorted(np.diff(heights))[-2:] == [5.0, 10.0]

    with pytest.raises(Exception, match=r"(?i)length|bytes|data"):
        _ = pydicom.dcmread(path["ct_truncated_file"]).pixel_array
    whole = [p for p in path["ct_truncated_file"].parent.iterdir() if p != path["ct_truncated_file"]]
    assert len([pydicom.dcmread(p).pixel_array for p in whole]) == 9

    with openslide.OpenSlide(path["slide_without_mpp"]) as slide:
        assert "openslide.mpp-x" not in slide.properties and slide.properties["openslide.vendor"] == "aperio"
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(path["slide_corrupt"])


def test_the_extractors_give_every_image_its_expected_verdict(hospital: tuple[Path, SimulationSummary]) -> None:
    root, summary = hospital
    manifest = pl.read_csv(root / "slides/manifest.csv", infer_schema=False).select(
        "path",
        pl.col("patient_id").alias("raw_subject"),
        pl.col("collection_time").str.to_datetime(TIME).alias("time"),
        pl.lit(None, pl.String).alias("available_time"),
        "mpp",
    )
    items = {"ct": index_ct(root / "ct"), "slides": index_slides(root / "slides", manifest)}
    verdicts: dict[str, str] = {}
    times: dict[str, str] = {}
    for folder, found in items.items():
        for item in found:
            image = Path(folder) / (Path(item.paths[0]).parent if folder == "ct" else item.paths[0])
            verdicts[image.as_posix()] = item.verdict
            times[image.as_posix()] = str(item.time)
    expected = dict.fromkeys(signal_of(root)["image_id"], "ok")
    for fault in faults_of(root).values():
        if fault["expect"] == "verdict":
            place = Path(fault["where"][0])
            expected[(place.parent if place.suffix == ".dcm" else place).as_posix()] = fault["reason"]
    assert verdicts == expected and len(expected) == sum(summary.items.values()) + 5
    assert {image: times[image] for image in signal_of(root)["image_id"]} == dict(
        signal_of(root).select("image_id", "image_time").iter_rows()
    )


def test_table_faults_are_in_the_files(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    faults = faults_of(root)
    labs, medications, encounters = table(root, "labs"), table(root, "medications"), table(root, "encounters")
    parsed = labs.with_columns(pl.col("collected_time").str.to_datetime(TIME, strict=False).alias("parsed"))
    bad = parsed.filter(pl.col("parsed").is_null() & pl.col("collected_time").is_not_null())
    assert set(bad["lab_id"]) == set(faults["labs_unparsable_time"]["where"]) and len(bad) >= 2
    assert set(bad["collected_time"]) <= set(BAD_TIMES)
    assert len(bad) <= max(2, len(labs) // 1000)
    for name, frame in (("labs", labs), ("medications", medications)):
        assert len(frame) - len(frame.unique()) == faults[f"{name}_duplicate_row"]["count"] >= 2
    assert not table(root, "diagnoses").is_duplicated().any()

    died = table(root, "deaths").select("patient_id", "death_date")
    late = encounters.join(died, on="patient_id").filter(pl.col("start_time").str.head(10) > pl.col("death_date"))
    assert late["encounter_id"].to_list() == faults["death_before_admission"]["where"]
    endless = encounters.filter(pl.col("end_time").is_null())
    assert endless["encounter_id"].to_list() == faults["encounter_without_end"]["where"]
    orphans = table(root, "diagnoses").join(encounters, on="encounter_id", how="anti")
    assert orphans["encounter_id"].to_list() == faults["diagnosis_without_encounter"]["where"]


def test_pixels_tell_the_class_and_the_class_chose_the_finding(hospital: tuple[Path, SimulationSummary]) -> None:
    root, _ = hospital
    rng = np.random.default_rng(12)
    ct = np.array([np.mean([ct_feature(phantom(rng, c, 64, 8)) for _ in range(5)], axis=0) for c in range(4)])
    slide = np.array([slide_feature(tissue(rng, c, (512, 512), 0.5)) for c in range(4)])
    labs = table(root, "labs")
    right, shuffled = [], []
    for row in signal_of(root).iter_rows(named=True):
        if row["image_kind"] == "ct":
            guess, findings = nearest(ct, ct_feature(read_hu(root / row["image_id"]))), CT_FINDINGS
        else:
            with openslide.OpenSlide(root / row["image_id"]) as opened:
                level = np.asarray(opened.read_region((0, 0), 2, opened.level_dimensions[2]).convert("RGB"))
            guess, findings = nearest(slide, slide_feature(level)), SLIDE_FINDINGS
        # The next laboratory row of this patient after the image, found without signal.csv.
        after = labs.filter(
            (pl.col("patient_id") == row["patient_id"]) & (pl.col("collected_time") > row["image_time"])
        )
        code = after.filter(pl.col("collected_time").str.to_datetime(TIME, strict=False).is_not_null()).sort(
            "collected_time"
        )["loinc"][0]
        right.append(findings[guess] == code)
        shuffled.append(findings[(guess + 1) % 4] == code)
    assert len(right) >= 12 and np.mean(right) > 0.9 and np.mean(shuffled) < 0.1


def test_the_finding_is_the_very_next_event_by_time_and_by_availability(
    hospital: tuple[Path, SimulationSummary],
) -> None:
    root, _ = hospital
    assert not not_the_very_next(root, signal_of(root).iter_rows(named=True))


def test_the_class_of_the_last_image_moves_one_year_mortality() -> None:
    counts = np.zeros((4, 2))
    for index in range(1, 1201):
        record = simulate_subject(5, index, frozenset({"ct"}))
        last = max(record.images, key=lambda image: image.time)
        died = record.death is not None and record.death - last.time <= 365 * DAY
        counts[last.image_class, int(died)] += 1
        if not died:
            assert max(visit.end for visit in record.visits) > last.time + 365 * DAY
    assert np.abs(counts[:, 1] / counts.sum(axis=1) - MORTALITY_BY_CLASS).max() < 0.1
    assert counts.sum(axis=1).min() > 200


def test_imaging_shares_hold_and_growth_adds_blocks_only() -> None:
    plan = imaging_plan(0, 4000, 0.15)
    assert len(plan) == 600
    assert abs(np.mean(["ct" in kinds for kinds in plan.values()]) - 0.85) < 0.04
    assert abs(np.mean(["slide" in kinds for kinds in plan.values()]) - 0.60) < 0.05
    assert imaging_plan(0, 100, 0.15) == {i: kinds for i, kinds in plan.items() if i <= 100}
    assert len(imaging_plan(0, BLOCK, 1.0)) == BLOCK and not imaging_plan(0, 100, 0.0)
