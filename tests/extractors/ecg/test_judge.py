"""What is asked of a recording, how it is resampled and cut into windows."""

from pathlib import Path

import numpy as np
import pytest

from extractors.ecg.judge import cleaned, resampled
from extractors.ecg.leads import standard_name
from tests.support.ecg import LEADS, heart, only, units, write_record


@pytest.mark.parametrize(
    ("name", "lead"),
    [("AVR", "aVR"), ("avf", "aVF"), ("Lead V3", "V3"), ("ECG II", "II"), ("Lead I (Einthoven)", "I"), ("v6", "V6"),
     ("V", None), ("MCL1", None), ("ECG1", None), ("V7", None), ("vx", None), ("", None), ("RESP", None)],
)  # fmt: skip
def test_names_of_leads(name: str, lead: str | None) -> None:
    assert standard_name(name) == lead


def test_a_flat_lead_is_a_verdict_by_its_share(tmp_path: Path) -> None:
    leads = heart()
    leads["V4"][:3000] = leads["V4"][3000]
    write_record(tmp_path, leads=leads)
    item = only(tmp_path)
    assert item.verdict == "failed_flat_lead" and item.geometry["flat_share"] == 0.6002
    assert only(tmp_path, most_flat=0.7, most_clipped=1).verdict == "ok"


def test_a_clipped_lead_is_a_verdict_by_its_share(tmp_path: Path) -> None:
    leads = heart()
    top = float(np.quantile(leads["V6"], 0.85))
    leads["V6"] = np.minimum(leads["V6"], np.round(top * 500) / 500)
    write_record(tmp_path, leads=leads)
    item = only(tmp_path)
    assert item.verdict == "failed_clipped_lead" and 0.1 < item.geometry["clipped_share"] < 0.2
    assert only(tmp_path, most_clipped=0.5).verdict == "ok"


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_gain_that_no_heart_makes_is_a_verdict(factor: float, tmp_path: Path) -> None:
    leads = {name: signal * factor for name, signal in heart().items()}
    write_record(tmp_path, leads=leads, gain=1000.0 / factor)
    assert only(tmp_path).verdict == "failed_implausible_gain"


def test_a_short_recording_is_a_verdict_or_a_shorter_window(tmp_path: Path) -> None:
    write_record(tmp_path, leads=heart(4.0))
    assert only(tmp_path).verdict == "failed_too_short"
    item = only(tmp_path, least_seconds=2.0)
    assert item.units_expected == 1 and units(tmp_path, item)[0].pixels.shape == (1, 12, 2000)


def test_a_long_recording_has_windows_end_to_end(tmp_path: Path) -> None:
    leads = heart(38.4)
    write_record(tmp_path, leads=leads)
    item = only(tmp_path)
    assert item.units_expected == 3 and "windows_left_out" not in item.geometry
    batches = units(tmp_path, item, size=2)
    assert [len(batch.pixels) for batch in batches] == [2, 1]
    assert [batch.places.ravel().tolist() for batch in batches] == [[0, 5000], [10000]]
    expected = np.stack([leads[name] for name in LEADS])[:, 10_000:15_000]
    np.testing.assert_allclose(batches[1].pixels[0], expected, atol=1e-6)
    few = only(tmp_path, most_windows=2)
    assert few.units_expected == 2 and few.geometry["windows_left_out"] == 1


@pytest.mark.parametrize(
    ("rate", "wanted"), [(1000, 500), (500, 250), (250, 500), (360, 500), (257.5, 250), (500, 500)]
)
def test_resampling_keeps_a_sine_and_gives_the_exact_length(rate: float, wanted: int) -> None:
    count = round(10 * rate)
    sine = np.tile(np.sin(2 * np.pi * 7 * np.arange(count) / rate), (12, 1))
    made = resampled(sine, rate, wanted)
    assert made.shape == (12, round(count * wanted / rate)) and made.dtype == np.float32
    expected = np.sin(2 * np.pi * 7 * np.arange(made.shape[1]) / wanted)
    inner = slice(wanted // 2, -wanted // 2)
    assert np.abs(made[0, inner] - expected[inner]).max() < 5e-3


def test_what_lies_above_the_new_half_rate_does_not_fold_back() -> None:
    at = np.arange(10_000) / 1000
    hum = np.tile(np.sin(2 * np.pi * 190 * at), (12, 1))
    made = resampled(hum, 1000, 250)  # every fourth sample alone would be a sine of 60 Hz
    assert np.abs(made[0, 250:-250]).max() < 0.02 and np.abs(hum[0, ::4]).max() > 0.9


def test_cleaning_takes_drift_and_hum_away_and_leaves_the_beat() -> None:
    at = np.arange(2500) / 250
    drift, hum = 2 * np.sin(2 * np.pi * 0.05 * at), 0.5 * np.sin(2 * np.pi * 50 * at)
    beat = np.sin(2 * np.pi * 5 * at)
    made = cleaned(np.tile(drift + hum + beat, (12, 1)).astype(np.float32), 250)
    inner = slice(500, -500)
    assert np.abs(made[0, inner] - beat[inner]).max() < 0.15


def test_the_rate_and_length_are_the_encoders(tmp_path: Path) -> None:
    write_record(tmp_path, leads=heart(10.0, rate=1000), rate=1000)
    item = only(tmp_path, rate=250)
    assert item.geometry["rate"] == 1000 and units(tmp_path, item)[0].pixels.shape == (1, 12, 2500)
