"""The length of a JPEG Lossless codestream follows from its pixels: cuts, holes and leftovers are seen exactly."""

import imagecodecs
import numpy as np
import pytest

from extractors.dicom.lossless import fills_frame


def frame(seed: int = 0, bits: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :130]
    values = (0.3 + 0.2 * np.sin(x / 9) * np.cos(y / 11)) * (1 << bits) + rng.normal(0, 1 << bits - 8, x.shape)
    image = np.clip(values, 0, (1 << bits) - 1).astype(np.uint16)
    image[60:] = np.where(x[60:] > 40, image[60:], 0)
    return image


def encoded(image: np.ndarray, predictor: int = 1, bits: int = 16) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, lossless=True, predictor=predictor, bitspersample=bits))


def judged(data: bytes) -> bool | None:
    return fills_frame(data, imagecodecs.jpeg8_decode(data))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_a_whole_stream_is_as_long_as_its_pixels_say(predictor: int, bits: int) -> None:
    image = frame(bits=bits) if bits > 8 else frame(bits=8).astype(np.uint8)
    data = encoded(image, predictor, bits)
    assert np.array_equal(imagecodecs.jpeg8_decode(data), image)
    assert judged(data) is True
    assert judged(data + bytes(1)) is True, "DICOM pads to even"


@pytest.mark.parametrize("seed", range(8))
def test_a_constant_frame_and_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 70, 2))
    assert judged(encoded(np.full(size, int(rng.integers(1 << 16)), np.uint16))) is True
    assert judged(encoded(rng.integers(0, 1 << 16, size, dtype=np.uint16))) is True


@pytest.mark.parametrize("away", [1, 2, 10, 100, 5000])
def test_missing_bytes_are_seen(away: int) -> None:
    data = encoded(frame())
    assert judged(data[: -2 - away] + b"\xff\xd9") is False


@pytest.mark.parametrize("more", [b"\0", b"\x5a", b"\x5a" * 500])
def test_bytes_that_are_left_over_are_seen(more: bytes) -> None:
    data = encoded(frame())
    assert judged(data[:-2] + more + b"\xff\xd9") is False


@pytest.mark.parametrize("length", [64, 512, 4096])
def test_a_hole_is_seen(length: int) -> None:
    data = encoded(frame())
    middle = len(data) // 2
    assert judged(data[:middle] + bytes(length) + data[middle + length :]) is False


def test_it_says_so_where_it_cannot_tell() -> None:
    data = encoded(frame())
    start = data.index(b"\xff\xda")
    assert judged(data[:start] + b"\xff\xdd\x00\x04\x00\x00" + data[start:]) is True, "no restart interval"
    assert fills_frame(data[:start] + b"\xff\xdd\x00\x04\x00\x82" + data[start:], frame()) is None
    assert fills_frame(data[: start + 9] + b"\x01" + data[start + 10 :], frame()) is None, "a point transform"
    assert fills_frame(data, frame().astype(np.uint32)) is None
    for wrong in (b"", b"\xff\xd8", data[:start], data[:40], bytes(100)):
        assert fills_frame(wrong, frame()) is None
