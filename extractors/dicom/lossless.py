"""Whether a JPEG Lossless codestream (ITU-T T.81, process 14) is as long as the frame that was decoded from it.

Decoders fill up what is missing and pass over what is left, and say nothing. But each pixel takes the bits of its
difference to the predicted value, so the length of a whole stream follows from its pixels and its Huffman table.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]

_SOF3, _DHT, _SOS, _DRI = 0xC3, 0xC4, 0xDA, 0xDD
_NEVER = 255  # bits of a category that has no code: more than any takes
_EXTRA = np.append(np.arange(16), 0)  # bits behind a category's code; 32,768 has none (T.81 table H.2)
_CATEGORY = np.array([min(value, 65_536 - value).bit_length() for value in range(65_536)], np.uint8)  # modulo 2^16


def fills_frame(data: bytes, pixels: Pixels) -> bool | None:
    """Whether the entropy-coded bytes of `data` are just those of `pixels` (rows, columns); None where this cannot say:
    restart intervals, a point transform, several components or scans, values of more than 16 bits.
    """
    parsed = _parsed(data)
    if parsed is None or pixels.ndim != 2 or pixels.dtype.itemsize > 2:
        return None
    lengths, predictor, precision, start = parsed
    end = data.rfind(b"\xff\xd9")
    body = data[start:end].rstrip(b"\xff")  # fill bytes: a coded 0xFF has a zero behind it
    stuffed = body.count(b"\xff\x00")
    if body.count(b"\xff") != stuffed:
        return None
    by_category = np.where(lengths > 0, lengths + _EXTRA, _NEVER).astype(np.uint8)
    costs = by_category.take(_CATEGORY).take(_differences(pixels, predictor, precision))
    return int(costs.max()) < _NEVER and -(-int(costs.sum(dtype=np.int64)) // 8) == len(body) - stuffed


def _parsed(data: bytes) -> tuple[npt.NDArray[np.int64], int, int, int] | None:
    """Code length by category (0: none), predictor, precision, and where the entropy-coded bytes begin."""
    tables: dict[int, npt.NDArray[np.int64]] = {}
    precision = None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        part = data[at + 4 : at + 2 + size]
        at += 2 + size
        if marker == _DHT:
            while len(part) >= 17:
                counts = np.frombuffer(part, np.uint8, 16, 1).astype(np.int64)
                values = np.frombuffer(part[17 : 17 + int(counts.sum())], np.uint8)
                lengths = np.repeat(np.arange(1, 17), counts)
                if len(values) != len(lengths) or (values > 16).any():
                    return None
                tables[part[0] & 15] = np.zeros(17, np.int64)
                tables[part[0] & 15][values] = lengths
                part = part[17 + len(values) :]
        elif marker == _SOF3 and len(part) == 9:
            precision = part[0]
        elif marker == _DRI and any(part):
            return None
        elif marker == _SOS:
            if len(part) != 6 or part[0] != 1 or part[5] or not 1 <= part[3] <= 7 or precision is None:
                return None
            table = tables.get(part[2] >> 4)
            return None if table is None else (table, part[3], precision, at)
    return None


def _differences(pixels: Pixels, predictor: int, precision: int) -> npt.NDArray[np.uint16]:
    """What was coded for each pixel, modulo 2^16: the first row is predicted from the left, the first column from
    above, the first pixel as half of what the precision holds (T.81 H.1.2.1)."""
    values = pixels.astype(np.uint16, copy=False) if pixels.dtype.itemsize == 2 else pixels.astype(np.uint16)
    found = np.empty(values.shape, np.uint16)
    found[0, 0] = (int(values[0, 0]) - (1 << precision - 1)) & 0xFFFF
    np.subtract(values[0, 1:], values[0, :-1], out=found[0, 1:])
    np.subtract(values[1:, 0], values[:-1, 0], out=found[1:, 0])
    left, above, corner = values[1:, :-1], values[:-1, 1:], values[:-1, :-1]
    if predictor <= 3:
        expected: npt.NDArray[Any] = (left, above, corner)[predictor - 1]
    elif predictor == 4:
        expected = left + above - corner
    elif predictor == 5:
        expected = left + _half_difference(above, corner)
    elif predictor == 6:
        expected = above + _half_difference(left, corner)
    else:
        expected = (left >> 1) + (above >> 1) + (left & above & 1)
    np.subtract(values[1:, 1:], expected, out=found[1:, 1:])
    return found


def _half_difference(minuend: Pixels, subtrahend: Pixels) -> Pixels:
    """Half of the difference, rounded down, modulo 2^16; the difference itself would need 17 bits."""
    half: Pixels = (minuend >> 1) - (subtrahend >> 1) - (~minuend & subtrahend & 1)
    return half
