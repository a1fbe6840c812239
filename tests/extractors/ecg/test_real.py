"""Real ECGs against an independent reading: the libraries wfdb and pydicom, used plainly."""

from datetime import datetime

import numpy as np
import pydicom
import pytest
import wfdb

from extractors.items import FoundItem
from tests.support.ecg import LEADS, indexed, units
from tests.support.real_data import REAL_DATA

DATA = REAL_DATA / "ecg"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the folder ecg of $TIMELOOM_DATA")


@pytest.fixture(scope="module")
def items() -> dict[str, FoundItem]:
    return {item.paths[0]: item for item in indexed(DATA) if item.verdict != "refused_not_ecg"}


def test_every_recording_is_usable_and_says_when_and_how(items: dict[str, FoundItem]) -> None:
    assert len(items) == 33 and {item.verdict for item in items.values()} == {"ok"}
    assert {item.geometry["units"] for item in items.values()} == {"mV"}
    # None of these headers has a date; PTB's comment of one is content.
    assert {item.time for path, item in items.items() if path.endswith(".hea")} == {None}
    lengths = {path: item.units_expected for path, item in items.items() if item.units_expected != 1}
    assert lengths == {"ptb/s0010_re.hea": 3}
    assumed = {path for path, item in items.items() if "assumed" in item.geometry}
    assert assumed == {"ptb/s0010_re.hea"}


@pytest.mark.parametrize("name", ["cinc2021/E07500", "cinc2021/HR06009", "ptb/s0010_re", "ptb/00001_lr"])
def test_samples_are_those_of_wfdb(items: dict[str, FoundItem], name: str) -> None:
    item = items[f"{name}.hea"]
    record = wfdb.rdrecord(str(DATA / name))
    assert item.geometry["rate"] == record.fs and item.geometry["samples"] == record.sig_len
    order = [[lead.upper() for lead in record.sig_name].index(lead.upper()) for lead in LEADS]
    theirs = record.p_signal.T[order]
    (batch,) = units(DATA, item)
    step = record.fs / 500
    if step == 1:
        np.testing.assert_array_equal(batch.pixels[0], theirs[:, :5000].astype(np.float32))
        return
    # Of another rate: the same moments lie within what the filter takes off, a hundredth of the swing on the average.
    length = min(batch.pixels.shape[2], round(theirs.shape[1] / step))
    ours = batch.pixels[0][:, :length]
    at = np.arange(length) * step
    for lead in range(12):
        plain = np.interp(at, np.arange(theirs.shape[1]), theirs[lead])
        assert np.abs(ours[lead] - plain).mean() < 0.01 * np.ptp(theirs[lead])


def test_samples_are_those_of_pydicom(items: dict[str, FoundItem]) -> None:
    item = items["dicom/anonymous_ecg.dcm"]
    data = pydicom.dcmread(DATA / "dicom" / "anonymous_ecg.dcm")
    assert item.time == datetime.strptime(str(data.AcquisitionDateTime), "%Y%m%d%H%M%S")
    assert item.time_source == "AcquisitionDateTime" and item.raw_subject == data.PatientID
    channels = data.WaveformSequence[0].ChannelDefinitionSequence
    names = [channel.ChannelSourceSequence[0].CodeMeaning for channel in channels]
    assert [name.split()[1] for name in names] == list(LEADS)
    theirs = data.waveform_array(0).T / 1000  # microvolts
    ours = units(DATA, item)[0].pixels[0]
    assert ours.shape == (12, 5000)
    assert np.abs(ours - theirs[:, ::2]).mean() < 0.01 * np.ptp(theirs)


def test_two_of_the_challenges_records_are_one_signal(items: dict[str, FoundItem]) -> None:
    same = [path for path, item in items.items() if item.content == items["cinc2021/E07509.hea"].content]
    assert same == ["cinc2021/E07509.hea", "cinc2021/E07510.hea"]
