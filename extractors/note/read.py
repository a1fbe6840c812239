"""Windows of notes' tokens for encoders, as the index cut them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from extractors.extractor import KEPT
from extractors.items import CUT, CUTS, UnitBatch, UnitRequest, VerdictError
from extractors.note.kept import Kept, open_kept
from extractors.note.settings import MARKS
from warehouse.files import signature_of

NO_TOKEN = -1


def starts_of(tokens: int, window: int, stride: int, at_most: int) -> tuple[npt.NDArray[np.int64], int]:
    """Where a note's windows begin (n,), and how many of its tokens are behind the last.

    >>> starts_of(12, 10, 4, 8), starts_of(13, 10, 4, 2)
    ((array([0, 4]), 0), (array([0, 4]), 1))
    """
    room = window - MARKS
    wanted = 1 + max(0, -(-(tokens - room) // stride))
    number = min(wanted, at_most)
    return np.arange(number) * stride, max(0, tokens - ((number - 1) * stride + room))


def state_of(path: Path) -> str:
    """How a file stands; empty where it is away."""
    try:
        return json.dumps(signature_of(path.stat()))
    except OSError:
        return ""


def _kept(request: UnitRequest) -> Kept:
    """The file that has a note's tokens.

    Raises:
        VerdictError: failed_changed, where that or the note's own file is not as it was indexed.
    """
    if state_of(request.root / request.paths[0]) != request.geometry["stamp"]:
        raise VerdictError("failed_changed")
    try:
        return open_kept(request.geometry[KEPT])
    except OSError as error:
        raise VerdictError("failed_changed") from error


def read_text_of(request: UnitRequest) -> str:
    """A note's text, as it was indexed.

    Raises:
        VerdictError: failed_changed, as by `read_windows`; also where texts were not kept.
    """
    text = _kept(request).text(request.geometry["place"])
    if text is None:
        raise VerdictError("failed_changed")
    return text


def read_tokens_of(request: UnitRequest) -> npt.NDArray[np.uint32]:
    """All tokens of a note (n,) by the vocabulary that the request names, those behind its last window too.

    Raises:
        VerdictError: failed_changed, as by `read_windows`.
    """
    return _kept(request).tokens(request.geometry["place"], request.geometry[CUT])


def read_windows(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """Windows [start, stop) of a note in batches (n, window) of int32: [CLS], tokens, [SEP], and NO_TOKEN behind them.

    The tokens are those of the vocabulary that the request's geometry names under CUT.

    `places` holds the number of the window's first token in the note, and where its text begins and ends in letters.

    Raises:
        VerdictError: failed_changed, where the note's file is not as it was indexed.
    """
    kept = _kept(request)
    vocabulary, place = request.geometry[CUT], request.geometry["place"]
    cut = request.geometry[CUTS][vocabulary]
    tokens, spans = kept.tokens(place, vocabulary).astype(np.int32), kept.spans(place, vocabulary)
    window = int(cut["window"])
    starts, _ = starts_of(len(tokens), window, int(cut["stride"]), int(cut["at_most"]))
    first, last = cut["marks"]
    stop = len(starts) if request.stop is None else min(request.stop, len(starts))
    for begin in range(request.start, stop, batch_size):
        numbers = np.arange(begin, min(begin + batch_size, stop), dtype=np.int64)
        units = np.full((len(numbers), window), NO_TOKEN, np.int32)
        for unit, start in zip(units, starts[numbers], strict=True):
            text = tokens[start : start + window - MARKS]
            unit[0], unit[1 : len(text) + 1], unit[len(text) + 1] = first, text, last
        places = np.column_stack([starts[numbers], spans[numbers]]).astype(np.int32)
        yield UnitBatch(units, numbers, places)
