"""GE MUSE XML: the rhythm section, leads that are derived, units a lead, and text that is no XML."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tests.support.ecg import LEADS, edit, eight, heart, muse_waveform, only, units, write_muse


def test_eight_leads_become_twelve_in_millivolts(tmp_path: Path) -> None:
    leads = heart()
    write_muse(tmp_path / "a.xml", [muse_waveform(eight(leads))])
    item = only(tmp_path)
    assert (item.verdict, item.raw_subject, item.time_source) == ("ok", "P1", "AcquisitionDate+AcquisitionTime")
    assert (item.time, item.time_precision) == (datetime(2020, 3, 4, 5, 6, 7), "s")  # month, day, year
    assert item.geometry["leads_derived"] == ["III", "aVR", "aVL", "aVF"]
    pixels = units(tmp_path, item)[0].pixels[0]
    np.testing.assert_allclose(pixels, np.stack([leads[name] for name in LEADS]), atol=4.88e-3)


def test_the_rhythm_is_read_by_name_wherever_the_median_beat_stands(tmp_path: Path) -> None:
    beat, leads = heart(1.2, seed=8), heart()
    waveforms = [
        muse_waveform(eight(beat), "Median"),
        muse_waveform(eight(leads)),
        muse_waveform(eight(beat), "Median"),
    ]
    write_muse(tmp_path / "a.xml", waveforms)
    assert only(tmp_path).geometry["samples"] == 5000
    write_muse(tmp_path / "a.xml", waveforms[:1])
    assert only(tmp_path).verdict == "failed_no_rhythm"


def test_each_lead_has_a_scale_and_a_unit_of_its_own(tmp_path: Path) -> None:
    leads = heart()
    coarse, fine = (muse_waveform({name: leads[name]}, scale=scale) for name, scale in (("I", 4.88), ("II", 2.44)))
    others = muse_waveform({name: signal for name, signal in eight(leads).items() if name[0] == "V"}, scale=1.0)
    inner = "".join(part.partition("</SampleExponent>")[2].removesuffix("</Waveform>") for part in (fine, others))
    write_muse(tmp_path / "a.xml", [coarse.removesuffix("</Waveform>") + inner + "</Waveform>"])
    pixels = units(tmp_path, only(tmp_path))[0].pixels[0]
    np.testing.assert_allclose(pixels[0], leads["I"], atol=2.5e-3)
    np.testing.assert_allclose(pixels[1], leads["II"], atol=1.3e-3)


def test_bare_signs_in_a_report_are_escaped_and_counted(tmp_path: Path) -> None:
    write_muse(tmp_path / "a.xml", [muse_waveform(eight(heart()))], comment="QT < 450 & PR > 120; T&amp;P")
    item = only(tmp_path)
    assert item.verdict == "ok" and item.geometry["escaped"] == 2


@pytest.mark.parametrize("damage", ["cut", "tag", "entity"])
def test_what_cannot_be_parsed_is_a_verdict(damage: str, tmp_path: Path) -> None:
    path = write_muse(tmp_path / "a.xml", [muse_waveform(eight(heart()))])
    text = path.read_text(encoding="latin-1")
    changed = {
        "cut": text[: len(text) // 2],
        "tag": text.replace("</TestDemographics>", ""),
        "entity": text.replace('"restecg.dtd">', '"restecg.dtd" [<!ENTITY a "b">]>'),
    }
    path.write_text(changed[damage], encoding="latin-1")
    assert only(tmp_path).verdict == "failed_unreadable"


@pytest.mark.parametrize("masked", ["xxxxx", "XXX", "****", ""])
def test_a_masked_patient_is_nobody(masked: str, tmp_path: Path) -> None:
    write_muse(tmp_path / "a.xml", [muse_waveform(eight(heart()))], patient=masked)
    item = only(tmp_path)
    assert item.verdict == "failed_no_subject" and item.raw_subject is None


def test_a_lead_without_scale_or_of_another_unit_is_a_verdict(tmp_path: Path) -> None:
    path = write_muse(tmp_path / "a.xml", [muse_waveform(eight(heart()))])
    text = path.read_text(encoding="latin-1")
    edit(path, ("<LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit>", ""))
    assert only(tmp_path).verdict == "failed_uncalibrated"
    path.write_text(text.replace("MICROVOLTS", "FURLONGS"), encoding="latin-1")
    assert only(tmp_path).verdict == "failed_wrong_units"
    path.write_text(text.replace("<SampleBase>500</SampleBase>", ""), encoding="latin-1")
    assert only(tmp_path).verdict == "failed_no_rate"
    path.write_text(text.replace("Total>5000<", "Total>5001<"), encoding="latin-1")
    item = only(tmp_path)
    assert item.verdict == "failed_truncated" and item.geometry["samples_found"] == 5000


def test_other_xml_is_no_ecg(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?><Bundle/>')
    assert only(tmp_path).verdict == "refused_not_ecg"
