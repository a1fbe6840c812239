"""Images a second from files to vectors in LMDB, against the same model fed random tensors that are on its device.

On the CPU the model is a vision transformer of DINOv2 ViT-S's shape at 224 px with random weights: 12 blocks of width
384, 22 M parameters. Its slices are uncompressed CT. Torch has one thread in both runs, as every worker of timeloom
has; the decoder process has the other core. On a GPU both real encoders run, with random weights too: DINOv2's ViT-L/14
on the slices and GigaPath's tile encoder on a slide, and the lower of two fractions counts. So do, each for itself, a
ViT-B on ECGs, RAD-DINO's on x-rays and a BERT-base on notes.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import imaging_inputs
import imaging_slides
import imaging_units
import numpy as np
import polars as pl
from measure import resident
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from embedders.encoders.build import Encoder, EncoderConfig, build_encoder, build_untrained, encoder_spec
from embedders.encoders.registry import NETWORKS
from embedders.running.runner import Bucket, ItemToEmbed, RunFigures, RunnerSettings, embed_buckets
from extractors.ct.index import index_ct
from extractors.wsi.index import find_slides, index_slides

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


def items_in(folder: Path, copies: int = 1, modality: str = "ct") -> list[ItemToEmbed]:
    """The folder's volumes or slides, each `copies` times under another key."""
    if modality == "ct":
        found = index_ct(folder)
    else:
        columns = {"path": find_slides(folder), "raw_subject": "1", "time": datetime(2020, 3, 4)}
        found = index_slides(folder, pl.DataFrame(columns).with_columns(available_time=None, mpp=None), workers=1)
    return [
        ItemToEmbed(
            f"{copy}-{entry.identity[:40]}", modality, folder, entry.paths, entry.geometry, entry.units_expected
        )
        for copy in range(copies)
        for entry in found
        if entry.verdict == "ok" and entry.units_expected
    ]


@dataclass(frozen=True)
class Case:
    """What is measured: `build` makes the encoder, in a run while the decoders start, as in a worker."""

    name: str
    build: Callable[[], Encoder]
    items: list[ItemToEmbed]
    decoders: int
    modality: str = ""  # of an encoder whose share of the FLOP limit has a key of its own


def cases(work: Path, quick: bool, cuda: bool) -> list[Case]:
    """One on the CPU, both real encoders on a GPU."""
    write_volumes(work / "device-ct", 1 if quick else 2)
    if not cuda:
        config = EncoderConfig(name="random-dinov2", width=384, device="cpu")
        items = items_in(work / "device-ct", 3 if quick else 2)
        return [Case("ViT-S shape, random weights", lambda: build_encoder(config, "ct", VIT_S), items, 1)]
    imaging_slides.write(work / "device-wsi" / "a.svs", 4096 if quick else 12_288)
    decoders = max(1, (os.cpu_count() or 2) - 1)
    slides = items_in(work / "device-wsi", 16 if quick else 8, "wsi")
    return [
        Case("DINOv2 ViT-L/14, random weights", lambda: build_untrained("dinov2-vitl14", "ct", device="cuda"),
             items_in(work / "device-ct", 96), decoders),
        Case("GigaPath tile encoder, random weights", lambda: build_untrained("gigapath-tile", "wsi", device="cuda"),
             slides, decoders),
        *other_kinds(work / "device-units", quick, decoders),
    ]  # fmt: skip


def other_kinds(work: Path, quick: bool, decoders: int, device: str = "cuda") -> list[Case]:
    """ECGs, x-rays and notes: networks of the usual sizes with random weights."""
    imaging_inputs.write_ecgs(work / "ecg", 64)
    imaging_inputs.write_films(work / "cxr", 4)
    table, vocabulary = imaging_inputs.write_notes(work / "note", 200 if quick else 1_000)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    ecg = NETWORKS["random-ecg"].architecture | base
    bert = NETWORKS["random-bert"].architecture | base | {"intermediate_size": 3072}
    random = {
        name: EncoderConfig.model_validate({"name": name, "width": 768, "device": device})
        for name in ("random-ecg", "random-bert")
    }
    notes = imaging_units.note_settings(table, vocabulary)
    return [
        Case("ECG, ViT-B shape, random weights", lambda: build_encoder(random["random-ecg"], "ecg", ecg),
             copied("ecg", work / "ecg", 256), decoders, "ecg"),
        Case("RAD-DINO's ViT-B/14, random weights", lambda: build_untrained("rad-dino", "cxr", device=device),
             copied("cxr", work / "cxr" / "dicom", 256), decoders, "cxr"),
        Case("notes, BERT-base shape, random weights", lambda: build_encoder(random["random-bert"], "note", bert),
             copied("note", table.parent, 8, kept=work / "note" / "kept", **notes), decoders, "note"),
    ]  # fmt: skip


def copied(modality: str, folder: Path, copies: int, **how: Any) -> list[ItemToEmbed]:
    """The usable items of a folder, each `copies` times under another key."""
    found = imaging_units.usable(modality, folder, **how)
    return [
        ItemToEmbed(f"{copy}-{number}", modality, folder, item.paths, item.geometry, item.units_expected or 0)
        for copy in range(copies)
        for number, item in enumerate(found)
    ]


def end_to_end(encoder: Encoder, items: list[ItemToEmbed], store: Path, case: Case) -> RunFigures:
    """Files to vectors in LMDB; a fresh encoder like `encoder` is built meanwhile, which does not count."""
    _, figures = embed_buckets(
        [Bucket(store, encoder.spec, items, case.build)],
        RunnerSettings(case.decoders, memory_mb=256 * max(1, case.decoders)),
    )
    return figures


def model_alone(encoder: Encoder, units: int) -> float:
    """Units a second of the model on random tensors that are on its device."""
    import torch

    preprocess = encoder.spec.preprocess
    if preprocess.form == "image":
        images = torch.randn((encoder.rows, *preprocess.shape), device=encoder.device)
    else:  # a text's ids are no numbers of any size
        phantoms = preprocess.apply(torch.from_numpy(preprocess.phantom()))
        images = phantoms[torch.arange(encoder.rows) % len(phantoms)].to(encoder.device)
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
    """`device_fraction`, `flop_fraction` and those of kinds that ran; prints its tables.

    Args:
        work: a folder for inputs and stores.
    """
    import torch

    console = Console(width=160)
    cuda = torch.cuda.is_available()
    table = Table(title="files to vectors; 1 torch thread")
    for column in (
        "encoder", "device", "units", "decoders", "units/s", "model alone", "fraction", "device idle", "of FLOP limit",
    ):  # fmt: skip
        table.add_column(column)
    fractions, limits = [], []
    of_kinds: dict[str, float | None] = {}
    for case in cases(work, quick, cuda):
        encoder = case.build()
        units = sum(item.units_expected for item in case.items)
        best: list[RunFigures] = []

        passes = units // 8 if quick and not cuda else units

        def once(
            case: Case = case, encoder: Encoder = encoder, passes: int = passes, best: list[RunFigures] = best
        ) -> tuple[float, float]:
            before = model_alone(encoder, passes)  # and behind: the processor's clock wanders by a tenth
            with tempfile.TemporaryDirectory(dir=work) as fresh:
                best.append(end_to_end(encoder, case.items, Path(fresh) / "0000.lmdb", case))
            behind = model_alone(encoder, passes)
            return best[-1].units / best[-1].seconds, 2 / (1 / before + 1 / behind)

        ours, alone = _repeat(once, 1 if quick and not cuda else 2)
        figures = min(best, key=lambda figure: figure.seconds)
        limit = figures.flop_fraction or 0.0
        if case.modality:
            of_kinds[f"flop_fraction_{case.modality}"] = limit
        else:
            fractions.append(ours / alone)
            limits.append(limit)
        rates = f"{ours:,.1f}", f"{alone:,.1f}", f"{ours / alone:.1%}"
        shares = f"{figures.device_idle_share or 0:.1%}", f"{limit:.1%}"
        table.add_row(case.name, encoder.figures.device, f"{units:,}", f"{case.decoders}", *rates, *shares)
    console.print(table)
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        _print_growth(console, work / "device-ct", Path(fresh), quick)
    return {"device_fraction": min(fractions), "flop_fraction": min(limits) if cuda else None, **of_kinds}


def _print_growth(console: Console, folder: Path, work: Path, quick: bool) -> None:
    """Seconds and memory at N and at 4 N items, with a small model, so that reading is what is measured."""
    config = EncoderConfig(name="random-dinov2", width=64, device="cpu")
    spec = encoder_spec(config, "ct")

    def build() -> Encoder:
        return build_encoder(config, "ct")

    table = Table(title="cost and memory (a small model, 1 decoder)")
    for column in ("items", "units", "seconds", "ms a unit", "resident MB of the process tree, largest"):
        table.add_column(column)
    few = 1 if quick else 8
    warm = Bucket(work / "growth-warm" / "0000.lmdb", spec, items_in(folder), build)
    embed_buckets([warm], RunnerSettings(1, memory_mb=128))
    for copies in (few, 4 * few):
        items = items_in(folder, copies)
        peak = 0

        def watch(_: object) -> None:
            nonlocal peak
            peak = max(peak, resident(os.getpid()))

        bucket = Bucket(work / f"growth-{copies}" / "0000.lmdb", spec, items, build)
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
