"""A tree of ECGs: what is found, a table of records, changes after the index."""

import csv
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from extractors.crosswalk import CrosswalkConfig, read_crosswalk
from extractors.ecg.read import read_recording
from extractors.ecg.settings import ECG
from extractors.items import VerdictError
from pipelines.config import parse_config
from tests.support.ecg import (
    eight,
    group,
    heart,
    indexed,
    microvolts,
    muse_waveform,
    only,
    units,
    write_dicom,
    write_muse,
    write_record,
)
from tests.support.images.indexing import index_images
from warehouse.errors import TimeloomError


def test_a_tree_of_every_kind_with_other_files_beside(tmp_path: Path) -> None:
    write_record(tmp_path / "a", leads=heart(seed=1))
    write_dicom(tmp_path / "b" / "IM1", [group(microvolts(heart(seed=2)))])
    write_muse(tmp_path / "c.XML", [muse_waveform(eight(heart(seed=3)))])
    (tmp_path / "orphan.dat").write_bytes(b"12345")
    (tmp_path / "empty").touch()
    items = indexed(tmp_path)
    assert Counter(item.verdict for item in items) == {"ok": 3, "refused_not_ecg": 1}
    assert next(item.units_expected for item in items if item.verdict == "refused_not_ecg") == 2
    assert [item.geometry.get("form") for item in items if item.verdict == "ok"] == ["wfdb", "dicom", "muse"]


def test_the_same_signal_is_the_same_content_in_every_form_and_place(tmp_path: Path) -> None:
    leads = heart(seed=5)
    write_record(tmp_path / "a", "x", leads)
    write_record(tmp_path / "b", "y", leads, fmt="24")
    first, second = indexed(tmp_path)
    assert first.content == second.content and first.identity == second.identity
    other = only(tmp_path / "a", rate=250)
    assert other.content == first.content and other.identity != first.identity


def record_list(path: Path, rows: list[tuple[str, str, str]]) -> CrosswalkConfig:
    """A table as MIMIC-IV-ECG's."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject_id", "study_id", "file_name", "ecg_time", "path"])
        writer.writerows([subject, "4", Path(place).name, time, place] for subject, time, place in rows)
    return CrosswalkConfig(file=path, columns={"match": "path", "time": "ecg_time"})


def test_a_record_list_names_records_without_their_ending(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    place = "files/p1000/p10000032/s40689238/40689238"
    write_record(tree / Path(place).parent, "40689238", heart(seed=1))
    write_record(tree / "files", "77", heart(seed=2))
    rows = [("10000032", "2180-07-23 08:44:00", place), ("10000032", "2180-07-24 08:44:00", "files/gone")]
    rows += [("10000099", "", "files/77")]
    crosswalk = record_list(tmp_path / "record_list.csv", rows)
    settings = ECG.settings.model_validate({"path": tree, "crosswalk": crosswalk.model_dump()})
    items = ECG.index_items(settings, read_crosswalk(crosswalk), workers=1)
    assert {item.paths[0]: (item.verdict, item.raw_subject, item.time) for item in items} == {
        f"{place}.hea": ("ok", "10000032", datetime(2180, 7, 23, 8, 44)),
        "files/gone": ("failed_missing_file", "10000032", datetime(2180, 7, 24, 8, 44)),
        "files/77.hea": ("failed_no_time", "10000099", None),
    }


def test_records_that_the_list_does_not_name_are_kept_without_a_subject(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    write_record(tree, "2", heart(seed=2))
    write_dicom(tree / "IM1", [group(microvolts(heart(seed=3)))])
    crosswalk = record_list(tmp_path / "list.csv", [("5", "2180-07-23 08:44:00", "1.hea")])
    settings = ECG.settings.model_validate({"path": tree, "crosswalk": crosswalk.model_dump()})
    items = ECG.index_items(settings, read_crosswalk(crosswalk), workers=1)
    assert {item.paths[0]: item.raw_subject for item in items} == {"1.hea": "5", "2.hea": None, "IM1": "P1"}


def test_a_list_may_not_leave_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    write_record(tmp_path / "other", "2", heart(seed=2))
    crosswalk = record_list(tmp_path / "list.csv", [("5", "2180-07-23 08:44:00", "../other/2.hea")])
    settings = ECG.settings.model_validate({"path": tree, "crosswalk": crosswalk.model_dump()})
    items = ECG.index_items(settings, read_crosswalk(crosswalk), workers=1)
    assert sorted(item.verdict for item in items) == ["failed_missing_file", "ok"]


def test_another_signal_than_the_indexed_one_is_not_read(tmp_path: Path) -> None:
    write_record(tmp_path, leads=heart(seed=1))
    item = only(tmp_path)
    write_record(tmp_path, leads=heart(seed=2))
    with pytest.raises(VerdictError, match="failed_changed"):
        units(tmp_path, item)


def test_any_number_of_processes_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_record(tmp_path, str(number), heart(seed=number))
    monkeypatch.setattr("extractors.ecg.index.FILES_A_WORKER", 2)
    settings = ECG.settings.model_validate({"path": tmp_path})
    assert ECG.index_items(settings, None, workers=2) == ECG.index_items(settings, None, workers=1)


def test_leads_of_a_configuration_are_standard_ones() -> None:
    with pytest.raises(ValueError, match=r"leads are some of I, II, .* not V7"):
        ECG.settings.model_validate({"path": ".", "leads": ["I", "V7"]})


def test_a_night_ties_records_to_subjects_and_hides_what_only_the_reader_needs(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    write_record(tree, "2", heart(seed=2))
    crosswalk = record_list(tmp_path / "list.csv", [("5", "2180-07-23 08:44:00", "1")])
    settings = {"path": str(tree), "crosswalk": crosswalk.model_dump(mode="json")}
    items, _ = index_images(tmp_path / "work", "ecg", settings)
    rows = {row["verdict"]: row for row in items.iter_rows(named=True)}
    assert rows.keys() == {"ok", "failed_no_subject"}
    assert rows["ok"]["time"] == datetime(2180, 7, 23, 8, 44) and rows["ok"]["time_source"] == "crosswalk"
    assert rows["ok"]["units_expected"] == 1 and '"rate": 500.0' in rows["ok"]["geometry"]
    assert "stamp" not in rows["ok"]["geometry"]
    assert rows["failed_no_subject"]["subject_id"] is None


def test_one_signal_of_two_subjects_is_usable_for_neither(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    write_record(tree, "2", heart(seed=1), fmt="24")
    rows = [(str(number), "2180-07-23 08:44:00", str(number)) for number in (1, 2)]
    crosswalk = record_list(tmp_path / "list.csv", rows)
    settings = {"path": str(tree), "crosswalk": crosswalk.model_dump(mode="json")}
    items, _ = index_images(tmp_path / "work", "ecg", settings)
    assert items["verdict"].to_list() == ["failed_two_subjects"] * 2


def test_an_encoder_made_for_another_rate_or_length_is_refused_before_any_work() -> None:
    def config(**encoder: object) -> dict[str, object]:
        block = {"path": ".", "seconds": 10, "encoder": {"width": 768, "weights": "w.safetensors", **encoder}}
        return {"sources": [{"source": "simulated-hospital", "path": "."}], "modalities": {"ecg": block}}

    with pytest.raises(TimeloomError, match=r"ecg-fm takes seconds 5\.0: set modalities\.ecg\.seconds: 5\.0"):
        parse_config(config(name="ecg-fm"), Path(), "run.yaml")
    with pytest.raises(
        TimeloomError, match=r"csfm-base takes cleaning neurokit: set modalities\.ecg\.cleaning: neurokit"
    ):
        parse_config(config(name="csfm-base"), Path(), "run.yaml")
    with pytest.raises(TimeloomError, match="dinov2-vitl14 takes images, and units of ecg are signals"):
        parse_config(config(name="dinov2-vitl14", width=1024), Path(), "run.yaml")
    assert parse_config(config(name="ecg-vit-b"), Path(), "run.yaml").modalities["ecg"].path


def test_what_stands_as_it_did_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    for number in (1, 2):
        write_record(tree, f"m_{number}", heart(5.0, seed=number))
    (tree / "m.hea").write_text("m/3 12 500 5100\nm_1 2500\n~ 100\nm_2 2500\n")
    write_dicom(tree / "IM1", [group(microvolts(heart(seed=3)))])
    settings = ECG.settings.model_validate({"path": tree})
    first = ECG.index_items(settings, None, workers=1)
    assert [item.verdict for item in first] == ["ok"] * 3 and all(item.geometry["state"] for item in first)
    read: list[str] = []
    plainly = read_recording

    def counted(root: Path, path: str, *others: object) -> object:
        read.append(path)
        return plainly(root, path, *others)

    monkeypatch.setattr("extractors.ecg.index.read_recording", counted)
    assert ECG.index_items(settings, None, workers=1, known=first) == first and read == []
    write_record(tree, "m_2", heart(5.0, seed=9))  # a segment's signal alone
    again = ECG.index_items(settings, None, workers=1, known=first)
    assert read == ["m.hea"] and [item.verdict for item in again] == ["ok"] * 3
    table = record_list(tmp_path / "list.csv", [("5", "2180-07-23 08:44:00", "1")])
    tied = ECG.settings.model_validate({"path": tree, "crosswalk": table.model_dump()})
    named = ECG.index_items(tied, read_crosswalk(table), workers=1, known=again)
    assert read == ["m.hea"] and {item.raw_subject for item in named} == {"5", None, "P1"}
    assert ECG.index_items(settings, None, workers=1, known=named) == again  # the table is gone, and what it said too


def test_what_keeps_files_from_being_found_is_said(tmp_path: Path) -> None:
    tree = tmp_path / "ecg"
    write_record(tree, "1", heart(seed=1))
    (tree / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert sorted(item.verdict for item in indexed(tree)) == ["ok", "refused_linked_folder"]
