"""One file's picture: DICOM through its grey scale, JPEG and PNG as they stand. All of it is decoded."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from extractors.cxr.grey import GreyScale, Picture, contrast_of, picture
from extractors.cxr.header import FilmHeader, kind_of, read_header
from extractors.dicom.elements import Header, read_elements
from extractors.dicom.pixels import FrameReader, PixelFormat, is_whole, pixel_format, stored_values
from extractors.items import EDGE_BYTES, OK, VerdictError

Origin = Literal["dicom", "jpeg", "png"]
MAX_SIDE = 8192  # detectors have up to 4,800 pixels, scanned films 6,000
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_SUFFIXES = {".dcm", ".dicom", ".dic", ".ima"}
_MAGIC: tuple[tuple[bytes, Origin], ...] = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"))
_ENDINGS: dict[str, Origin] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}
_EIGHT_BITS = 257  # 0 to 255 become 0 to 65,535
_TAIL = b"\x5a" * 4096
_PLAIN = PixelFormat("", 1, 1, 16, 16, 15, False, 1, True)  # of what has a format that no film has


@dataclass(frozen=True)
class DicomFilm:
    """A DICOM file whose class may be an x-ray's, before its pixels are read.

    `verdict`: `ok`, or what keeps its pixels from being read; `header` is None where it is of another class.
    """

    elements: Header
    verdict: str
    form: PixelFormat | None = None
    header: FilmHeader | None = None


def origin_of(head: bytes, path: str) -> Origin | None:
    """What a file is by its first bytes, and by its name where they are damaged; None for what is none of the three."""
    for magic, origin in _MAGIC:
        if head.startswith(magic):
            return origin
    suffix = PurePosixPath(path).suffix.lower()
    if head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00") or suffix in _SUFFIXES:
        return "dicom"
    return _ENDINGS.get(suffix)


def may_be_other(head: bytes, path: str) -> bool:
    """Whether a file that begins as a bare data set does may be something else: only its first bytes say so."""
    return head[128:132] != b"DICM" and PurePosixPath(path).suffix.lower() not in _SUFFIXES


def open_dicom(file: BinaryIO, size: int) -> DicomFilm | None:
    """A DICOM file's header; None for a directory of a medium, which counts for nothing.

    Raises:
        Exception: anything, on damaged bytes.
    """
    elements = read_elements(file, size)
    if elements.media_class == MEDIA_DIRECTORY:
        return None
    kind = kind_of(elements)
    if kind != OK:
        return DicomFilm(elements, kind)
    form, verdict = None, OK
    try:
        form = pixel_format(elements, MAX_SIDE)
    except VerdictError as error:
        verdict = error.verdict
    header = read_header(elements, form or _PLAIN)
    if header.kind != OK:
        verdict = header.kind
    elif form is not None and form.frames != 1:
        verdict = "refused_several_frames"
    elif header.texts["SamplesPerPixel"] not in ("", "1"):
        verdict = "refused_not_grey"
    elif not header.texts["PhotometricInterpretation"].upper().startswith("MONOCHROME"):
        verdict = "refused_not_grey" if header.texts["PhotometricInterpretation"] else "failed_unreadable"
    elif form is not None and not is_whole(elements, form, EDGE_BYTES):
        verdict = "failed_unreadable"
    return DicomFilm(elements, verdict, form, header)


def dicom_picture(film: DicomFilm, stretch: tuple[float, float]) -> Picture:
    """The picture of a file of which `open_dicom` says `ok`.

    Raises:
        VerdictError: of its pixels.
    """
    if film.verdict != OK or film.form is None or film.header is None:
        raise VerdictError(film.verdict if film.verdict != OK else "failed_unreadable")
    form, scale = film.form, film.header.scale
    raw = FrameReader(film.elements, form, lenient=True).raw(0)
    stored = stored_values(raw, form)
    padded = None
    if scale.padding is not None and stored is not raw:
        # Padding may lie outside the range of BitsStored, where only the unmasked value still shows it.
        padded = (raw >= scale.padding[0]) & (raw <= scale.padding[1])
    return picture(stored, scale, stretch, padded)


def image_picture(file: BinaryIO, stretch: tuple[float, float], *, whole: bool) -> Picture:
    """The picture of a JPEG or PNG file: 8 bits as they stand, more by the range of their values.

    Args:
        whole: whether a JPEG is decoded twice to see that it is (its decoder fills up what is missing before an end),
            and its contrast is told.

    Raises:
        VerdictError: refused_several_frames, refused_not_grey, failed_implausible_size, failed_unreadable.
        Exception: anything, on damaged bytes.
    """
    from PIL import Image

    with Image.open(file, formats=("JPEG", "PNG")) as image:
        if getattr(image, "n_frames", 1) != 1:
            raise VerdictError("refused_several_frames")
        if max(image.size) > MAX_SIDE:
            raise VerdictError("failed_implausible_size")
        kind = image.format
        pixels = _grey(image)
    if whole and kind == "JPEG" and not _ends_with_its_pixels(file, pixels):
        raise VerdictError("failed_unreadable")
    if pixels.dtype == np.uint8:
        contrast = contrast_of(pixels) if whole else 0.0
        return Picture(pixels * np.uint16(_EIGHT_BITS), "display", False, contrast)
    return picture(pixels, GreyScale(), stretch)


def _grey(image: Any) -> npt.NDArray[Any]:
    """(rows, columns), uint8 or the file's own 16 bits. Colours that are grey are; PIL would cut 16 bits at 255."""
    if image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "1":
        raise VerdictError("refused_not_grey")
    pixels = np.asarray(image.convert("RGB") if image.mode in ("P", "PA") else image)
    if image.mode in ("L", "LA"):
        return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., 0])
    if image.mode not in ("RGB", "RGBA", "P", "PA") or (pixels[..., :3] != pixels[..., :1]).any():
        raise VerdictError("refused_not_grey")
    return np.ascontiguousarray(pixels[..., 0])


def _ends_with_its_pixels(file: BinaryIO, pixels: npt.NDArray[Any]) -> bool:
    """Whether other bytes behind a JPEG's last ones change nothing, as where a frame is full."""
    from PIL import Image

    file.seek(0)
    data = file.read()
    end = data.rfind(b"\xff\xd9")
    if end < 0:
        return False
    with Image.open(BytesIO(data[:end] + _TAIL + data[end:]), formats=("JPEG",)) as image:
        return np.array_equal(_grey(image), pixels)


def read_picture(path: Path, relative: str, stretch: tuple[float, float]) -> Picture:
    """The picture of a file that was indexed.

    Raises:
        VerdictError: of the file.
        Exception: anything, on damaged bytes.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if origin_of(file.read(512), relative) == "dicom":
            film = open_dicom(file, size)
            if film is None:
                raise VerdictError("failed_unreadable")
            return dicom_picture(film, stretch)
        file.seek(0)
        return image_picture(file, stretch, whole=False)
