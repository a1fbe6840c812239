"""Direct decoding gives OpenSlide's pixels for every encoding, or OpenSlide reads the slide."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from extractors.items import UnitBatch
from extractors.wsi import read as slide_read
from extractors.wsi import tiles
from extractors.wsi.plan import TilePlan, open_slide
from extractors.wsi.read import SlideReader, resample
from extractors.wsi.tiff import tiled_pages
from extractors.wsi.tiles import direct_tiles
from tests.support.images.phantoms import stained

DESCRIPTION = "Aperio Image Library v1\n{width}x{height}|AppMag = 20|MPP = 0.5"


def texture(height: int = 900, width: int = 1100) -> np.ndarray:
    """Coloured waves with noise in one half, white in the other, so that there is tissue and an edge."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.stack([150 + 60 * np.sin(x / 9), 110 + 60 * np.cos(y / 7), 130 + 60 * np.sin((x + y) / 13)], axis=2)
    noise = np.random.default_rng(0).normal(0, 10, waves.shape)
    image = np.clip(waves + noise, 0, 255).astype(np.uint8)
    image[: height // 4, : width // 4] = 245
    return image


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG's tables as a separate stream, and the rest."""
    tables, rest, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            tables += stream[at:end]
        else:
            rest += stream[at:end]
        at = end
    return tables + b"\xff\xd9", rest + stream[at:]


def encode(tile: np.ndarray, kind: str) -> bytes:
    if kind.startswith("jpeg-rgb"):
        return bytes(imagecodecs.jpeg8_encode(tile, level=85, colorspace="RGB", outcolorspace="RGB"))
    if kind.startswith("jpeg"):
        return bytes(imagecodecs.jpeg8_encode(tile, level=85, subsampling=kind[5:8]))
    if kind == "j2k-ycbcr":
        tile = np.asarray(Image.fromarray(tile).convert("YCbCr"))
    return bytes(imagecodecs.jpeg2k_encode(tile, level=45, codecformat="J2K", mct=False))


KINDS: dict[str, dict[str, Any]] = {
    "jpeg-420": {"compression": 7, "photometric": "ycbcr", "subsampling": (2, 2)},
    "jpeg-422": {"compression": 7, "photometric": "ycbcr", "subsampling": (2, 1)},
    "jpeg-444": {"compression": 7, "photometric": "ycbcr", "subsampling": (1, 1)},
    "jpeg-rgb": {"compression": 7, "photometric": "rgb"},
    "jpeg-420-tables": {"compression": 7, "photometric": "ycbcr", "subsampling": (2, 2)},
    "j2k-ycbcr": {"compression": 33003, "photometric": "ycbcr", "subsampling": (1, 1)},
    "j2k-rgb": {"compression": 33005, "photometric": "rgb"},
}


def write_encoded(
    path: Path, kind: str, side: int = 256, missing: tuple[int, ...] = (), levels: int = 1, **file: Any
) -> None:
    """An Aperio-like slide whose tiles are encoded here; those in `missing` have no bytes."""
    whole = texture()
    with tifffile.TiffWriter(path, **file) as tiff:
        for level in range(levels):
            image = whole[:: 4**level, :: 4**level]
            rows, columns = -(-image.shape[0] // side), -(-image.shape[1] // side)
            padded = np.pad(
                image, ((0, rows * side - image.shape[0]), (0, columns * side - image.shape[1]), (0, 0)), mode="edge"
            )
            parts = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
            streams = [encode(np.ascontiguousarray(part), kind) for part in parts]
            extra: dict[str, Any] = {}
            if kind.endswith("tables"):
                extra["jpegtables"] = split_tables(streams[0])[0]
                streams = [split_tables(stream)[1] for stream in streams]
            tiff.write(
                iter(streams),
                shape=image.shape,
                dtype=np.uint8,
                tile=(side, side),
                subfiletype=min(level, 1),
                description=DESCRIPTION.format(width=image.shape[1], height=image.shape[0]),
                metadata=None,
                **KINDS[kind],
                **extra,
            )
    if missing:
        with tifffile.TiffFile(path, mode="r+") as written:
            counts = written.pages[0].tags["TileByteCounts"]
            counts.overwrite([0 if n in missing else count for n, count in enumerate(counts.value)])


def whole(path: Path, mpp: float = 0.5, size: int = 64) -> tuple[SlideReader, Iterator[UnitBatch]]:
    reader = SlideReader(path, {"mpp_x": mpp, "mpp_y": mpp, "marker_colours": ()})
    starts = range(0, len(reader.plan), size)
    return reader, (reader.block(start, min(start + size, len(reader.plan))) for start in starts)


def pixels(path: Path, mpp: float = 0.5) -> tuple[str, np.ndarray]:
    reader, blocks = whole(path, mpp)
    return reader.how, np.concatenate([block.pixels for block in blocks])


def differences(path: Path, monkeypatch: pytest.MonkeyPatch, mpp: float = 0.5) -> tuple[str, int]:
    """Which reader was used, and its largest difference from OpenSlide over all tiles of the slide."""
    how, found = pixels(path, mpp)
    with monkeypatch.context() as patch:
        patch.setattr(slide_read, "direct_tiles", lambda *given: (None, "openslide:layout"))
        _, by_openslide = pixels(path, mpp)
    assert found.shape == by_openslide.shape and len(found)
    return how, int(np.abs(found.astype(int) - by_openslide).max())


@pytest.mark.whole
@pytest.mark.parametrize(
    ("kind", "side"),
    [
        *((kind, 256) for kind in KINDS),
        *((kind, side) for kind in ("jpeg-420-tables", "j2k-rgb") for side in (240, 512)),
    ],
)
def test_every_encoding_is_read_as_openslide_reads_it(
    tmp_path: Path, kind: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoded(tmp_path / "a.svs", kind, side)
    how, worst = differences(tmp_path / "a.svs", monkeypatch)
    assert how == "direct" and worst <= (1 if kind == "j2k-ycbcr" else 0)


@pytest.mark.parametrize("file", [{"bigtiff": True}, {"byteorder": ">", "bigtiff": True}])
def test_both_kinds_of_tiff_in_both_byte_orders(
    tmp_path: Path, file: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_encoded(tmp_path / "a.svs", "jpeg-420-tables", **file)
    assert differences(tmp_path / "a.svs", monkeypatch) == ("direct", 0)


def test_a_classic_tiff_in_the_other_byte_order_has_the_same_layout(tmp_path: Path) -> None:
    pages = []
    for order in "<>":
        write_encoded(tmp_path / "a.svs", "jpeg-420-tables", levels=2, byteorder=order)
        pages.append(tiled_pages(tmp_path / "a.svs"))
    for little, big in zip(*pages, strict=True):
        assert np.array_equal(little.counts, big.counts) and little.tables == big.tables and little.tables
        assert (little.width, little.tile_width, little.plain) == (big.width, big.tile_width, True)


@pytest.mark.whole
@pytest.mark.parametrize(
    "encoding",
    [
        {"compression": None},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate"},
        {"compression": "deflate", "predictor": True},
    ],
)
def test_lossless_tiles(tmp_path: Path, encoding: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    description = DESCRIPTION.format(width=1100, height=900)
    tifffile.imwrite(
        tmp_path / "a.svs", texture(), tile=(256, 256), photometric="rgb", description=description, metadata=None,
        **encoding,
    )  # fmt: skip
    assert differences(tmp_path / "a.svs", monkeypatch) == ("direct", 0)


@pytest.mark.parametrize("mpp", [0.25, 0.2521, 0.4, 0.499, 0.125, 0.13])
def test_every_scale_and_level(tmp_path: Path, mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoded(tmp_path / "a.svs", "jpeg-420", 240, levels=2)
    assert differences(tmp_path / "a.svs", monkeypatch, mpp) == ("direct", 0)


@pytest.mark.parametrize(
    ("name", "mpp"), [("cmu-1-small-region.svs", 0.499), ("cmu-1-small-region.svs", 0.25), ("boxes.tiff", 0.5)]
)
def test_whole_real_slides(real_data: Path, name: str, mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences(real_data / "wsi" / name, monkeypatch, mpp) == ("direct", 0)


def test_missing_tiles_are_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoded(tmp_path / "a.svs", "jpeg-420", missing=(6, 7))
    assert differences(tmp_path / "a.svs", monkeypatch) == ("direct", 0)
    reader = SlideReader(tmp_path / "a.svs", {"mpp_x": 0.25, "mpp_y": 0.25, "marker_colours": ()})
    tile = reader.block(0, 1).pixels[0]  # of source tiles 0, 1, 5 and 6
    assert reader.plan.corners[0].tolist() == [0, 0] and (tile[132:, 132:] == 255).all() and tile[:, :120].std() > 5


def wrong(change: Any) -> Any:
    load = tiles.DirectTiles._load

    def loaded(self: tiles.DirectTiles, number: int, into: np.ndarray) -> bool:
        good = load(self, number, into)
        into[:] = change(number, into)
        return good

    return loaded


def swapped(number: int, tile: np.ndarray) -> np.ndarray:
    return tile[..., ::-1].copy()


def shifted(number: int, tile: np.ndarray) -> np.ndarray:
    return np.roll(tile, 1, axis=1)


def brighter(number: int, tile: np.ndarray) -> np.ndarray:
    return np.where(tile < 250, tile + 2, tile)


def one_tile_black(number: int, tile: np.ndarray) -> np.ndarray:
    return np.zeros_like(tile) if number == 12 else tile


@pytest.mark.parametrize("change", [swapped, shifted, brighter, one_tile_black])
def test_a_wrong_decoder_gives_way_to_openslide(tmp_path: Path, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoded(tmp_path / "a.svs", "jpeg-420")
    _, right = pixels(tmp_path / "a.svs")
    monkeypatch.setattr(tiles.DirectTiles, "_load", wrong(change))
    monkeypatch.setattr(tiles, "SAMPLES", 64)
    how, found = pixels(tmp_path / "a.svs")
    assert how == "openslide:differs" and np.array_equal(found, right)


def test_a_colour_space_that_the_tiff_denies_is_read_as_openslide_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RGB stored as YCbCr without a marker for it: the colours are wrong, but both readers give the same."""
    monkeypatch.setitem(KINDS, "jpeg-rgb", {"compression": 7, "photometric": "ycbcr", "subsampling": (1, 1)})
    write_encoded(tmp_path / "a.svs", "jpeg-rgb")
    assert differences(tmp_path / "a.svs", monkeypatch)[1] == 0


def test_layouts_that_are_not_plain_go_through_openslide(real_data: Path) -> None:
    path = real_data / "wsi" / "dicom-sm" / "sm_image.dcm"
    with open_slide(path) as opened:
        assert direct_tiles(path, opened, plan_of(256.0), "0") == (None, "openslide:layout")


def test_samples_are_the_same_in_every_process_and_differ_between_slides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    aligned = tiles._aligned
    monkeypatch.setattr(tiles, "_aligned", lambda *given: seen.append(given[2]) or aligned(*given))
    monkeypatch.setattr(tiles, "SAMPLES", 4)
    drawn = []
    for kind in ("jpeg-420", "jpeg-420", "jpeg-444"):
        write_encoded(tmp_path / "a.svs", kind)
        seen.clear()
        whole(tmp_path / "a.svs")
        drawn.append(list(seen))
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) >= 4


def test_bytes_that_are_no_tile_of_this_size_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    """A stream declares 65,500 x 65,500 pixels where a tile of 256 x 256 must be."""
    for kind in ("jpeg-420", "j2k-rgb"):
        write_encoded(tmp_path / "a.svs", kind)
        content = bytearray((tmp_path / "a.svs").read_bytes())
        with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
            start = tiff.pages[0].dataoffsets[12]
        if kind == "j2k-rgb":
            content[start + 8 : start + 16] = (65_500).to_bytes(4, "big") * 2
        else:
            frame = content.index(b"\xff\xc0", start)
            content[frame + 5 : frame + 9] = (65_500).to_bytes(2, "big") * 2
        (tmp_path / "a.svs").write_bytes(content)
        reader, blocks = whole(tmp_path / "a.svs")
        assert sum(block.failed for block in blocks) == 1, (kind, reader.how)


@pytest.mark.parametrize(
    ("where", "what"),
    [(slice(40, 42), b"\x05\xdc"), (slice(40, 42), b"\0\1"), (slice(42, 43), b"\x0f"), (slice(43, 44), b"\2")],
)
def test_jpeg_2000_of_other_components_is_refused_before_it_is_decoded(
    where: slice, what: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,500 components in 23 KB would take half a gigabyte."""
    image = texture()[:256, :256]
    data = bytearray(imagecodecs.jpeg2k_encode(image, codecformat="j2k", reversible=True, level=0))
    none = np.zeros(1, np.uint64)
    decoder = tiles._decoder(tiles.TiledPage(256, 256, 256, 256, 33005, 2, 1, True, True, None, none, none))
    assert decoder is not None
    into = np.empty((256, 256, 3), np.uint8)
    decoder(bytes(data), into)
    assert np.array_equal(into, image)
    asked: list[int] = []
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda *given, **named: asked.append(1))
    data[where] = what
    with pytest.raises(ValueError, match="another size"):
        decoder(bytes(data), into)
    assert not asked


def plan_of(across: float, down: float | None = None) -> TilePlan:
    none = np.empty((0, 2), np.int64)
    return TilePlan(none, none, 0, (across, down or across), 256)


def weights(count: int, extent: float, a: float = -0.5, shift: float = 0.0) -> np.ndarray:
    """The antialiased cubic convolution of Keys (1981), (256, count) float64, cut off at the edges and normalised."""
    step = extent / 256
    centres = (np.arange(256) + 0.5 + shift) * step
    x = np.abs(np.arange(count) + 0.5 - centres[:, None]) / max(step, 1.0)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    table = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return table / table.sum(axis=1, keepdims=True)


def in_float64(window: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Columns first; each step is rounded to bytes, as in PIL."""
    half = np.clip(np.rint(across @ window.astype(np.float64)), 0, 255)
    return np.clip(np.rint(np.tensordot(down, half, 1)), 0, 255)


def near(tile: np.ndarray, other: np.ndarray) -> bool:
    """No value differs by more than two grey levels, and at most one value in a hundred differs."""
    off = np.abs(tile.astype(int) - other)
    return bool(off.max() <= 2 and (off > 0).mean() < 0.01)


def noisy(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    window = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    window[height // 5 : height // 2] = rng.choice([0, 255], (height // 2 - height // 5, width, 3))
    return window


@pytest.mark.whole
@pytest.mark.parametrize(
    ("across", "down"),
    [(512.0, 512.0), (507.735, 507.735), (400.3, 611.9), (256.4, 256.4), (130.1, 140.7), (1920.2,) * 2],
)
def test_resampling_is_pils_bicubic_at_every_scale(across: float, down: float) -> None:
    plan = plan_of(across, down)
    window = noisy(3, plan.window[1], plan.window[0])
    tile = np.empty((256, 256, 3), np.uint8)
    resample(window, plan, tile)
    x, y = weights(window.shape[1], across), weights(window.shape[0], down)
    assert near(tile, in_float64(window, x, y))
    assert near(
        tile, np.asarray(Image.fromarray(window).resize((256, 256), Image.Resampling.BICUBIC, (0, 0, across, down)))
    )
    for wrong in (weights(len(y.T), down, a=-0.75), weights(len(y.T), down, shift=0.1)):
        assert not near(tile, in_float64(window, x, wrong))
    if across % 1:
        assert not near(tile, in_float64(window, weights(window.shape[1], window.shape[1]), y))


def test_a_window_that_may_not_be_written_to_is_resampled_too() -> None:
    window, tiles = noisy(5, 512, 512), np.empty((2, 256, 256, 3), np.uint8)
    resample(window, plan_of(512.0), tiles[0])
    window.flags.writeable = False
    resample(window, plan_of(512.0), tiles[1])
    assert np.array_equal(tiles[0], tiles[1])


def test_what_the_direct_reader_reads_is_the_pyramid_level_alone(tmp_path: Path) -> None:
    """After the index, noise fills thumbnail, label and macro: no pixel changes and nothing fails."""
    description = DESCRIPTION.format(width=1100, height=900)
    secret = stained(400)
    with tifffile.TiffWriter(tmp_path / "a.svs") as tiff:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "jpeg"}
        tiff.write(texture(), tile=(256, 256), description=description, **options)
        tiff.write(secret, description=description, rowsperstrip=64, **options)
        for name, kind in (("label", 1), ("macro", 9)):
            text = f"Aperio Image Library v1\n{name} 400x400"
            tiff.write(secret, description=text, subfiletype=kind, rowsperstrip=64, **options)
    before = pixels(tmp_path / "a.svs")
    content = bytearray((tmp_path / "a.svs").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        for page in tiff.pages[1:]:
            for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                content[start : start + size] = hashlib.shake_128(b"noise").digest(size)
    (tmp_path / "a.svs").write_bytes(content)
    after = pixels(tmp_path / "a.svs")
    assert before[0] == after[0] == "direct" and np.array_equal(before[1], after[1])


@pytest.mark.parametrize("what", ["cut", "hole"])
def test_a_jpeg_tile_that_was_cut_or_blanked_is_counted(tmp_path: Path, what: str) -> None:
    """libjpeg fills the missing part with grey and only warns."""
    write_encoded(tmp_path / "a.svs", "jpeg-444")
    content = bytearray((tmp_path / "a.svs").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.svs") as tiff:
        start, size = tiff.pages[0].dataoffsets[12], tiff.pages[0].databytecounts[12]
    if what == "cut":
        content[start + size // 2 : start + size] = bytes(size - size // 2)
    else:
        content[start + size // 2 : start + size // 2 + 1000] = bytes(1000)
    (tmp_path / "a.svs").write_bytes(content)
    reader = SlideReader(tmp_path / "a.svs", {"mpp_x": 0.5, "mpp_y": 0.5, "marker_colours": ()})
    if reader.how == "direct":
        assert reader.block(0, len(reader.plan)).failed == 1
    else:
        assert reader.how == "openslide:differs"


@pytest.mark.parametrize("kind", ["jpeg-420", "jpeg-444"])
def test_a_jpeg_tile_that_ends_before_its_last_blocks_is_refused(kind: str, tmp_path: Path) -> None:
    """libjpeg leaves these blocks grey, and OpenSlide refuses the tile; a tile that is really grey is accepted."""
    write_encoded(tmp_path / "a.svs", kind)
    (page,) = tiled_pages(tmp_path / "a.svs")
    decoder = tiles._decoder(page)
    assert decoder is not None
    content = (tmp_path / "a.svs").read_bytes()
    data = content[int(page.offsets[12]) :][: int(page.counts[12])]
    into = np.empty((256, 256, 3), np.uint8)
    decoder(data, into)
    with pytest.raises(ValueError, match="cut"):
        decoder(data[: len(data) * 9 // 10] + b"\xff\xd9", into)
