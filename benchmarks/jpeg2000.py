"""JPEG 2000 of CT: full decoding against decoding at half the size, in time and in the encoder's vectors.

    TIMELOOM_DATA=<folder of public data> python benchmarks/jpeg2000.py

Slices are those of imaging_ct.py: the head study of the public test data, else phantoms; 512 x 512, reversible 5/3
wavelet. Times are the process's own, the least of some repetitions, one thread. docs/decisions/jpeg-2000.md explains
the figures. The last line is JSON.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import imaging_ct
import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.encaps import generate_frames

from embedders.encoders.build import EncoderConfig, build_encoder
from embedders.encoders.tolerances import TOLERANCES, compare
from embedders.inputs.ct import CtSpec

SLICES, REPETITIONS = 8, 6


def pillow(stream: bytes, halvings: int) -> Any:
    """Pillow's decoder, which is OpenJPEG too and can discard the finest levels of the wavelet."""
    image = Image.open(io.BytesIO(stream))
    image.reduce = halvings  # type: ignore[method-assign, assignment]
    image.load()
    return np.asarray(image)


DECODERS: dict[str, Callable[[bytes], Any]] = {
    "imagecodecs, full": lambda stream: imagecodecs.jpeg2k_decode(stream, numthreads=1),
    "Pillow, full": lambda stream: pillow(stream, 0),
    "Pillow, half the size": lambda stream: pillow(stream, 1),
}


def milliseconds(decode: Callable[[bytes], Any], streams: list[bytes]) -> float:
    """Of the processor, for a slice."""
    best = float("inf")
    for _ in range(REPETITIONS):
        begun = time.process_time()
        for stream in streams:
            decode(stream)
        best = min(best, time.process_time() - begun)
    return round(1000 * best / len(streams), 2)


def main() -> None:
    torch.set_num_threads(1)
    named = os.environ.get("TIMELOOM_DATA")
    with tempfile.TemporaryDirectory() as work:
        print(imaging_ct.slices(Path(work), Path(named) if named else None, SLICES))
        datasets = [pydicom.dcmread(path) for path in sorted((Path(work) / "jpeg2000").iterdir())]
    streams = [next(generate_frames(dataset.PixelData, number_of_frames=1)) for dataset in datasets]
    figures: dict[str, float] = {name: milliseconds(decode, streams) for name, decode in DECODERS.items()}
    for name, value in figures.items():
        print(f"{name}: {value} ms a slice")

    def hounsfield(halvings: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        slices = []
        for dataset, stream in zip(datasets, streams, strict=True):
            # Pillow gives signed pixels as unsigned ones, 2^15 higher.
            stored = pillow(stream, halvings).astype(np.float32) - 32768 * dataset.PixelRepresentation
            slices.append(stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
        return np.stack(slices)

    whole, half = hounsfield(0), hounsfield(1)
    by_pydicom = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in datasets]
    assert np.array_equal(whole, np.stack(by_pydicom).astype(np.float32))
    inputs = [CtSpec().apply(torch.from_numpy(units)) for units in (whole, half)]
    encoder = build_encoder(EncoderConfig(name="random-dinov2", width=1024, device="cpu"), "ct")
    cosine, error = compare(encoder.encode(half), encoder.encode(whole))
    figures |= {
        "input_rms": round(float((inputs[0] - inputs[1]).square().mean().sqrt()), 4),
        "cosine": round(cosine, 6),
        "error": round(error, 5),
    }
    least, most = TOLERANCES["float32"]
    print(f"vectors of half the size: cosine {cosine:.6f} (at least {least}), error {error:.3g} (at most {most})")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
