"""Images a second from files to vectors in LMDB, against the same model fed random tensors that are on its device.

On the CPU the model is a vision transformer of DINOv2 ViT-S's shape at 224 px with random weights: 12 blocks of width
384, 22 M parameters. Its slices are uncompressed CT. Torch has one thread in both runs, as every worker of timeloom
has; the decoder process has the other core. On a GPU DINOv2's ViT-L/14 runs, with random weights too.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import resident
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from embedders.encoders import Encoder, EncoderConfig, build_encoder, build_untrained
from embedders.runner import Bucket, ItemToEmbed, RunFigures, RunnerSettings, embed_buckets
from extractors.dicom import index_ct

VIT_S = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 16, "image_size": 224,
}  # fmt: skip
SLICES, SIDE = 32, 512


def write_volumes(folder: Path, volumes: int) -> None:
    """CT volumes of noise around a disc, uncompressed, of 32 slices of 512 x 512."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    disc = np.where(x**2 + y**2 < (SIDE / 3) ** 2, 1024, 24)
    for volume in range(volumes):
        (folder / f"{volume}").mkdir(parents=True)
        for index in range(SLICES):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = CTImageStorage
            meta.MediaStorageSOPInstanceUID = UID(f"2.25.{volume + 1}.{index + 1}")
            path = folder / f"{volume}" / f"{index:03d}"
            slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
            values = {
                "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
                "SeriesInstanceUID": UID(f"2.25.{volume + 1}"), "StudyInstanceUID": UID("2.25.99"),
                "FrameOfReferenceUID": UID("2.25.98"), "Modality": "CT", "PatientID": f"{volume}",
                "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "AcquisitionDate": "20200304",
                "AcquisitionTime": "100500", "InstanceNumber": index + 1, "ImagePositionPatient": [0, 0, index * 2.0],
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.7, 0.7], "SliceThickness": 2.0,
                "Rows": SIDE, "Columns": SIDE, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
                "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "RescaleSlope": 1,
                "RescaleIntercept": -1024,
            }  # fmt: skip
            for name, value in values.items():
                setattr(slice_, name, value)
            slice_.PixelData = (disc + rng.integers(0, 40, disc.shape)).astype("<i2").tobytes()
            slice_.save_as(path, enforce_file_format=True)


def items_in(folder: Path, copies: int = 1) -> list[ItemToEmbed]:
    """The folder's volumes, each `copies` times under another key."""
    found = [one for one in index_ct(folder) if one.verdict == "ok" and one.units_expected]
    return [
        ItemToEmbed(f"{copy}-{one.identity[:40]}", "ct", folder, one.paths, one.geometry, one.units_expected or 0)
        for copy in range(copies)
        for one in found
    ]


def end_to_end(encoder: Encoder, items: list[ItemToEmbed], store: Path, decoders: int) -> RunFigures:
    """Files to vectors in LMDB."""
    _, figures = embed_buckets(
        [Bucket(store, encoder.spec, items, lambda: encoder)],
        RunnerSettings(decoders, memory_mb=256 * max(1, decoders)),
    )
    return figures


def model_alone(encoder: Encoder, units: int) -> float:
    """Units a second of the model on random tensors that are on its device."""
    import torch

    side = encoder.spec.preprocess.side
    images = torch.randn((encoder.rows, 3, side, side), device=encoder.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def passes(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            encoder.forward(images)
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)
        return time.perf_counter() - begun

    try:
        passes(2)
        count = -(-units // encoder.rows)
        return count * encoder.rows / passes(count)
    finally:
        torch.set_num_threads(threads)


def _repeat(step: Callable[[], tuple[float, float]], times: int) -> tuple[float, float]:
    """The best of interleaved repetitions, of each side."""
    pairs = [step() for _ in range(times)]
    return max(ours for ours, _ in pairs), max(alone for _, alone in pairs)


def measure(quick: bool, work: Path) -> dict[str, float | None]:
    """`device_fraction` and `flop_fraction`; prints its tables.

    Args:
        work: a folder for inputs and stores.
    """
    import torch

    console = Console()
    cuda = torch.cuda.is_available()
    volumes, times = (1, 2) if quick else (2, 3)
    folder = work / "device-ct"
    write_volumes(folder, volumes)
    if cuda:
        names = (("dinov2-vitl14", "ct"),)
        encoders = {name: build_untrained(name, modality, device="cuda") for name, modality in names}  # type: ignore[arg-type]
        copies, decoders = 64, max(1, (os.cpu_count() or 2) - 1)
    else:
        config = EncoderConfig(name="random-dinov2", width=384, device="cpu")
        encoders = {"ViT-S shape, random weights": build_encoder(config, "ct", VIT_S)}
        copies, decoders = 2, 1
    items = items_in(folder, copies)
    units = sum(item.units_expected for item in items)
    table = Table(title=f"files to vectors, {units} slices of {SIDE} x {SIDE}, {decoders} decoders, 1 torch thread")
    for column in ("encoder", "device", "units/s", "model alone", "fraction", "device idle", "of FLOP limit"):
        table.add_column(column)
    fractions, limits = [], []
    for name, encoder in encoders.items():
        best: list[RunFigures] = []

        def once(encoder: Encoder = encoder, best: list[RunFigures] = best) -> tuple[float, float]:
            with tempfile.TemporaryDirectory(dir=work) as fresh:
                best.append(end_to_end(encoder, items, Path(fresh) / "0000.lmdb", decoders))
            return best[-1].units / best[-1].seconds, model_alone(encoder, units)

        ours, alone = _repeat(once, times)
        figures = min(best, key=lambda one: one.seconds)
        fractions.append(ours / alone)
        limits.append(figures.flop_fraction or 0.0)
        table.add_row(
            name, encoder.figures.device, f"{ours:,.1f}", f"{alone:,.1f}", f"{ours / alone:.1%}",
            f"{figures.device_idle_share or 0:.1%}", f"{limits[-1]:.1%}",
        )  # fmt: skip
    console.print(table)
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        _print_growth(console, folder, Path(fresh), quick)
    return {"device_fraction": min(fractions), "flop_fraction": min(limits) if cuda else None}


def _print_growth(console: Console, folder: Path, work: Path, quick: bool) -> None:
    """Seconds and memory at N and at 4 N items, with a small model, so that reading is what is measured."""
    encoder = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    table = Table(title="cost and memory (a small model, 1 decoder)")
    for column in ("items", "units", "seconds", "ms a unit", "resident MB of the process tree, largest"):
        table.add_column(column)
    few = 4 if quick else 8
    end_to_end(encoder, items_in(folder), work / "growth-warm" / "0000.lmdb", 1)
    for copies in (few, 4 * few):
        items = items_in(folder, copies)
        peak = 0

        def watch(_: object) -> None:
            nonlocal peak
            peak = max(peak, resident(os.getpid()))

        bucket = Bucket(work / f"growth-{copies}" / "0000.lmdb", encoder.spec, items, lambda: encoder)
        _, figures = embed_buckets([bucket], RunnerSettings(1, memory_mb=128), progress=watch)
        milliseconds = 1000 * figures.seconds / figures.units
        table.add_row(
            f"{len(items)}",
            f"{figures.units:,}",
            f"{figures.seconds:.2f}",
            f"{milliseconds:.2f}",
            f"{peak / 2**20:,.0f}",
        )
    console.print(table)


def main() -> None:
    """Prints the tables, and last a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print(json.dumps(measure(arguments.quick, Path(work))))


if __name__ == "__main__":
    main()
