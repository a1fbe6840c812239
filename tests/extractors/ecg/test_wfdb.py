"""WFDB records: every storage format, segments, and what their headers leave out or get wrong."""

from datetime import date, datetime, time
from pathlib import Path

import numpy as np
import pytest
import wfdb

from tests.support.ecg import LEADS, edit, heart, indexed, only, units, write_record


def read(folder: Path, **settings: object) -> np.ndarray:
    """(12, n) of the first window."""
    return units(folder, only(folder, **settings))[0].pixels[0]


def packed(samples: np.ndarray, fmt: str) -> bytes:
    """Samples in a storage format that the library reads and does not write, by WFDB's own description."""
    if fmt == "61":
        return samples.astype(">i2").tobytes()
    samples = samples.astype(np.int64)
    if fmt == "160":
        return (samples + (1 << 15)).astype("<u2").tobytes()
    first, second, third = (samples[place::3] & 0x3FF for place in range(3))
    if fmt == "310":
        words = [first << 1 | (third & 0x1F) << 11, second << 1 | (third >> 5) << 11]
        return np.stack(words, axis=1).astype("<u2").tobytes()
    return (first | second << 10 | third << 20).astype("<u4").tobytes()


@pytest.mark.parametrize("fmt", ["16", "24", "32", "61", "80", "160", "212", "310", "311", "508", "516", "524"])
def test_every_storage_format_gives_the_same_millivolts(fmt: str, tmp_path: Path) -> None:
    leads = heart(seed=3)
    gain = 50.0 if fmt in ("80", "508", "310", "311") else 500.0  # 8 and 10 bits hold few steps
    leads = {name: np.round(signal * gain) / gain for name, signal in leads.items()}
    by_library = fmt not in ("61", "160", "310", "311")
    path = write_record(tmp_path, leads=leads, fmt=fmt if by_library else "16", gain=gain)
    if not by_library:
        samples = np.fromfile(tmp_path / "a.dat", "<i2")
        (tmp_path / "a.dat").write_bytes(packed(samples, fmt))
        edit(path, ("a.dat 16 ", f"a.dat {fmt} "))
    assert only(tmp_path).verdict == "ok"
    np.testing.assert_array_equal(read(tmp_path), np.stack([leads[name] for name in LEADS]).astype(np.float32))


def test_leads_go_by_their_names_wherever_they_stand(tmp_path: Path) -> None:
    leads = heart()
    order = ["V6", "AVF", "AVL", "i", "II", "iii", "avr", "V1", "v2", "V3", "V4", "V5"]
    by_name = {name.upper(): signal for name, signal in leads.items()}
    write_record(tmp_path, leads={name: by_name[name.upper()] for name in order})
    np.testing.assert_allclose(read(tmp_path), np.stack([leads[name] for name in LEADS]), atol=1e-6)


def test_exchanged_names_of_limb_leads_are_a_verdict(tmp_path: Path) -> None:
    path = write_record(tmp_path)
    edit(path, (" aVL", " aVX"), (" aVF", " aVL"), (" aVX", " aVF"))
    item = only(tmp_path)
    assert item.verdict == "failed_lead_mismatch" and item.geometry["leads_mismatched"] == ["aVL", "aVF"]


def test_names_without_a_place_are_no_leads(tmp_path: Path) -> None:
    path = write_record(tmp_path)
    edit(path, (" V1", " V"), (" V2", " MCL1"), (" V3", " ECG1"))
    item = only(tmp_path)
    assert item.verdict == "failed_missing_leads"
    assert item.geometry["leads_missing"] == ["V1", "V2", "V3"] and item.geometry["other_channels"] == 3


def test_limb_leads_are_derived_where_two_are_there_and_it_is_recorded(tmp_path: Path) -> None:
    leads = heart()
    stored = {name: leads[name] for name in ("II", "III", "V1", "V2", "V3", "V4", "V5", "V6")}
    write_record(tmp_path, leads=stored)
    assert only(tmp_path).geometry["leads_derived"] == ["I", "aVR", "aVL", "aVF"]
    np.testing.assert_allclose(read(tmp_path), np.stack([leads[name] for name in LEADS]), atol=1e-6)


def test_one_limb_lead_derives_nothing(tmp_path: Path) -> None:
    leads = heart()
    write_record(tmp_path, leads={name: leads[name] for name in LEADS if name in ("II", "aVR") or name[0] == "V"})
    assert only(tmp_path).verdict == "failed_missing_leads"


def test_leads_that_are_not_asked_for_may_be_away_and_are_zeros(tmp_path: Path) -> None:
    leads = heart()
    write_record(tmp_path, leads={name: leads[name] for name in ("I", "II")})
    limb = ["I", "II", "III", "aVR", "aVL", "aVF"]
    assert only(tmp_path).verdict == "failed_missing_leads"
    pixels = read(tmp_path, leads=limb)
    assert not pixels[6:].any() and pixels[:6].any(axis=1).all()


def test_a_sample_that_is_none_is_filled_in_and_counted(tmp_path: Path) -> None:
    leads = heart()
    whole = leads["V2"].copy()
    leads["V2"] = whole.copy()
    leads["V2"][1000:1100] = np.nan
    write_record(tmp_path, leads=leads)
    item = only(tmp_path)
    assert item.verdict == "ok" and item.geometry["missing_share"] == {"V2": 0.02}
    pixels = read(tmp_path)
    line = np.linspace(whole[999], whole[1100], 102)
    np.testing.assert_allclose(pixels[7, 999:1101], line, atol=1e-5)
    assert np.isfinite(pixels).all()


def test_more_missing_samples_than_allowed_are_a_verdict(tmp_path: Path) -> None:
    leads = heart()
    leads["V2"][1000:1300] = np.nan
    write_record(tmp_path, leads=leads)
    assert only(tmp_path).verdict == "failed_missing_samples"
    assert only(tmp_path, most_missing=0.07).verdict == "ok"


def test_a_lead_without_any_sample_is_a_missing_lead(tmp_path: Path) -> None:
    leads = heart()
    leads["V3"][:] = np.nan
    leads["aVL"][:] = np.nan  # follows from I and II
    write_record(tmp_path, leads=leads)
    item = only(tmp_path)
    assert item.verdict == "failed_missing_leads"
    assert item.geometry["leads_missing"] == ["V3"] and item.geometry["leads_derived"] == ["aVL"]


def test_a_header_without_a_gain_is_uncalibrated(tmp_path: Path) -> None:
    path = write_record(tmp_path, gain=200.0)
    plain = path.read_text()
    for stated, left_out in (("200.0(0)/mV", "0(0)/mV"), ("200.0(0)/mV", "")):
        path.write_text(plain.replace(stated, left_out))
        if not left_out:
            path.write_text("\n".join(line[:8] if line.startswith("a.dat") else line for line in plain.splitlines()))
            assert only(tmp_path).verdict == "failed_uncalibrated"  # and no name of a lead either
            continue
        item = only(tmp_path)
        assert item.verdict == "failed_uncalibrated" and item.geometry["not_stated"] == ["gain"]
        accepted = only(tmp_path, accept_assumed=["gain"])
        assert accepted.verdict == "ok" and accepted.geometry["assumed"] == ["gain"]


def test_a_header_without_a_rate_is_none_that_can_be_read(tmp_path: Path) -> None:
    path = write_record(tmp_path, rate=250)
    edit(path, ("a 12 250 5000", "a 12"))
    assert only(tmp_path).verdict == "failed_no_rate"
    item = only(tmp_path, accept_assumed=["rate"])
    assert item.verdict == "ok" and item.geometry["assumed"] == ["rate"] and item.geometry["rate"] == 250.0


def test_a_header_without_a_unit_means_millivolts_and_says_that_it_was_assumed(tmp_path: Path) -> None:
    edit(write_record(tmp_path), ("(0)/mV", "(0)"))
    item = only(tmp_path)
    assert item.verdict == "ok" and item.geometry["assumed"] == ["units"]
    assert only(tmp_path, accept_assumed=[]).verdict == "failed_uncalibrated"


@pytest.mark.parametrize(("units_of_file", "scale"), [("uV", 1000.0), ("V", 0.001), ("mv", 1.0), ("\u00b5V", 1000.0)])
def test_the_unit_is_the_headers_and_the_baseline_is_taken_off(
    units_of_file: str, scale: float, tmp_path: Path
) -> None:
    leads = heart()
    baseline = [5000 + 10 * number for number in range(12)]  # 5 mV, where only the gain is minded
    in_file = {name: signal * scale for name, signal in leads.items()}
    write_record(tmp_path, leads=in_file, gain=1000.0 / scale, units="XX", baseline=baseline)
    edit(tmp_path / "a.hea", ("/XX", f"/{units_of_file}"))
    np.testing.assert_allclose(read(tmp_path), np.stack([leads[name] for name in LEADS]), atol=1e-5)


def test_a_unit_that_is_no_voltage_is_a_verdict_and_size_guesses_nothing(tmp_path: Path) -> None:
    edit(write_record(tmp_path / "a"), ("/mV", "/mmHg"))
    assert only(tmp_path / "a").verdict == "failed_wrong_units"
    microvolts = {name: signal * 1000 for name, signal in heart().items()}
    write_record(tmp_path / "b", leads=microvolts, gain=10.0)  # says millivolts
    assert only(tmp_path / "b").verdict == "failed_implausible_gain"


def test_a_date_is_day_month_year(tmp_path: Path) -> None:
    path = write_record(tmp_path, day=date(2020, 4, 3), clock=time(5, 6, 7))
    assert path.read_text().splitlines()[0].endswith("05:06:07 03/04/2020")
    item = only(tmp_path)
    assert (item.time, item.time_source, item.time_precision) == (datetime(2020, 4, 3, 5, 6, 7), "header", "s")


def test_a_clock_without_a_date_is_no_time(tmp_path: Path) -> None:
    write_record(tmp_path, clock=time(5, 6, 7))
    item = only(tmp_path)
    assert item.verdict == "ok" and item.time is None  # the run, which knows the crosswalk, says failed_no_time


def test_a_short_signal_file_is_told_with_both_numbers(tmp_path: Path) -> None:
    write_record(tmp_path)
    signal = tmp_path / "a.dat"
    signal.write_bytes(signal.read_bytes()[: 24 * 3000])
    item = only(tmp_path)
    assert item.verdict == "failed_truncated"
    assert (item.geometry["samples_expected"], item.geometry["samples_found"]) == (5000, 3000)


def test_a_checksum_that_differs_is_counted(tmp_path: Path) -> None:
    write_record(tmp_path)
    signal = tmp_path / "a.dat"
    content = bytearray(signal.read_bytes())
    content[1000] ^= 1
    signal.write_bytes(content)
    wfdb.rdrecord(str(tmp_path / "a"))  # the library says nothing
    item = only(tmp_path)
    assert item.verdict == "failed_checksum" and item.geometry["checksums_wrong"] == 1
    assert only(tmp_path, checksums=False).verdict == "ok"


def test_leads_of_several_rates_are_not_smoothed_to_one(tmp_path: Path) -> None:
    path = write_record(tmp_path, fmt="16", rate=250)
    lines = path.read_text().splitlines()
    # Two samples a frame of the first lead: the same bytes, half as many frames of the others.
    path.write_text(
        "\n".join([lines[0], lines[1].replace(" 16 ", " 16x2 ", 1), *lines[2:]]).replace("250 5000", "250 4600")
    )
    assert only(tmp_path, checksums=False).verdict == "failed_mixed_rates"


def test_two_channels_of_one_name_are_a_verdict(tmp_path: Path) -> None:
    edit(write_record(tmp_path), (" V2", " v1"))
    assert only(tmp_path).verdict == "failed_duplicate_leads"


def test_segments_are_laid_one_behind_the_other(tmp_path: Path) -> None:
    leads = heart(12.0)
    for number, (start, stop) in enumerate(((0, 2500), (2500, 6000)), 1):
        write_record(tmp_path, f"m_{number}", {name: signal[start:stop] for name, signal in leads.items()})
    (tmp_path / "m.hea").write_text("m/2 12 500 6000 05:06:07 03/04/2020\nm_1 2500\nm_2 3500\n")
    item = only(tmp_path)
    assert item.verdict == "ok" and item.geometry["segments"] == 2
    assert item.paths == ("m.hea", "m_1.hea", "m_1.dat", "m_2.hea", "m_2.dat")
    expected = np.stack([leads[name][:5000] for name in LEADS])
    np.testing.assert_allclose(units(tmp_path, item)[0].pixels[0], expected, atol=1e-6)


def test_a_gap_between_segments_is_missing(tmp_path: Path) -> None:
    leads = heart(10.0)
    for number, (start, stop) in enumerate(((0, 4000), (4200, 5000)), 1):
        write_record(tmp_path, f"m_{number}", {name: signal[start:stop] for name, signal in leads.items()})
    (tmp_path / "m_layout.hea").write_text(
        "\n".join(["m_layout 12 500 0", *(f"~ 0 1000.0(0)/mV 16 0 0 0 0 {name}" for name in LEADS)]) + "\n"
    )
    (tmp_path / "m.hea").write_text("m/4 12 500 5000\nm_layout 0\nm_1 4000\n~ 200\nm_2 800\n")
    item = only(tmp_path)
    assert item.verdict == "ok" and set(item.geometry["missing_share"].values()) == {0.04}
    alone = wfdb.rdrecord(str(tmp_path / "m"))
    assert np.isnan(alone.p_signal).mean() == pytest.approx(0.04)
    pixels = units(tmp_path, item)[0].pixels[0]
    known = np.isfinite(alone.p_signal)
    ours = pixels[[LEADS.index(name) for name in alone.sig_name]].T
    np.testing.assert_allclose(ours[known], alone.p_signal[known], atol=1e-5)


def test_a_segment_that_is_away_or_cut_is_its_records_verdict(tmp_path: Path) -> None:
    for number in (1, 2):
        write_record(tmp_path, f"m_{number}", heart(5.0, seed=number))
    (tmp_path / "m.hea").write_text("m/2 12 500 5000\nm_1 2500\nm_2 2500\n")
    (tmp_path / "m_2.dat").write_bytes((tmp_path / "m_2.dat").read_bytes()[:1200])
    assert only(tmp_path).verdict == "failed_truncated"
    (tmp_path / "m_2.dat").unlink()
    assert only(tmp_path).verdict == "failed_missing_file"
    (tmp_path / "m_2.hea").unlink()
    assert only(tmp_path).verdict == "failed_unreadable"


def test_a_header_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    write_record(tmp_path / "secret", "b")
    path = write_record(tmp_path / "tree")
    edit(path, ("a.dat", "../secret/b.dat"))
    verdicts = sorted(item.verdict for item in indexed(tmp_path / "tree"))
    assert verdicts == ["failed_unreadable", "refused_not_ecg"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "no header at all", "a 12 500 5000\na.dat 16\n", "a x 500\n"])
def test_a_damaged_header_is_a_verdict(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.hea").write_text(text)
    assert only(tmp_path).verdict == "failed_unreadable"
