"""Writes the images of the records, and notes for each what its pixels say (the planted signal)."""

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from extractors.simulate.ct import Series, phantom, write_series
from extractors.simulate.export import clock, signal_row
from extractors.simulate.record import Image, Record, Row
from extractors.simulate.slides import scan_time, tissue, write_slide

MANIFEST = {"path": pl.String, "patient_id": pl.String, "collection_time": pl.String, "mpp": pl.String}

CT_PIXELS = (64, 96, 128)
SLIDE_SIZES = ((1024, 1024), (1024, 1536), (1536, 1536), (2048, 2048))
SHARE_40X = 0.15


MODALITIES = {"ct": "ct", "slide": "wsi"}
"""By the kind of an image, its modality."""


def write_images(
    root: Path, seed: int, records: Iterable[Record], modalities: Collection[str], done: Callable[[], None]
) -> tuple[list[Row], list[Row]]:
    """Writes images of some modalities below `root`; gives the rows of truth/signal.csv and of slides/manifest.csv."""
    signal: list[Row] = []
    manifest: list[Row] = []
    # Slides are work of numpy and of a JPEG library, which need no interpreter: headers of CT are made beside them.
    with ThreadPoolExecutor(1) as beside:
        slides: list[Future[None]] = []
        try:
            for record in records:
                for number, image in enumerate(sorted(record.images, key=lambda i: i.time), start=1):
                    if MODALITIES[image.kind] not in modalities:
                        continue
                    rng = np.random.default_rng(np.random.SeedSequence([seed, record.index, number]))
                    if image.kind == "ct":
                        image.image_id = _write_ct(root, seed, record, number, image, rng)
                        done()
                    else:
                        name = f"H{record.index:06d}-{number}.svs"
                        image.image_id = f"slides/{name}"
                        slides.append(beside.submit(_write_slide, root / image.image_id, image, rng))
                        manifest.append((name, record.patient_id, clock(image.time), None))
                    signal.append(signal_row(record, image))
            for slide in slides:
                slide.result()
                done()
        except BaseException:
            beside.shutdown(cancel_futures=True)
            raise
    return signal, manifest


def _write_ct(root: Path, seed: int, record: Record, number: int, image: Image, rng: np.random.Generator) -> str:
    series = Series(
        seed,
        record.patient_id,
        f"A{record.index:06d}{number:02d}",
        number=int(rng.integers(2, 5)),
        time=image.time,
        suffix=".dcm" if rng.random() < 0.5 else "",
        first_slice_on_top=bool(rng.random() < 0.5),
        slope=int(rng.integers(1, 3)),
    )
    image_id = f"ct/{series.accession}/S{series.number}"
    pixels = CT_PIXELS[int(rng.integers(len(CT_PIXELS)))]
    write_series(root / image_id, series, phantom(rng, image.image_class, pixels, int(rng.integers(8, 15))))
    return image_id


def _write_slide(path: Path, image: Image, rng: np.random.Generator) -> None:
    at_40x = rng.random() < SHARE_40X
    size = SLIDE_SIZES[-1] if at_40x else SLIDE_SIZES[int(rng.integers(len(SLIDE_SIZES)))]
    mpp = 0.25 if at_40x else 0.5
    write_slide(path, tissue(rng, image.image_class, size, mpp), mpp, scan_time(image.time, rng))
