"""Nights on which anything changes: each file has the bytes that it has when everything is made anew."""

from pathlib import Path

import pytest

from tests.support.nights.random_nights import Nights
from warehouse.manifest import Manifest


def hashes(manifest: Manifest) -> dict[str, str]:
    return {path: file.sha256 for path, file in manifest.files.items() if not path.startswith("quality/")}


def run_nights(folder: Path, seed: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = Nights(folder, seed, monkeypatch)
    for _ in range(number):
        edits = nights.hospital.change()
        carried, anew = nights.carry()
        assert hashes(carried) == hashes(anew), edits
    assert all(nights.copied[name] > number for name in ("segments", "data", "mehrt", "mended")), nights.copied
    # A code that is new to the vocabulary, or to a bucket, has all of the bucket measured.
    assert nights.copied["measures"] > number // 4, nights.copied
    assert nights.copied["contents"] > number / 2, "what subjects are made of is told from what they were made of"


@pytest.mark.whole  # In `make test` alone: two runs a night.
@pytest.mark.parametrize("seed", [1, 2])
def test_a_night_has_the_bytes_of_a_fresh_build(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_nights(tmp_path, seed, 8, monkeypatch)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_thousand_nights_have(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_nights(tmp_path, seed, 50, monkeypatch)
