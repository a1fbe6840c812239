"""Readers of made-up units that decoder processes can import, and items for them.

An item's one file holds its number. Unit `i` of item `n` is a square of 64 x 64 HU that depends on both; what else
happens stands in the item's geometry.
"""

import ctypes
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedders.running.spans import ItemToEmbed
from extractors.ct.settings import CT
from extractors.items import UnitBatch, UnitRequest, VerdictError

READER = "tests.support.images.unit_readers:read"
EXTRACTOR = replace(CT, read_units=READER)
SIDE = 64


def pixels(item: int, units: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    texture = (x * (item + 3) + y * 7)[None] % 97 + 31.0 * (units[:, None, None] % 29)
    return (texture - 400).astype(np.float32)


def read(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    geometry = request.geometry
    number = int((request.root / request.paths[0]).read_text())
    assert request.stop is not None
    for first in range(request.start, request.stop, batch_size):
        units = np.arange(first, min(first + batch_size, request.stop))
        if "log" in geometry:
            with Path(geometry["log"]).open("a") as file:
                file.write(f"{os.getpid()} {number} {first} {len(units)}\n")
        if geometry.get("unlink_at") in units:
            (request.root / request.paths[0]).unlink()
            raise FileNotFoundError
        _misbehave(geometry, units)
        kept = units[~np.isin(units, geometry.get("bad", []))]
        image = pixels(number, kept)
        if geometry.get("nan") in kept:
            image[kept == geometry["nan"]] = np.nan
        places = np.stack([kept * 10, kept * 10 + 1], axis=1).astype(np.int32)
        yield UnitBatch(image, kept.astype(np.int64), places, len(units) - len(kept))


def read_large(request: UnitRequest, batch_size: int) -> Iterator[UnitBatch]:
    """Units of `geometry["bytes"]` each."""
    assert request.stop is not None
    for first in range(request.start, request.stop, batch_size):
        units = np.arange(first, min(first + batch_size, request.stop))
        image = np.zeros((len(units), request.geometry["bytes"]), np.uint8)
        yield UnitBatch(image, units.astype(np.int64), units.astype(np.int32)[:, None], 0)


def _misbehave(geometry: Any, units: np.ndarray) -> None:
    if geometry.get("crash") in units:
        ctypes.string_at(0)
    if geometry.get("crash_once") in units:
        marker = Path(geometry["marker"])
        if not marker.exists():
            marker.touch()
            ctypes.string_at(0)
    if geometry.get("hang") in units:
        time.sleep(600)
    if geometry.get("raise") in units:
        raise KeyError("a patient's name")
    if geometry.get("stop") in units:
        raise StopIteration
    if geometry.get("verdict_at") in units:
        raise VerdictError(geometry["verdict"])
    if geometry.get("memory") in units:
        raise MemoryError
    time.sleep(geometry.get("pause", 0))


def item(folder: Path, number: int, units: int, **geometry: Any) -> ItemToEmbed:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{number}").exists():
        (folder / f"{number}").write_text(str(number))
    return ItemToEmbed(f"{number:032x}", "ct", folder, (str(number),), geometry, units)
