"""Stored values and Hounsfield units: every lossless encoding alike, bit depths, bombs, and the fast header scan."""

import logging
import struct
import tracemalloc
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from extractors.ct.index import index_ct, read_volume
from extractors.dicom import elements
from extractors.dicom import pixels as dicom_pixels
from extractors.dicom.elements import quiet, read_elements
from extractors.dicom.pixels import DECODERS, FrameReader, PixelFormat, decode, pixel_format, stored_values
from extractors.items import VerdictError
from tests.support.images.ct_phantoms import ENCODERS, LOSSLESS, write_as
from tests.support.images.phantoms import disc, write_series, write_slice


def noisy(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-60, 60, (32, 32))
    return (disc(inside=40.0) + 2 * noise).clip(-1024, 3000).astype(np.float32)


def stored(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        header = read_elements(file, path.stat().st_size)
        form = pixel_format(header)
        return stored_values(FrameReader(header, form).raw(0), form)


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize(
    "bits",
    [
        {},
        {"PixelRepresentation": 0},
        {"BitsStored": 12, "HighBit": 11},
        {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0},
    ],
)  # fmt: skip
def test_every_lossless_encoding_gives_the_stored_values_that_pydicom_gives(
    tmp_path: Path, syntax: str, bits: dict[str, Any]
) -> None:
    write_slice(tmp_path / "plain", noisy(), 0, **bits, RescaleIntercept=-1200 if "PixelRepresentation" in bits else 0)
    write_as(tmp_path / "plain", tmp_path / "other", syntax)
    expected = pydicom.dcmread(tmp_path / "plain").pixel_array
    assert (expected < 0).any() or bits.get("PixelRepresentation") == 0
    got = stored(tmp_path / "other")
    assert got.dtype == expected.dtype and np.array_equal(got, expected)
    # pydicom reads signed JPEG-LS and HTJ2K of fewer bits as unsigned, which gives air a high density.
    if syntax not in ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201") or bits != {"BitsStored": 12, "HighBit": 11}:
        assert np.array_equal(pydicom.dcmread(tmp_path / "other").pixel_array, expected)
    plain, other = (next(iter(read_volume([name], tmp_path))) for name in ("plain", "other"))
    assert np.array_equal(plain, other)


@pytest.mark.parametrize("syntax", sorted(set(DECODERS) & set(ENCODERS)))
def test_each_fallback_decoder_gives_the_same_bits(syntax: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 60_000, (16, 24)).astype(np.uint16)
    form = PixelFormat(syntax, 16, 24, 16, 16, 15, False, 1, True)
    data = ENCODERS[syntax](pixels, 16)
    agreeing = 0
    with quiet():
        for decoder in DECODERS[syntax]:
            try:
                decoded = decoder(data, form)
            except Exception:  # fall-backs exist for codecs that cannot read this variant
                continue
            assert np.array_equal(decoded.reshape(16, 24), pixels)
            agreeing += 1
    assert agreeing >= 2


def test_odd_sizes_and_padding_bytes_are_read(tmp_path: Path) -> None:
    image = np.arange(15, dtype=np.float32).reshape(3, 5) * 2
    write_slice(tmp_path / "a", image, 0, BitsAllocated=16)
    assert np.array_equal(next(iter(read_volume(["a"], tmp_path))), image)
    dataset = pydicom.dcmread(tmp_path / "a")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(range(15)) + b"\0"
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "b")
    assert np.array_equal(stored(tmp_path / "b"), np.arange(15, dtype=np.uint8).reshape(3, 5))


def test_bits_above_the_high_bit_are_masked_and_extend_the_sign(tmp_path: Path) -> None:
    """An overlay in the upper bits (retired, but still in archives) is not a density; pydicom does not remove it."""
    write_slice(tmp_path / "a", disc(inside=100.0), 0, BitsStored=12, HighBit=11)
    clean = stored(tmp_path / "a")
    dataset = pydicom.dcmread(tmp_path / "a")
    raw = np.frombuffer(dataset.PixelData, "<u2")
    dataset.PixelData = ((raw & 0x0FFF) | 0x3000).astype("<u2").tobytes()
    dataset.save_as(tmp_path / "b")
    assert np.array_equal(stored(tmp_path / "b"), clean)
    dataset.PixelData = ((raw & 0x0FFF) << 4).astype("<u2").tobytes()
    dataset.HighBit = 15
    dataset.save_as(tmp_path / "c")
    assert np.array_equal(stored(tmp_path / "c"), clean)


def test_padding_outside_the_stored_bits_is_air(tmp_path: Path) -> None:
    write_series(tmp_path, 4, BitsStored=12, HighBit=11, RescaleSlope=1, PixelPaddingValue=-3000)
    pixels = next(iter(read_volume(["IM000"], tmp_path)))
    assert pixels[0, 0] == -1024 and np.abs(pixels[16, 16]) <= 1


@pytest.mark.parametrize("signed", [0, 1])
def test_water_air_and_padding_of_phantoms(tmp_path: Path, signed: int) -> None:
    intercept = {0: -4000, 1: -1024}[signed]
    write_series(
        tmp_path, 4, image=lambda _: disc(inside=0.0), PixelRepresentation=signed, RescaleSlope=1,
        RescaleIntercept=intercept, PixelPaddingValue=-2000 if signed else 1,
    )  # fmt: skip
    for pixels in read_volume(index_ct(tmp_path)[0].paths, tmp_path):
        assert np.abs(pixels[16, 16]) <= 1 and np.abs(pixels[1, 1] + 1000) <= 1 and pixels[0, 0] == -1024


# Bombs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "header"),
    [
        ("failed_implausible_size", {"Rows": 65535, "Columns": 65535}),
        ("failed_too_many_units", {"NumberOfFrames": 2_000_000_000}),
        ("failed_unreadable", {"BitsAllocated": 64}),
        ("failed_unreadable", {"BitsStored": 17}),
        ("failed_unreadable", {"Rows": 4096, "Columns": 4096}),  # plausible, but the file has fewer bytes
    ],
)
def test_a_header_that_claims_too_much_is_a_verdict_at_the_index(
    tmp_path: Path, verdict: str, header: dict[str, Any]
) -> None:
    write_series(tmp_path, 4, **header)
    assert [item.verdict for item in index_ct(tmp_path)] == [verdict]
    with pytest.raises(VerdictError):
        list(read_volume(["IM000"], tmp_path))


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
def test_a_codestream_larger_than_its_header_is_never_decoded(
    tmp_path: Path, syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros((3000, 3000), dtype=np.uint16)
    write_slice(tmp_path / "a", disc(), 0)
    dataset = pydicom.dcmread(tmp_path / "a")
    dataset.PixelData = encapsulate([ENCODERS[syntax](large, 16)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.save_as(tmp_path / "a")
    calls: list[int] = []

    def decoder(data: bytes, form: PixelFormat) -> np.ndarray:
        calls.append(1)
        raise ValueError

    monkeypatch.setattr(dicom_pixels, "DECODERS", {syntax: (decoder,)})
    with pytest.raises(VerdictError, match="failed_implausible_size"):
        list(read_volume(["a"], tmp_path))
    assert not calls
    with pytest.raises(VerdictError, match="failed_unreadable"):  # with the right size the decoder is called
        decode(ENCODERS[syntax](large[:32, :32], 16), PixelFormat(syntax, 32, 32, 16, 16, 15, True, 1, True))
    assert calls


def test_a_deflated_bomb_stops_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "MAX_INFLATED", 1 << 20)
    write_series(tmp_path, 1)
    write_as(tmp_path / "IM000", tmp_path / "good", "1.2.840.10008.1.2.1.99")
    assert index_ct(tmp_path)[0].verdict == "failed_too_few_slices"
    head = (tmp_path / "good").read_bytes()[:132] + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 30)
    uid = b"1.2.840.10008.1.2.1.99"
    head += struct.pack("<HH2sH", 2, 16, b"UI", len(uid)) + uid
    packer = zlib.compressobj(wbits=-15)
    (tmp_path / "bomb").write_bytes(head + packer.compress(bytes(8 << 20)) + packer.flush())
    verdicts = {item.paths[0]: item.verdict for item in index_ct(tmp_path)}
    assert "failed_implausible_size" in verdicts.values()


def test_a_deflated_data_set_within_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level could take as much memory as the limit allows."""
    monkeypatch.setattr(elements, "MAX_INFLATED", 1 << 20)
    uid = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 16, b"UI", len(uid)) + uid
    content = b""
    for _ in range(8):
        packer = zlib.compressobj(9, wbits=-15)
        content = packer.compress(meta + content + bytes((1 << 20) - 9_000 - len(content))) + packer.flush()
    file = BytesIO(bytes(128) + b"DICM" + meta + content)
    tracemalloc.start()
    try:
        with pytest.raises(VerdictError, match="failed_unreadable"):
            read_elements(file, len(file.getvalue()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize(
    ("syntax", "damage"),
    [
        *(
            (syntax, damage)
            for syntax in sorted(ENCODERS)
            for damage in ("cut", "cut before its end", "blanked", "a hole")
        ),
        *(("1.2.840.10008.1.2.5", damage) for damage in ("cut", "cut before its end")),  # zeros are valid runs
    ],
)
def test_a_frame_with_a_part_missing_is_refused(syntax: str, damage: str, share: float) -> None:
    """Decoders fill the missing part, and most of them give no error."""
    y, x = np.mgrid[:128, :128]
    noise = np.random.default_rng(0).normal(0, 20, x.shape)
    image = (1000 + 300 * np.sin(x / 9) * np.cos(y / 7) + noise).astype(np.uint16)
    image[:, :8] = image[-8:] = 0  # like the area outside the scanner's circle
    rle = syntax not in ENCODERS
    data = run_lengths(image) if rle else ENCODERS[syntax](image, 16)
    form = PixelFormat(syntax, 128, 128, 16, 16, 15, False, 1, True)
    assert np.array_equal(decode(data, form), image)
    kept, end = data[: int(len(data) * share)], data[-2:]
    missing = len(data) - len(kept)
    hole = 1024 if syntax.endswith(".90") else min(512, missing - 40)
    damaged = {
        "cut": kept,
        "cut before its end": kept + end,
        "blanked": kept + bytes(missing - 2) + end,
        "a hole": kept[:-hole] + bytes(hole) + data[len(kept) :],
    }[damage]
    with pytest.raises(VerdictError, match=r"failed_unreadable|failed_implausible_size"):
        decode(damaged, form)


def run_lengths(image: np.ndarray) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    options = {"rows": 128, "columns": 128, "samples_per_pixel": 1, "bits_allocated": 16, "bits_stored": 16}
    options |= {"pixel_representation": 0, "number_of_frames": 1}
    encoded = RLELosslessEncoder.encode(image.tobytes(), photometric_interpretation="MONOCHROME2", **options)
    return bytes(encoded)


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
@pytest.mark.parametrize("value", [0, 5, 4095])
def test_slices_of_one_value_are_whole(syntax: str, value: int) -> None:
    """These streams are the shortest, and their end looks like the filling of a decoder."""
    form = PixelFormat(syntax, 64, 64, 16, 12, 11, False, 1, True)
    image = np.full((64, 64), value, np.uint16)
    half = np.where(np.arange(64)[:, None] < 20, np.arange(64) * 9, image).astype(np.uint16)
    for pixels in (image, half):
        assert np.array_equal(decode(ENCODERS[syntax](pixels, 12), form), pixels)


@pytest.mark.parametrize("predictor", range(1, 8))
def test_every_predictor_of_jpeg_lossless_is_read_whole_and_refused_cut(predictor: int) -> None:
    image = noisy(predictor).astype(np.int16).view(np.uint16) & 0xFFF
    form = PixelFormat("1.2.840.10008.1.2.4.57", *image.shape, 16, 12, 11, False, 1, True)
    data = bytes(imagecodecs.jpeg8_encode(image, lossless=True, predictor=predictor, bitspersample=12))
    assert np.array_equal(decode(data, form), image)
    with pytest.raises(VerdictError, match="failed_unreadable"):
        decode(data[: len(data) * 9 // 10] + data[-2:], form)


@pytest.mark.parametrize("seed", range(12))
def test_damaged_codestreams_end_in_a_verdict(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    write_slice(tmp_path / "plain", noisy(seed), 0)
    for number, syntax in enumerate(LOSSLESS):
        write_as(tmp_path / "plain", tmp_path / f"x{number}", syntax)
        content = bytearray((tmp_path / f"x{number}").read_bytes())
        for place in rng.integers(200, len(content), 12):
            content[place] = rng.integers(256)
        (tmp_path / f"x{number}").write_bytes(content)
        try:
            assert next(iter(read_volume([f"x{number}"], tmp_path))).ndim == 2
        except VerdictError as error:
            assert error.verdict.startswith("failed_")
    assert {item.verdict for item in index_ct(tmp_path)} - {"ok"}


def test_a_scan_and_pydicom_read_the_same_header(real_data: Path) -> None:
    compared = 0
    for path in sorted((real_data / "ct-robustness").rglob("*")) + sorted((real_data / "ct-head-series").rglob("I*0")):
        if not path.is_file():
            continue
        with path.open("rb") as file, quiet():
            size = path.stat().st_size
            try:
                scanned = elements._scan(file, file.read(), size)
                parsed = elements._by_pydicom(file, size)
            except (elements._UnusualError, VerdictError):
                continue
        ours, theirs = ({k: v for k, v in header.values.items() if v} for header in (scanned, parsed))
        assert ours == theirs and scanned.pixels == parsed.pixels and scanned.syntax == parsed.syntax, path.name
        compared += 1
    assert compared > 150


def test_a_scan_gives_way_to_pydicom_where_a_file_is_odd(tmp_path: Path) -> None:
    write_slice(tmp_path / "a", disc(), 0, PatientID="Müller", SpecificCharacterSet="ISO_IR 100")
    content = (tmp_path / "a").read_bytes()
    with pytest.raises((elements._UnusualError, UnicodeDecodeError)):
        elements._scan(BytesIO(content), content, len(content))
    assert read_elements(BytesIO(content), len(content)).text("PatientID") == "Müller"


def test_reading_an_odd_file_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """pydicom's warnings quote values; it checks the values of the file's meta group late."""
    write_slice(tmp_path / "a", disc(), 0, PatientID="Müller", SpecificCharacterSet="ISO_IR 100")
    content = (tmp_path / "a").read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"DOE^JANE, born 1950-01-01\0", 1)
    recwarn.clear()
    with caplog.at_level(logging.DEBUG):
        read_elements(BytesIO(content), len(content))
    assert "DOE" not in caplog.text + "".join(str(warning.message) for warning in recwarn)


def test_the_real_slice_is_the_same_in_every_lossless_syntax(real_data: Path) -> None:
    folder = real_data / "ct-robustness" / "transfer-syntaxes"
    plain = stored(folder / "CTImage.dcm")
    assert np.array_equal(plain, pydicom.dcmread(folder / "CTImage.dcm").pixel_array)
    same = [path for path in folder.iterdir() if not {"Process1T", "Process2", "Process6", "Process10"} & _words(path)]
    lossy = {"JPEG2000T", "JPEGLSLossy"}
    for path in same:
        if not any(word in path.name for word in lossy):
            assert np.array_equal(stored(path), plain), path.name
    assert len(same) == 12


def _words(path: Path) -> set[str]:
    return {word for word in ("Process1T", "Process2", "Process6", "Process10") if word in path.name}


def test_a_sign_that_the_codestream_states_gives_way_to_the_header() -> None:
    pixels = np.array([[-5, 3], [1000, -1000]], dtype=np.int16)
    data = bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0))
    form = PixelFormat("1.2.840.10008.1.2.4.90", 2, 2, 16, 16, 15, True, 1, True)
    assert np.array_equal(decode(data, form), pixels)
    assert decode(data, replace(form, signed=False)).dtype == np.uint16


@pytest.mark.parametrize("syntax", sorted(ENCODERS))
@pytest.mark.parametrize(("allocated", "bits"), [(16, 12), (8, 8)])
def test_a_codestream_with_more_bits_than_the_header_says_is_refused_where_it_uses_them(
    syntax: str, allocated: int, bits: int
) -> None:
    form = PixelFormat(syntax, 64, 64, allocated, bits, bits - 1, False, 1, True)
    fits = (np.arange(64 * 64).reshape(64, 64) % (1 << bits)).astype(np.uint16)
    assert np.array_equal(stored_values(decode(ENCODERS[syntax](fits, 16), form), form), fits)
    fits[5, 5] = 1 << bits
    with pytest.raises(VerdictError, match="failed_unreadable"):
        decode(ENCODERS[syntax](fits, 16), form)
