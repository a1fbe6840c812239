"""Grey scales of x-rays, against pydicom read independently: tables, windows, inversion, padding, spare bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from extractors.cxr.grey import GreyScale, Window, picture
from extractors.cxr.read import read_views
from extractors.cxr.settings import CXR, CxrSettings
from extractors.items import FoundItem, UnitRequest, VerdictError
from tests.support.images.xrays import chest, lut, write_film

# In `make test` alone: films are written in every syntax.
pytestmark = pytest.mark.whole

FILM = chest()
WHITE = 65_535
ROOT = (np.sqrt(np.arange(4096) / 4095) * 4095).astype(np.uint16)


def found(folder: Path, **settings: Any) -> FoundItem:
    (item,) = CXR.index_items(CxrSettings(path=folder, **settings), None, workers=1)
    return item


def seen(folder: Path, item: FoundItem) -> npt.NDArray[np.uint16]:
    (batch,) = read_views(UnitRequest(folder, item.paths, item.geometry), 1)
    assert batch.pixels.dtype == np.uint16 and batch.pixels.shape[0] == 1
    return np.asarray(batch.pixels[0])


def by_pydicom(path: Path, top: float, inverted: bool) -> npt.NDArray[np.float64]:
    """What pydicom makes of modality and VOI steps, between 0 and 1."""
    dataset = pydicom.dcmread(path)
    light = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64) / top
    return 1 - light if inverted else light


@pytest.mark.parametrize(
    ("header", "grey"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 3000}, "window"),
        ({"WindowCenter": [1800, 100], "WindowWidth": [2500, 5]}, "window"),
        ({"WindowCenter": 2000, "WindowWidth": 3000, "VOILUTFunction": "LINEAR_EXACT"}, "window"),
        ({"WindowCenter": 2000, "WindowWidth": 1200, "VOILUTFunction": "SIGMOID"}, "window"),
        ({"VOILUTSequence": [lut(0, ROOT, 12)]}, "table"),
        ({"VOILUTSequence": [lut(500, ROOT[:3000], 12)], "WindowCenter": 9, "WindowWidth": 3}, "table"),
        ({"VOILUTSequence": [lut(0, ROOT, 12), lut(0, ROOT[::-1], 12)]}, "table"),
        ({"ModalityLUTSequence": [lut(0, ROOT[::-1], 16)], "WindowCenter": 2048, "WindowWidth": 4096}, "window"),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_picture_is_pydicoms_and_inverted_once_and_last(
    tmp_path: Path, header: dict[str, Any], grey: str, photometric: str
) -> None:
    write_film(tmp_path / "film.dcm", FILM, PhotometricInterpretation=photometric, **header)
    item = found(tmp_path)
    assert (item.verdict, item.geometry["grey"], item.geometry["windows_refused"]) == ("ok", grey, 0)
    assert item.geometry["inverted"] == (photometric == "MONOCHROME1")
    top = WHITE if "ModalityLUTSequence" in header else 4095
    expected = by_pydicom(tmp_path / "film.dcm", top, photometric == "MONOCHROME1")
    assert np.abs(seen(tmp_path, item) / WHITE - expected).max() < 2e-4


@pytest.mark.parametrize(
    ("header", "stored", "sign"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, FILM, -1),
        # The two say the same; one inversion, not two.
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, FILM, -1),
        ({"PresentationLUTShape": "INVERSE"}, FILM, -1),
        ({"PresentationLUTShape": "IDENTITY"}, FILM, 1),
        ({"RescaleSlope": -10, "RescaleIntercept": 40_950}, FILM, -1),
        ({"RescaleSlope": -10, "RescaleIntercept": 0, "PhotometricInterpretation": "MONOCHROME1"}, FILM, 1),
        ({"RescaleSlope": 0, "RescaleIntercept": 7}, FILM, 1),
    ],
)
def test_which_way_round_a_film_is(tmp_path: Path, header: dict[str, Any], stored: Any, sign: int) -> None:
    write_film(tmp_path / "film.dcm", stored, **header)
    pixels = seen(tmp_path, found(tmp_path))
    assert np.corrcoef(pixels.ravel(), FILM.ravel())[0, 1] * sign > 0.99


def test_films_of_both_photometric_kinds_become_one_picture(tmp_path: Path) -> None:
    write_film(tmp_path / "a" / "film.dcm", FILM)
    write_film(tmp_path / "b" / "film.dcm", (4095 - FILM).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    pictures = [seen(tmp_path / name, found(tmp_path / name)) for name in "ab"]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= WHITE / 4095 + 1


@pytest.mark.parametrize("width", [0, -5])
def test_a_window_without_a_width_is_none_and_is_counted(tmp_path: Path, width: int) -> None:
    write_film(tmp_path / "film.dcm", FILM, WindowCenter=[2000, 1800], WindowWidth=[width, 2500])
    item = found(tmp_path)
    assert (item.geometry["grey"], item.geometry["windows_refused"]) == ("window", 1)
    write_film(tmp_path / "film.dcm", FILM, WindowCenter=2000, WindowWidth=width)
    item = found(tmp_path)
    assert (item.verdict, item.geometry["grey"], item.geometry["windows_refused"]) == ("ok", "stretch", 1)


@pytest.mark.parametrize(
    "header",
    [
        {"WindowCenter": 200_000, "WindowWidth": 30},
        {"WindowCenter": 32_768, "WindowWidth": 65_536, "BitsStored": 16, "HighBit": 15},
        {"VOILUTSequence": [lut(60_000, ROOT, 12)]},
    ],
)
def test_what_shows_next_to_nothing_of_a_picture_is_not_used(tmp_path: Path, header: dict[str, Any]) -> None:
    """8 bits of values in a range of 16 would be a picture of one grey: the check is made on every image."""
    write_film(tmp_path / "film.dcm", chest(top=255), **header)
    item = found(tmp_path)
    assert (item.verdict, item.geometry["grey"], item.geometry["windows_refused"]) == ("ok", "stretch", 1)
    assert np.ptp(np.percentile(seen(tmp_path, item), (1, 99))) > WHITE / 2


def test_one_hot_pixel_does_not_squeeze_a_picture_without_a_window(tmp_path: Path) -> None:
    stored = FILM // 4
    stored[3, 3] = 4095
    write_film(tmp_path / "film.dcm", stored)
    pixels = seen(tmp_path, found(tmp_path))
    low, high = np.percentile(stored, (0.1, 99.9), method="inverted_cdf").astype(float)
    expected = np.clip((stored - low) / (high - low), 0, 1)
    assert np.abs(pixels / WHITE - expected).max() < 1e-4 and pixels[3, 3] == WHITE
    # By the smallest and the largest value the body would be three times as dark.
    assert np.median(pixels) > 2.5 * WHITE * np.median(stored) / 4095


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_are_masked_or_extend_the_sign(tmp_path: Path, signed: bool) -> None:
    values = FILM.astype(np.int32) - (2048 if signed else 0)
    clean = (values & 0xFFF).astype(np.uint16)
    dotted = clean | (np.random.default_rng(1).integers(0, 16, FILM.shape) << 12).astype(np.uint16)
    header: dict[str, Any] = {"PixelRepresentation": int(signed), "WindowCenter": 0 if signed else 2048}
    for name, stored in (("clean", values.astype(np.int16 if signed else np.uint16)), ("dotted", dotted)):
        write_film(tmp_path / name / "film.dcm", stored, WindowWidth=4096, **header)
    pictures = [seen(tmp_path / name, found(tmp_path / name)) for name in ("clean", "dotted")]
    assert np.array_equal(*pictures) and np.ptp(pictures[0]) > WHITE / 2


def test_spare_bits_of_a_compressed_film_are_masked_too(tmp_path: Path) -> None:
    dotted = FILM | (np.random.default_rng(1).integers(0, 16, FILM.shape) << 12).astype(np.uint16)
    encoded = imagecodecs.jpeg2k_encode(dotted, reversible=True, level=0, codecformat="j2k")
    syntax = "1.2.840.10008.1.2.4.90"
    write_film(tmp_path / "a" / "film.dcm", dotted, encoded, syntax=syntax, WindowCenter=2048, WindowWidth=4096)
    write_film(tmp_path / "b" / "film.dcm", FILM, WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(*(seen(tmp_path / name, found(tmp_path / name)) for name in "ab"))


@pytest.mark.parametrize(
    ("syntax", "encode", "apart"),
    [
        ("1.2.840.10008.1.2.4.70", lambda film: imagecodecs.ljpeg_encode(film, bitspersample=12), 0),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode, 0),
        (
            "1.2.840.10008.1.2.4.90",
            lambda film: imagecodecs.jpeg2k_encode(film, reversible=True, level=0, codecformat="j2k", bitspersample=12),
            0,
        ),
        ("1.2.840.10008.1.2.4.51", lambda film: imagecodecs.jpeg_encode(film, bitspersample=12, lossless=False), 600),
        ("1.2.840.10008.1.2.4.50", lambda film: imagecodecs.jpeg8_encode((film >> 4).astype(np.uint8), level=95), 3000),
    ],
)
def test_compressed_films_are_the_same_picture(
    tmp_path: Path, syntax: str, encode: Callable[[Any], bytes], apart: int
) -> None:
    eight = syntax.endswith(".50")
    stored = (FILM >> 4).astype(np.uint8) if eight else FILM
    window = {"WindowCenter": 128, "WindowWidth": 256} if eight else {"WindowCenter": 2048, "WindowWidth": 4096}
    write_film(tmp_path / "a" / "film.dcm", stored, encode(FILM), syntax=syntax, **window)
    write_film(tmp_path / "b" / "film.dcm", stored, **window)
    items = [found(tmp_path / name) for name in "ab"]
    assert [item.verdict for item in items] == ["ok", "ok"]
    pictures = [seen(tmp_path / name, item) for name, item in zip("ab", items, strict=True)]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= apart


def test_padding_is_black_and_counts_in_no_statistic(tmp_path: Path) -> None:
    border = np.zeros(FILM.shape, dtype=bool)
    border[:30], border[:, :20] = True, True
    for name, padding, header in (
        ("value", 4095, {"PixelPaddingValue": 4095}),
        ("range", 4000, {"PixelPaddingValue": 3990, "PixelPaddingRangeLimit": 4095}),
        ("beyond", 0xF000 | 5, {"PixelPaddingValue": 0xF000 | 5}),
    ):
        stored = np.where(border, padding, FILM // 2).astype(np.uint16)
        for photometric in ("MONOCHROME1", "MONOCHROME2"):
            folder = tmp_path / name / photometric
            write_film(folder / "film.dcm", stored, PhotometricInterpretation=photometric, **header)
            pixels = seen(folder, found(folder))
            assert not pixels[border].any()
            inside = pixels[~border]
            assert np.percentile(inside, 99) > 0.9 * WHITE and np.percentile(inside, 1) < 0.2 * WHITE


def test_a_film_that_is_all_padding_is_blank(tmp_path: Path) -> None:
    write_film(tmp_path / "film.dcm", np.full((300, 300), 77, np.uint16), PixelPaddingValue=77)
    assert found(tmp_path).verdict == "failed_blank"


def test_no_table_of_a_window_is_worked_out_by_hand() -> None:
    """Width 4 at centre 2 of PS3.3 C.11.2.1.2.1: black up to 0, white above 3, a third a step."""
    stored = np.array([[0, 1, 2, 3, 9]], np.uint16)
    made = picture(stored, GreyScale(window=Window(2, 4)), (0.1, 99.9))
    assert made.pixels[0].tolist() == [0, WHITE // 3, 2 * WHITE // 3, WHITE, WHITE]
    assert Window(2, 1).of(np.array([1.0, 1.5, 2.0])).tolist() == [0, 0, 1]


def test_overlays_are_never_burned_in(tmp_path: Path) -> None:
    write_film(tmp_path / "a" / "film.dcm", FILM)
    write_film(tmp_path / "b" / "film.dcm", FILM)
    dataset = pydicom.dcmread(tmp_path / "b" / "film.dcm")
    dataset.add_new(0x60000010, "US", FILM.shape[0])
    dataset.add_new(0x60000011, "US", FILM.shape[1])
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60003000, "OW", b"\xff" * (FILM.size // 8))
    dataset.save_as(tmp_path / "b" / "film.dcm")
    assert np.array_equal(*(seen(tmp_path / name, found(tmp_path / name)) for name in "ab"))


def test_a_table_that_is_cut_short_is_no_table(tmp_path: Path) -> None:
    item_of_table = lut(0, ROOT, 12)
    item_of_table.LUTData = item_of_table.LUTData[:100]
    write_film(tmp_path / "film.dcm", FILM, VOILUTSequence=[item_of_table])
    assert (found(tmp_path).verdict, found(tmp_path).geometry["grey"]) == ("ok", "stretch")


def test_a_film_that_changed_after_it_was_indexed_is_not_read(tmp_path: Path) -> None:
    write_film(tmp_path / "film.dcm", FILM)
    item = found(tmp_path)
    write_film(tmp_path / "film.dcm", FILM // 2)
    with pytest.raises(VerdictError, match="failed_changed"):
        seen(tmp_path, item)
