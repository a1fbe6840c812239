"""The plainest WFDB records without the library: what it reads of them, and nothing of any other."""

from dataclasses import replace
from datetime import date, time
from pathlib import Path

import numpy as np
import pytest
import wfdb

from extractors.ecg import wfdb_record
from extractors.ecg.wfdb_plain import plain_record
from extractors.ecg.wfdb_record import read_record
from tests.support.ecg import edit, heart, only, write_record
from tests.support.real_data import REAL_DATA

DATA = REAL_DATA / "ecg"
REAL = ("cinc2021/E07500.hea", "cinc2021/HR06009.hea", "ptb/00001_lr.hea")  # s0010_re has its signals in two files


def text_of(path: Path) -> str:
    return path.read_text(encoding="latin-1")


def check_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, values and all that is said of them are the library's."""
    found = plain_record(path, text_of(path))
    assert found is not None
    by_library = wfdb.rdrecord(str(path.with_suffix("")))
    np.testing.assert_array_equal(found.physical.T, by_library.p_signal)
    stored = wfdb.rdrecord(str(path.with_suffix("")), physical=False)
    np.testing.assert_array_equal(found.digital.T, stored.d_signal)
    assert (found.names, found.sums, found.rate) == (stored.sig_name, stored.checksum, stored.fs)
    assert (found.day, found.clock) == (stored.base_date, stored.base_time)
    ours = read_record(path.parent, path.name, ("units", "gain", "rate"), True)
    with monkeypatch.context() as patched:
        patched.setattr(wfdb_record, "plain_record", lambda *_: None)
        library = read_record(path.parent, path.name, ("units", "gain", "rate"), True)
    assert list(ours.leads) == list(library.leads)
    for name, signal in ours.leads.items():
        np.testing.assert_array_equal(signal, library.leads[name])
    assert replace(ours, leads={}) == replace(library, leads={})


@pytest.mark.parametrize("gain", [200.0, 1000.0, 1234.5])
@pytest.mark.parametrize("when", [{}, {"day": date(2019, 11, 2), "clock": time(8, 5, 9)}])
def test_plain_records_are_what_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, when: dict[str, object]
) -> None:
    leads = heart(seed=4)
    leads["V3"][40:55] = np.nan
    check_same(write_record(tmp_path, leads=leads, gain=gain, rate=500, **when), monkeypatch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1000.0(0)/mV 16 0", "1000.0(-37)/mV 16 12"),
        ("1000.0(0)/mV 16 0", "1000.0/mV 16 12"),
        ("1000.0(0)/mV 16 0", "1000 16 -9"),
        ("1000.0(0)/mV 16 0", "1(5)/uV 16 0"),
        ("a.dat 16 ", "a.dat 16x1 "),
        ("a 12 500 5000", "# a comment\na 12 500.0 4000"),
    ],
)
def test_headers_that_say_more_are_read_as_the_library_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    path = write_record(tmp_path)
    assert old in text_of(path)
    edit(path, (old, new))
    with monkeypatch.context() as patched:
        patched.setattr(wfdb_record, "_checked_sums", lambda *_: {})
        check_same(path, patched)


def test_samples_behind_a_head_of_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_record(tmp_path)
    (tmp_path / "a.dat").write_bytes(bytes(24) + (tmp_path / "a.dat").read_bytes())
    edit(path, ("a.dat 16 ", "a.dat 16+24 "))
    check_same(path, monkeypatch)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a.dat 16 ", "a.dat 212 "),
        ("a.dat 16 ", "a.dat 16x2 "),
        ("a.dat 16 ", "a.dat 16:3 "),
        ("a 12 500 5000", "a 12 500"),
        ("a 12 500 5000", "a/2 12 500 5000"),
        ("a 12 500 5000", "a 12 500/9 5000"),
        ("a 12 500 5000", "a 12 500 5000 8:05"),
        ("a 12 500 5000", "a 12 500 5000 08:05:09 31/02/2019"),
        ("a 12 500 5000", "a 12 500 5001"),
        ("a 12 500 5000", "a 13 500 5000"),
        ("a 12 500 5000", "a 12 500 99999999"),
        ("1000.0(0)/mV", "0(0)/mV"),
        ("1000.0(0)/mV", "-1000.0(0)/mV"),
        ("1000.0(0)/mV", "1000.0(0)/\u00b5V"),
        (" 0 V6", " 0 V 6"),
        (" 0 V6", " 1 V6"),
    ],
)
def test_every_other_header_is_left_to_the_library(tmp_path: Path, old: str, new: str) -> None:
    path = write_record(tmp_path)
    text = text_of(path)
    assert plain_record(path, text) is not None and old in text
    assert plain_record(path, text.replace(old, new)) is None
    (tmp_path / "a.dat").unlink()
    assert plain_record(path, text) is None


def test_a_wrong_sum_is_found_without_the_library(tmp_path: Path) -> None:
    path = write_record(tmp_path)
    content = bytearray((tmp_path / "a.dat").read_bytes())
    content[24 * 700] ^= 1
    (tmp_path / "a.dat").write_bytes(content)
    assert plain_record(path, text_of(path)) is not None
    item = only(tmp_path)
    assert (item.verdict, item.geometry["checksums_wrong"]) == ("failed_checksum", 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the folder ecg of $TIMELOOM_DATA")
@pytest.mark.parametrize("name", REAL)
def test_real_records_are_what_the_library_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_same(DATA / name, monkeypatch)
