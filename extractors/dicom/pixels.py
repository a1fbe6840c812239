"""Stored pixel values of one frame, by the fastest decoder that is installed and right for its transfer syntax.

Every claim of size is checked before memory is taken for it: rows and columns against what scanners make, and the
codestream's own dimensions against the header's, so that a few bytes cannot ask for gigabytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from extractors.dicom.elements import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    Header,
    quiet,
)
from extractors.dicom.lossless import fills_frame
from extractors.items import VerdictError

MAX_SIDE = 4096  # pixels; the largest CT matrices are 2,048
MAX_FRAMES = 10_000
MAX_ENCODED = 256 << 20  # bytes of one encoded frame

NATIVE = {IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN, DEFLATED}
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
# Baseline of 8 and extended of 12 bits.
JPEG_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class PixelFormat:
    """How a data set's frames are stored (PS3.3 C.7.6.3)."""

    syntax: str
    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    signed: bool
    frames: int
    little: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """A pixel's type as it lies in memory."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")


def pixel_format(header: Header, max_side: int = MAX_SIDE) -> PixelFormat:
    """A header's pixel format.

    Args:
        max_side: rows and columns that the modality's devices make at most.

    Raises:
        VerdictError: failed_implausible_size, failed_too_many_units, failed_unreadable.
    """
    rows, columns, frames = header.whole("Rows"), header.whole("Columns"), header.whole("NumberOfFrames", 1)
    allocated = header.whole("BitsAllocated")
    stored = header.whole("BitsStored", allocated)
    high = header.whole("HighBit", stored - 1)
    if max(rows, columns) > max_side:
        raise VerdictError("failed_implausible_size")
    if frames > MAX_FRAMES:
        raise VerdictError("failed_too_many_units")
    if min(rows, columns, frames) < 1 or allocated not in (8, 16, 32) or not 1 <= stored <= high + 1 <= allocated:
        raise VerdictError("failed_unreadable")
    signed = header.whole("PixelRepresentation") == 1
    return PixelFormat(header.syntax, rows, columns, allocated, stored, high, signed, frames, header.little)


def is_whole(header: Header, form: PixelFormat, edge: int) -> bool:
    """Whether the pixel data reach their end, as far as can be said without reading them all."""
    if header.pixels is None:
        return False
    at, length = header.pixels
    if form.syntax in NATIVE:
        wanted = form.frame_bytes * form.frames
        return header.size - at >= wanted and (length is None or length >= wanted)
    left = header.size - at
    header.file.seek(header.size - min(left, edge))
    return length is None and b"\xfe\xff\xdd\xe0" in header.file.read(edge)


class FrameReader:
    """The frames of one data set, as stored values, one after the other or at will.

    `lenient`: where grey values are no measurement, lossy JPEG is decoded too, and bits above BitsStored that a
    codestream holds are left to `stored_values` to mask; without it they are no frame.
    """

    def __init__(self, header: Header, form: PixelFormat, *, lenient: bool = False) -> None:
        if header.pixels is None:
            raise VerdictError("failed_unreadable")
        self._lenient = lenient
        self._file, self._size, self._form = header.file, header.size, form
        self._start = header.pixels[0]
        self._frames: list[list[tuple[int, int]]] | None = None

    def raw(self, number: int) -> Pixels:
        """Frame `number` (rows, columns) as its bytes say, bits above BitsStored included.

        Raises:
            VerdictError: failed_unreadable, where no decoder reads it; failed_implausible_size.
        """
        form = self._form
        if form.syntax in NATIVE:
            self._file.seek(self._start + number * form.frame_bytes)
            data = self._file.read(form.frame_bytes)
            if len(data) != form.frame_bytes:
                raise VerdictError("failed_unreadable")
            lying = form.dtype.newbyteorder("<" if form.little else ">")
            pixels = np.frombuffer(data, lying).reshape(form.rows, form.columns)
            return pixels.astype(form.dtype, copy=False)
        if self._frames is None:
            self._frames = _frames(list(self._fragments()), form.frames, self._offsets)
        if number >= len(self._frames):
            raise VerdictError("failed_unreadable")
        parts = []
        for at, length in self._frames[number]:
            self._file.seek(at)
            parts.append(self._file.read(length))
        return decode(b"".join(parts), form, lenient=self._lenient)

    def _fragments(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each fragment (PS3.5 A.4); keeps the basic offset table."""
        at = self._start
        table: tuple[int, int] | None = None
        while True:
            self._file.seek(at)
            head = self._file.read(8)
            tag, length = head[:4], int.from_bytes(head[4:8], "little")
            if tag == b"\xfe\xff\xdd\xe0":
                return
            if tag != b"\xfe\xff\x00\xe0" or at + 8 + length > self._size or length > MAX_ENCODED:
                raise VerdictError("failed_unreadable")
            if table is None:
                table = at + 8, length
                self._offsets = np.frombuffer(self._file.read(length // 4 * 4), "<u4").astype(np.int64)
                self._base = at + 8 + length
                self._offsets += self._base
            else:
                yield at + 8, length
            at += 8 + length


def _frames(
    fragments: Sequence[tuple[int, int]], count: int, offsets: npt.NDArray[np.int64]
) -> list[list[tuple[int, int]]]:
    """The fragments of each frame."""
    if count == 1:
        return [list(fragments)]
    if len(fragments) == count:
        return [[fragment] for fragment in fragments]
    if len(offsets) != count:  # several fragments a frame, and nothing that says whose
        raise VerdictError("failed_unreadable")
    starts = np.array([at - 8 for at, _ in fragments], dtype=np.int64)
    owner = np.searchsorted(offsets, starts, side="right") - 1
    if not set(offsets.tolist()) <= set(starts.tolist()) or (owner < 0).any() or (np.diff(offsets) <= 0).any():
        raise VerdictError("failed_unreadable")
    return [[fragments[int(index)] for index in np.flatnonzero(owner == frame)] for frame in range(count)]


def decode(data: bytes, form: PixelFormat, *, lenient: bool = False) -> Pixels:
    """One encoded frame, (rows, columns), of the header's type: the first decoder that manages it; `lenient` as for
    `FrameReader`.

    Decoders fill up what is missing of a frame and say nothing: its end is looked at before, and of JPEG Lossless,
    where any bits are some pixels, whether the last bytes of it made the last pixels.

    Raises:
        VerdictError: failed_unreadable; failed_implausible_size where the codestream's size is not the header's.
    """
    decoders = {**DECODERS, **LOSSY_DECODERS} if lenient else DECODERS
    if form.syntax not in decoders:
        raise VerdictError("failed_unreadable")
    if form.syntax != RLE and codestream_size(data) != (form.rows, form.columns, 1):
        raise VerdictError("failed_implausible_size")
    if not _has_its_end(data, form.syntax):
        raise VerdictError("failed_unreadable")
    for decoder in decoders[form.syntax]:
        try:
            pixels = decoder(data, form)
        except MemoryError:
            raise
        except Exception:  # decoders raise almost anything on bytes that they do not like: the next one
            continue
        if pixels.shape == (form.rows, form.columns) and pixels.dtype.kind in "iu":
            if form.syntax in JPEG_LOSSLESS and not _fills_frame(data, pixels, decoder, form):
                break
            return _as_stored(pixels, form, spare_bits=lenient)
    raise VerdictError("failed_unreadable")


def _has_its_end(data: bytes, syntax: str) -> bool:
    """Whether an encoded frame ends as its syntax has it, and JPEG 2000 has no hole.

    Entropy-coded data of JPEG 2000 have no long runs of zeros, and its decoder takes a blank sector for data; in JPEG
    Lossless zeros may be pixels of one value.
    """
    if syntax in (*JPEG_LOSSLESS, *JPEG_LS, *JPEG_LOSSY):
        return data.rstrip(b"\0")[-2:] == b"\xff\xd9"
    return syntax not in JPEG_2000 or _HOLE not in data


def _fills_frame(data: bytes, pixels: Pixels, decoder: "_Decoder", form: PixelFormat) -> bool:
    """Whether the codestream is as long as the frame: decoded once more, with one of its last bytes changed and others
    behind it, only the last pixels are others.

    Where all are the same, the frame was full before: bytes are left over. Where others are others, bytes were missing.
    """
    if fills_frame(data, pixels):  # seen by counting bits, in a third of the time
        return True
    end = len(data.rstrip(b"\0")[:-2].rstrip(b"\xff"))  # behind it: fill bytes, the marker, padding
    at = next((k for k in range(end - _LAST_BYTES, 2, -1) if 0xFF not in (data[k - 1], data[k], data[k] ^ 0x10)), 0)
    changed = b"".join((data[:at], bytes([data[at] ^ 0x10]), data[at + 1 : end], b"\x5a" * 4096, b"\xff\xd9"))
    try:
        again = decoder(changed, form).ravel()
    except Exception:  # bytes behind a frame may be an error
        return False
    last = max(0, pixels.size - 8 * (end - at))  # a pixel has a bit at least
    same = pixels.ravel()
    return np.array_equal(again[:last], same[:last]) and not np.array_equal(again[last:], same[last:])


def codestream_size(data: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components that a JPEG, JPEG-LS or JPEG 2000 codestream says it has; None for anything else."""
    if data[:2] == b"\xff\xd8":
        at = 2
        while at + 10 <= len(data):
            if data[at] != 0xFF:
                return None
            marker = data[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
                continue
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
                rows, columns = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
                return rows, columns, data[at + 9]
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return None
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096) if data[:4] != b"\xff\x4f\xff\x51" else 0
    if start < 0 or len(data) < start + 42:
        return None
    width, height, left, top = (int.from_bytes(data[start + k : start + k + 4], "big") for k in (8, 12, 16, 20))
    return height - top, width - left, int.from_bytes(data[start + 40 : start + 42], "big")


def _as_stored(pixels: Pixels, form: PixelFormat, *, spare_bits: bool) -> Pixels:
    """A decoder's array in the header's type; a codestream's own signedness gives way to the header's bits.

    Raises:
        VerdictError: failed_unreadable, where the codestream has values that the header's bits do not hold: to cut them
            off would make other numbers of them.
    """
    if pixels.dtype == form.dtype and form.stored == form.allocated:
        return pixels
    limit = form.allocated if spare_bits else form.stored
    if int(pixels.max()) >= 1 << limit or int(pixels.min()) < -(1 << limit - 1):
        raise VerdictError("failed_unreadable")
    bits = np.dtype(f"u{form.allocated // 8}")
    wide = pixels.astype(f"i{pixels.dtype.itemsize}") if pixels.dtype.kind == "i" else pixels
    return wide.astype(bits, copy=False).view(form.dtype)


def stored_values(raw: Pixels, form: PixelFormat) -> Pixels:
    """The bits up to HighBit of each pixel as a number: what lies above them is masked, or extends the sign."""
    if form.stored == form.allocated:
        return raw
    down = form.high + 1 - form.stored if form.syntax in NATIVE else 0
    up = form.allocated - form.stored - down
    return np.right_shift(np.left_shift(raw, up), up + down)


def _imagecodecs(name: str, **options: Any) -> Callable[[bytes, PixelFormat], Pixels]:
    def decoder(data: bytes, form: PixelFormat) -> Pixels:
        import imagecodecs

        return np.asarray(getattr(imagecodecs, name)(data, **options))

    return decoder


def _rle(data: bytes, form: PixelFormat) -> Pixels:
    import imagecodecs

    if int.from_bytes(data[:4], "little") != form.allocated // 8 or len(data) < 64:
        raise ValueError("segments")
    decoded = imagecodecs.dicomrle_decode(data, dtype=form.dtype.newbyteorder("<"))
    return np.frombuffer(decoded, form.dtype.newbyteorder("<"))[: form.rows * form.columns].reshape(
        form.rows, form.columns
    )


def _charls(data: bytes, form: PixelFormat) -> Pixels:
    import jpeg_ls  # type: ignore[import-untyped]

    return np.asarray(jpeg_ls.decode(np.frombuffer(data, np.uint8)))


def _pydicom(data: bytes, form: PixelFormat) -> Pixels:
    """Whatever plug-in pydicom finds for the syntax."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    decoder: Any = get_decoder(UID(form.syntax))
    with quiet():
        array, _ = decoder.as_array(
            encapsulate([data]),
            index=0,
            rows=form.rows,
            columns=form.columns,
            samples_per_pixel=1,
            photometric_interpretation="MONOCHROME2",
            pixel_representation=int(form.signed),
            bits_allocated=form.allocated,
            bits_stored=form.stored,
            number_of_frames=1,
            pixel_keyword="PixelData",
        )
    return np.asarray(array)


_HOLE = bytes(256)  # half a sector; each packet without content, as of blank precincts, is one zero byte
_LAST_BYTES = 3  # an encoder may have added two
_Decoder = Callable[[bytes, PixelFormat], Pixels]

# Fastest first; measured by benchmarks/imaging_ct.py.
DECODERS: Mapping[str, tuple[_Decoder, ...]] = {
    RLE: (_rle, _pydicom),
    **dict.fromkeys(JPEG_LOSSLESS, (_imagecodecs("jpeg8_decode"), _imagecodecs("ljpeg_decode"), _pydicom)),
    **dict.fromkeys(JPEG_LS, (_imagecodecs("jpegls_decode"), _charls)),  # others fill up
    **dict.fromkeys(JPEG_2000, (_imagecodecs("jpeg2k_decode", numthreads=1), _pydicom)),
    # Not imagecodecs' htj2k_decode: it swallows OpenJPH's errors and returns what memory held.
    **dict.fromkeys(HTJ2K, (_imagecodecs("jpeg2k_decode", numthreads=1), _pydicom)),
}
LOSSY_DECODERS: Mapping[str, tuple[_Decoder, ...]] = dict.fromkeys(JPEG_LOSSY, (_imagecodecs("jpeg8_decode"), _pydicom))
