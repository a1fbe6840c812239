"""ECGs, x-rays and notes of the simulated hospital: what plain readers see in them, and what becomes of them."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import polars as pl
import pydicom
import pytest
import wfdb
import yaml
from numpy.typing import NDArray
from PIL import Image

from extractors.crosswalk import read_crosswalk
from extractors.items import FoundItem
from extractors.modalities import EXTRACTORS
from extractors.simulate import SimulationSummary, simulate
from extractors.simulate.codes import CT_FINDINGS
from extractors.simulate.course import imaging_plan, simulate_subject
from extractors.simulate.ct import LESION_HU
from extractors.simulate.ecg import ST_MV
from extractors.simulate.faults import BAD_TIMES
from extractors.simulate.films import EFFUSION
from extractors.simulate.notes import SIGNS
from extractors.simulate.studies import KINDS, studies_of, studies_plan
from flows.commands.demo import config_text
from pipelines.config import RunConfig, parse_config
from tests.support.images.indexing import index_images
from tests.support.simulated import TIME, faults_of, not_the_very_next, signal_of, table, tree_hash
from warehouse.modalities import INDEXED

Hospital = tuple[Path, SimulationSummary]
FOLDERS = {"ecg": "ecg/files", "cxr": "cxr/files"}
STUDIES = (*FOLDERS, "note", "nifti")
MODALITY = {"nifti": "ct"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    out = tmp_path_factory.mktemp("studies") / "hospital"
    return out, simulate(out, subjects=100, seed=0, modalities=STUDIES)


@pytest.fixture(scope="module")
def config(hospital: Hospital) -> RunConfig:
    """The demo's, beside the hospital."""
    plain = yaml.safe_load(config_text(STUDIES))
    return parse_config(plain, hospital[0].parent, "demo")


def lead(header: Path, name: str) -> tuple[NDArray[np.float64], float]:
    """A lead in millivolts by its name, and its rate, as wfdb reads them."""
    record = wfdb.rdrecord(str(header.with_suffix("")))
    return record.p_signal[:, record.sig_name.index(name)], record.fs


def st_level(header: Path) -> float:
    """Median level of V3 from 80 to 110 ms after each R wave, against 80 to 60 ms before it."""
    second, rate = lead(header, "II")
    third, _ = lead(header, "V3")
    peaks = np.flatnonzero(second > 0.6 * second.max())
    beats = [group[np.argmax(second[group])] for group in np.split(peaks, np.flatnonzero(np.diff(peaks) > 1) + 1)]
    inside = [beat for beat in beats if beat > 0.1 * rate and beat + 0.12 * rate < len(third)]
    levels = [
        third[int(b + 0.08 * rate) : int(b + 0.11 * rate)].mean()
        - third[int(b - 0.08 * rate) : int(b - 0.06 * rate)].mean()
        for b in inside
    ]
    return float(np.median(levels))


def film(path: Path) -> NDArray[np.float64]:
    """A film from 0, black, to 1."""
    if path.suffix == ".jpg":
        with Image.open(path) as image:
            return np.asarray(image, float) / 255
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array / 4095
    return 1 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def white_share(pixels: NDArray[np.float64]) -> float:
    """How much of the middle of the right lung is white, of what lies between its top and its base."""
    side = len(pixels)
    lung = pixels[int(0.16 * side) : int(0.76 * side), int(0.26 * side) : int(0.30 * side)]
    return float((lung.mean(axis=1) > 0.55).mean())


def test_a_class_is_seen_by_plain_readers_and_chose_the_finding(hospital: Hospital) -> None:
    root, _ = hospital
    labs = table(root, "labs").filter(~pl.col("collected_time").is_in(BAD_TIMES))
    summaries = pl.read_csv(root / "notes" / "discharge.csv", infer_schema=False)
    texts = dict(summaries.select("note_id", "text").iter_rows())

    def of_ecg(name: str) -> int:
        return int(np.argmin(np.abs(np.array(ST_MV) - st_level(root / name))))

    def of_film(name: str) -> int:
        return int(np.argmin(np.abs(np.array(EFFUSION) - white_share(film(root / name)))))

    def of_note(name: str) -> int:
        return int(np.argmax([sum(texts[name].count(sign) for sign in signs) for signs in SIGNS]))

    def of_volume(name: str) -> int:
        image: Any = nibabel.as_closest_canonical(nibabel.load(root / name))
        units = image.get_fdata()  # towards right, front and head
        inside = slice(units.shape[0] // 2 - 3, units.shape[0] // 2 + 3)
        return int(np.argmin(np.abs(np.array(LESION_HU) - units[inside, inside].mean())))

    measures = {"ecg": of_ecg, "cxr": of_film, "note": of_note, "nifti": of_volume}
    for kind, seen_class in measures.items():
        signal = signal_of(root, kind)
        assert len(set(signal["image_class"])) > 2
        for row in signal.iter_rows(named=True):
            seen = seen_class(row["image_id"])
            assert seen == row["image_class"], (kind, row["image_id"])
            after = labs.filter(
                (pl.col("patient_id") == row["patient_id"]) & (pl.col("collected_time") > row["image_time"])
            ).sort("collected_time")
            assert after["loinc"][0] == KINDS[kind].findings[seen] == row["finding_code"]


def test_the_finding_is_the_very_next_event_and_its_code_stands_nowhere_else(hospital: Hospital) -> None:
    root, _ = hospital
    signal = signal_of(root)
    assert not not_the_very_next(root, signal.iter_rows(named=True))
    codes = [code for kind in STUDIES for code in KINDS[kind].findings]
    assert len(set(codes)) == len(codes)
    of_their_own = [code for code in codes if code not in CT_FINDINGS]  # CT in DICOM has the same as in NIfTI
    assert table(root, "labs")["loinc"].is_in(of_their_own).sum() == len(signal_of(root, "ecg", "cxr", "note"))


def test_headers_and_tables_give_subject_and_time(hospital: Hospital) -> None:
    root, summary = hospital
    records = pl.read_csv(root / "ecg" / "record_list.csv", infer_schema=False)
    named = {row["path"]: row for row in records.iter_rows(named=True)}
    for row in signal_of(root, "ecg").iter_rows(named=True):
        header = root / row["image_id"]
        listed = named[header.with_suffix("").relative_to(root / "ecg" / "files").as_posix()]
        assert (listed["patient_id"], listed["ecg_time"]) == (row["patient_id"], row["image_time"])
        assert str(wfdb.rdheader(str(header.with_suffix(""))).base_datetime) == row["image_time"]
    metadata = {
        row["image"]: row
        for row in pl.read_csv(root / "cxr" / "metadata.csv", infer_schema=False).iter_rows(named=True)
    }
    suffixes = set()
    for row in signal_of(root, "cxr").iter_rows(named=True):
        path = root / row["image_id"]
        suffixes.add(path.suffix)
        if path.suffix == ".dcm":
            header = pydicom.dcmread(path)
            taken = header.AcquisitionDate + header.AcquisitionTime
            assert taken == row["image_time"].translate(str.maketrans("", "", "-: "))
            assert header.PatientID == row["patient_id"]
        else:
            listed = metadata[path.relative_to(root / "cxr" / "files").as_posix()]
            assert (listed["patient_id"], listed["study_time"]) == (row["patient_id"], row["image_time"])
    assert suffixes == {".dcm", ".jpg"}
    assert dict(signal_of(root)["image_kind"].value_counts().iter_rows()) == summary.items


def named(item: FoundItem) -> str:
    """An item as the truth calls it."""
    if item.modality == "note":
        return item.names["note_id"]
    if item.modality == "ct":
        return f"ct/{item.names['path']}"
    # A record that is not there is called as the table calls it.
    ending = ".hea" if item.modality == "ecg" and not item.paths[0].endswith(".hea") else ""
    return f"{FOLDERS[item.modality]}/{item.paths[0]}{ending}"


def expected_of(root: Path, modality: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """By item, its verdict and what its geometry says, as the truth has them."""
    expected: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("ok", {}) for name in signal_of(root, modality)["image_id"]
    }
    for name, fault in faults_of(root).items():
        if name.startswith(f"{modality}_"):
            expected |= dict.fromkeys(fault["where"], (fault["reason"], fault["geometry"]))
    if modality == "note":
        reports = pl.read_csv(root / "notes" / "radiology.csv", infer_schema=False)
        expected |= dict.fromkeys(reports["note_id"], ("ok", {}))
    return expected


@pytest.mark.parametrize("kind", STUDIES)
def test_each_item_has_its_expected_verdict_under_the_demos_configuration(
    hospital: Hospital, config: RunConfig, kind: str, tmp_path: Path
) -> None:
    root, _ = hospital
    modality = MODALITY.get(kind, kind)
    settings = config.modalities[modality]
    links = read_crosswalk(settings.crosswalk) if settings.crosswalk else None
    named_paths = set() if links is None else set(links["match"])
    times = dict(signal_of(root, kind).select("image_id", "image_time").iter_rows())
    expected = expected_of(root, kind)
    assert len(expected) >= len(times) + 6
    found = {}
    for item in EXTRACTORS[modality].index_items(settings, links, workers=1):
        name = named(item)
        # That a table does not name a file, and that a file is away, is for the run to say, below.
        tied = item.raw_subject or item.names.get("path") in named_paths
        verdict = item.verdict if tied or item.verdict != "ok" else "failed_no_subject"
        found[name] = (verdict, {key: item.geometry.get(key) for key in expected.get(name, ("", {}))[1]})
        time = str(item.available_time or item.time)
        assert time == times.get(name, time) or kind == "nifti"
    away = {name for name, (verdict, _) in expected.items() if verdict == "failed_missing_file" and kind == "nifti"}
    assert found == {name: what for name, what in expected.items() if name not in away}
    plain = yaml.safe_load(config_text(STUDIES))["modalities"][modality]
    for place in [plain, plain.get("crosswalk"), plain.get("table")]:
        for key in {"path", "file"} & set(place or ()):
            place[key] = str(root.parent / place[key])
    del plain["encoder"]
    items, _ = index_images(tmp_path, modality, plain, deid={"mode": "limited", "dates": "keep"})
    assert Counter(items["verdict"]) == Counter(verdict for verdict, _ in expected.values())
    known = items.filter(pl.col("verdict") == "ok").select(pl.coalesce("available_time", "time").dt.to_string(TIME))
    assert set(times.values()) <= set(known.to_series())


def test_notes_are_known_when_they_are_stored_and_a_long_one_is_cut(hospital: Hospital, config: RunConfig) -> None:
    root, _ = hospital
    items = {named(item): item for item in EXTRACTORS["note"].index_items(config.modalities["note"], None, workers=1)}
    reports = pl.read_csv(root / "notes" / "radiology.csv", infer_schema=False)
    assert len(reports) == signal_of(root, "cxr").height
    for note, charted, stored in reports.select("note_id", "charted_time", "stored_time").iter_rows():
        assert (str(items[note].time), str(items[note].available_time)) == (charted, stored) and charted < stored
    where = {name: fault["where"][0] for name, fault in faults_of(root).items() if name.startswith("note_")}
    unknown = items[where["note_without_stored_time"]]
    assert unknown.time_precision == "day" and unknown.available_time is None
    assert items[where["note_long"]].geometry["tokens_cut"] > 0
    assert items[where["note_copied_forward"]].geometry["copied_from"] == where["note_copied_from"]


def test_the_page_lists_every_planted_fault(hospital: Hospital) -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulated-hospital.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    listed = {name: cells[3] for cells in rows if len(cells) == 5 for name in re.findall(r"`(\w+)`", cells[1])}
    for name, fault in faults_of(hospital[0]).items():
        said = listed.get(name) or listed[f"_{name.rpartition('_')[2]}"]
        assert fault["expect"] != "verdict" or f"`{fault['reason']}`" in said, name


def test_shares_and_overlap() -> None:
    plan = studies_plan(0, 4000, 0.15)
    of_kind = {name: {index for index, kinds in plan.items() if name in kinds} for name in KINDS}
    assert {name: len(found) for name, found in of_kind.items()} == {"ecg": 600, "cxr": 600, "note": 600, "nifti": 200}
    both = {index for index, kinds in imaging_plan(0, 4000, 0.15).items() if len(kinds) == 2}
    everything = both & of_kind["ecg"] & of_kind["cxr"] & of_kind["note"]
    assert len(everything) >= 200 and not of_kind["ecg"] <= of_kind["cxr"]
    assert {index: kinds for index, kinds in plan.items() if index <= 90} == studies_plan(0, 90, 0.15)
    assert studies_plan(0, 100, 0.0) == {}


def test_most_of_those_who_are_planned_have_a_free_day() -> None:
    plan, images = studies_plan(0, 400, 0.15), imaging_plan(0, 400, 0.15)
    planned = placed = 0
    for index, kinds in plan.items():
        found = studies_of(0, simulate_subject(0, index, images.get(index, frozenset())), kinds)
        planned += len(kinds)
        placed += len({study.kind for study in found})
    assert placed >= 0.97 * planned


def test_a_kind_is_the_same_whatever_else_is_asked_for_and_however_many_subjects(
    hospital: Hospital, tmp_path: Path
) -> None:
    root, _ = hospital
    simulate(tmp_path / "alone", subjects=100, seed=0, modalities=["ecg"])
    assert tree_hash(tmp_path / "alone" / "ecg") == tree_hash(root / "ecg")
    simulate(tmp_path / "small", subjects=20, seed=0, modalities=STUDIES)
    for folder in FOLDERS.values():
        before = sorted(path for path in (tmp_path / "small" / folder).rglob("*") if path.is_file())
        assert len(before) > 10
        for path in before:
            assert (root / path.relative_to(tmp_path / "small")).read_bytes() == path.read_bytes()


@pytest.mark.whole
def test_tables_and_images_are_the_same_with_and_without_studies(tmp_path: Path) -> None:
    # In `make test` alone: CT and slides are written twice.
    with_all, without = tmp_path / "all", tmp_path / "images"
    simulate(with_all, subjects=20, seed=5)
    simulate(without, subjects=20, seed=5, modalities=["ct", "wsi"])
    for path in sorted(path for folder in ("ct", "slides") for path in (without / folder).rglob("*")):
        assert path.is_dir() or (with_all / path.relative_to(without)).read_bytes() == path.read_bytes()
    for path in sorted((without / "tables").iterdir()):
        assert (with_all / "tables" / path.name).read_bytes().startswith(path.read_bytes())
    added = table(with_all, "labs").height - table(without, "labs").height
    assert added == signal_of(with_all).height - signal_of(without).height > 0


def test_the_demos_configuration_has_the_blocks_that_are_asked_for() -> None:
    assert set(yaml.safe_load(config_text(INDEXED))["modalities"]) == set(INDEXED)
    chosen = yaml.safe_load(config_text(["ecg", "ct"]))
    assert set(chosen["modalities"]) == {"ecg", "ct"} and chosen["deid"] == {"mode": "synthetic"}
