"""DICOM waveforms: which group, which lead, which unit, which time."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tests.support.ecg import LEADS, eight, group, heart, microvolts, only, units, write_dicom

GENERAL, AMBULATORY, LONG = (f"1.2.840.10008.5.1.4.1.1.9.1.{number}" for number in (2, 3, 4))
HEMODYNAMIC = "1.2.840.10008.5.1.4.1.1.9.2.1"


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.9.1.1", GENERAL, AMBULATORY, LONG])
def test_every_ecg_class_is_read(sop_class: str, tmp_path: Path) -> None:
    leads = heart()
    write_dicom(tmp_path / "a", [group(microvolts(leads))], sop_class=sop_class)
    item = only(tmp_path)
    assert (item.verdict, item.raw_subject, item.time) == ("ok", "P1", datetime(2020, 3, 4, 5, 6, 7))
    assert item.time_source == "AcquisitionDateTime"
    np.testing.assert_allclose(units(tmp_path, item)[0].pixels[0], np.stack([leads[name] for name in LEADS]), atol=6e-4)


@pytest.mark.parametrize("sop_class", [HEMODYNAMIC, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"])
def test_another_class_is_refused(sop_class: str, tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", [group(microvolts(heart()))], sop_class=sop_class)
    assert only(tmp_path).verdict == "refused_not_ecg"


def test_the_median_beat_is_never_read_wherever_it_stands(tmp_path: Path) -> None:
    leads, beat = heart(), heart(12.0, seed=9)
    groups = [group(microvolts(beat), "MEDIAN BEAT"), group(microvolts(leads), "RHYTHM")]
    write_dicom(tmp_path / "a", groups)
    item = only(tmp_path)
    assert item.geometry["samples"] == 5000 and item.geometry["groups"] == 2
    write_dicom(tmp_path / "a", groups[:1])
    assert only(tmp_path).verdict == "failed_no_rhythm"


def test_without_a_label_the_longest_group_is_the_rhythm(tmp_path: Path) -> None:
    groups = [group(microvolts(heart(1.2, seed=4)), ""), group(microvolts(heart()), "")]
    write_dicom(tmp_path / "a", groups)
    assert only(tmp_path).geometry["samples"] == 5000


@pytest.mark.parametrize(("unit", "millivolts"), [("uV", 1e-3), ("mV", 1.0), ("nV", 1e-6)])
def test_sensitivity_correction_and_baseline_are_of_the_channels_unit(
    unit: str, millivolts: float, tmp_path: Path
) -> None:
    leads = heart()
    # raw x sensitivity x correction + baseline, the baseline in the unit too: a quarter of a millivolt.
    step, correction, baseline = 0.0025 / millivolts, 0.5, 0.25 / millivolts
    stored = {name: np.round((signal - 0.25) / (0.0025 * correction)) for name, signal in leads.items()}
    values = {
        "ChannelSensitivity": f"{step:g}", "ChannelSensitivityCorrectionFactor": f"{correction:g}",
        "ChannelBaseline": f"{baseline:g}",
    }  # fmt: skip
    write_dicom(tmp_path / "a", [group(stored, unit=unit, **values)])
    pixels = units(tmp_path, only(tmp_path))[0].pixels[0]
    np.testing.assert_allclose(pixels, np.stack([leads[name] for name in LEADS]), atol=1e-3)


def test_a_channel_without_sensitivity_or_unit_is_uncalibrated(tmp_path: Path) -> None:
    made = group(microvolts(heart()))
    del made.ChannelDefinitionSequence[5].ChannelSensitivity
    write_dicom(tmp_path / "a", [made])
    assert only(tmp_path).verdict == "failed_uncalibrated"
    write_dicom(tmp_path / "a", [group(microvolts(heart()), unit="mm[Hg]")])
    assert only(tmp_path).verdict == "failed_wrong_units"


def test_a_lead_goes_by_its_code_its_meaning_or_its_label(tmp_path: Path) -> None:
    leads = heart()
    made = group(microvolts(leads))
    channels = dict(zip(leads, made.ChannelDefinitionSequence, strict=True))
    channels["I"].ChannelSourceSequence[0].CodeMeaning = "one"  # the code decides
    source = channels["V4"].ChannelSourceSequence[0]
    source.CodeValue, source.CodingSchemeDesignator = "2:6", "MDC"
    channels["V5"].ChannelSourceSequence[0].CodingSchemeDesignator = "LOCAL"  # by its meaning
    del channels["V6"].ChannelSourceSequence
    channels["V6"].ChannelLabel = "v6"
    write_dicom(tmp_path / "a", [made])
    item = only(tmp_path)
    assert item.verdict == "ok"
    pixels = units(tmp_path, item)[0].pixels[0]
    np.testing.assert_allclose(pixels, np.stack([leads[name] for name in LEADS]), atol=6e-4)


def test_limb_leads_that_are_not_stored_are_derived(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", [group(microvolts(eight(heart())))])
    assert only(tmp_path).geometry["leads_derived"] == ["III", "aVR", "aVL", "aVF"]


def test_padding_is_no_sample(tmp_path: Path) -> None:
    leads = microvolts(heart())
    leads["V1"][:100] = -32768
    made = group(leads)
    made.WaveformPaddingValue = np.array(-32768, "<i2").tobytes()
    write_dicom(tmp_path / "a", [made])
    item = only(tmp_path)
    assert item.verdict == "ok" and item.geometry["missing_share"] == {"V1": 0.02}
    assert np.abs(units(tmp_path, item)[0].pixels).max() < 5


def test_fewer_samples_than_said_are_told_with_both_numbers(tmp_path: Path) -> None:
    made = group(microvolts(heart()))
    made.WaveformData = made.WaveformData[: 24 * 1234]
    write_dicom(tmp_path / "a", [made])
    item = only(tmp_path)
    assert item.verdict == "failed_truncated"
    assert (item.geometry["samples_expected"], item.geometry["samples_found"]) == (5000, 1234)


def test_content_time_is_no_time(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", [group(microvolts(heart()))], AcquisitionDateTime="")
    assert only(tmp_path).verdict == "failed_no_time"
    write_dicom(tmp_path / "a", [group(microvolts(heart()))], AcquisitionDateTime="", StudyDate="20200102")
    item = only(tmp_path)
    assert (item.verdict, item.time_source, item.time_precision) == ("ok", "StudyDate", "day")


def test_an_offset_is_moved_to_the_sites_clock(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a", [group(microvolts(heart()))], AcquisitionDateTime="20200304050607+0000")
    item = only(tmp_path, timezone="Asia/Seoul")
    assert item.time == datetime(2020, 3, 4, 14, 6, 7) and item.geometry["utc_offset_minutes"] == 540


def test_a_file_without_a_patient_or_cut_short_is_a_verdict(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", [group(microvolts(heart()))], PatientID="")
    assert only(tmp_path).verdict == "failed_no_subject"
    path.write_bytes(path.read_bytes()[:3000])
    assert only(tmp_path).verdict.startswith("failed_")
