"""Units a second of one core: ECGs, x-rays, CT in NIfTI and notes, by our readers and by the usual libraries.

Each reads the same files from the file cache, one process and one thread, in turns; seconds are those of the
processor. Ours: `read_units` of items that
were indexed, with their checks, to what an encoder takes. Peers, used plainly: wfdb's rdrecord to (12, n) float32;
pydicom's pixel_array with its modality and VOI tables, inverted; PIL's open and an array of greys; nibabel's
as_closest_canonical and get_fdata in float32; of notes pandas' read_csv and the library tokenizers with windows and
stride, against our whole pass over the table, which also finds copies.

    python benchmarks/imaging_units.py [--quick] [--work DIR]
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imaging_inputs
import numpy as np

from extractors.dicom.files import tree
from extractors.extractor import imported
from extractors.items import OK, FoundItem, UnitRequest
from extractors.modalities import EXTRACTORS

WINDOW, STRIDE, AT_MOST = 512, 384, 8


@dataclass(frozen=True)
class Row:
    """What two readers read: `ratio` is its key in the last line."""

    name: str
    ratio: str
    peer: str
    units: int
    ours: Callable[[], None]
    theirs: Callable[[], None]


def usable(modality: str, folder: Path, kept: Path | None = None, **settings: Any) -> list[FoundItem]:
    """The usable items of a folder."""
    extractor = EXTRACTORS[modality]
    items = extractor.index_items(extractor.settings(path=folder, **settings), None, workers=1, kept=kept)
    return [item for item in items if item.verdict == OK]


def requests(modality: str, folder: Path, kept: Path | None = None, **settings: Any) -> list[UnitRequest]:
    """The usable items of a folder, as a decoder is asked for them."""
    return [UnitRequest(folder, item.paths, item.geometry) for item in usable(modality, folder, kept, **settings)]


def reading(modality: str, wanted: list[UnitRequest]) -> Callable[[], None]:
    """All units of some items, as a decoder reads them."""
    extractor = EXTRACTORS[modality]
    read_units = imported(extractor.read_units)

    def read() -> None:
        for request in wanted:
            for batch in read_units(request, extractor.units_a_batch):
                assert batch.failed == 0

    return read


def ecg_row(work: Path, quick: bool) -> Row:
    import wfdb

    shutil.rmtree(work / "ecg", ignore_errors=True)
    headers = imaging_inputs.write_ecgs(work / "ecg", 8 if quick else 64)
    order = [imaging_inputs.LEADS.index(name) for name in (*imaging_inputs.LEADS[:4], "AVL", "AVF")] + [*range(6, 12)]

    def theirs() -> None:
        for path in headers:
            signal = wfdb.rdrecord(str(path.with_suffix(""))).p_signal
            assert np.ascontiguousarray(signal.T[order], dtype=np.float32).shape == (12, 5_000)

    wanted = requests("ecg", work / "ecg")
    assert len(wanted) == len(headers)
    return Row("ECG, WFDB", "ecg_vs_wfdb", "wfdb", len(headers), reading("ecg", wanted), theirs)


def film_rows(work: Path, quick: bool) -> list[Row]:
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    shutil.rmtree(work / "cxr", ignore_errors=True)
    dicom, jpeg = imaging_inputs.write_films(work / "cxr", 2 if quick else 6)

    def by_pydicom() -> None:
        for path in dicom:
            dataset = pydicom.dcmread(path)
            grey = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
            grey = (grey.max() - grey) / np.ptp(grey) * 65_535
            assert grey.astype(np.uint16).ndim == 2

    def by_pil() -> None:
        for path in jpeg:
            with Image.open(path) as image:
                assert (np.asarray(image.convert("L")).astype(np.uint16) * 257).ndim == 2

    rows = []
    for kind, peer, theirs in (("dicom", "pydicom", by_pydicom), ("jpeg", "PIL", by_pil)):
        wanted = requests("cxr", work / "cxr" / kind)
        assert len(wanted) == len(dicom)
        ratio = f"cxr_{kind}_vs_{peer.lower()}"
        rows.append(Row(f"x-ray, {kind.upper()}", ratio, peer, len(wanted), reading("cxr", wanted), theirs))
    return rows


def volume_rows(work: Path, quick: bool) -> list[Row]:
    import nibabel

    slices = 32 if quick else 160
    shutil.rmtree(work / "nifti", ignore_errors=True)
    rows = []
    for path in imaging_inputs.write_volume(work / "nifti", slices):

        def theirs(path: Path = path) -> None:
            image: Any = nibabel.as_closest_canonical(nibabel.load(path))
            pixels = image.get_fdata(dtype=np.float32, caching="unchanged")
            # Slices with columns to the left and rows to the back, one by one, as an encoder takes them.
            for number in range(pixels.shape[2]):
                assert np.ascontiguousarray(pixels[::-1, ::-1, number].T).shape == (512, 512)

        wanted = requests("ct", path.parent)
        assert len(wanted) == 1

        def ours(wanted: list[UnitRequest] = wanted) -> None:
            tree.cache_clear()  # a decoder keeps what it unpacked last
            reading("ct", wanted)()

        kind = path.parent.name
        rows.append(Row(f"CT, NIfTI, {kind}", f"nifti_{kind}_vs_nibabel", "nibabel", slices, ours, theirs))
    return rows


def note_settings(table: Path, vocabulary: Path) -> dict[str, Any]:
    """How a table that `imaging_inputs.write_notes` made is read."""
    rule = {"id": "note_id", "subject": "subject_id", "text": "text", "time": {"column": ["charttime"]}}
    return {
        "tokenizer": vocabulary, "window": WINDOW, "stride": STRIDE, "at_most": AT_MOST, "rules": {table.stem: rule},
    }  # fmt: skip


def note_row(work: Path, quick: bool) -> Row:
    import pandas
    from tokenizers import BertWordPieceTokenizer

    table, vocabulary = imaging_inputs.write_notes(work / "note", 40 if quick else 300)
    settings, kept = note_settings(table, vocabulary), work / "note" / "kept"

    def ours() -> None:
        reading("note", requests("note", table.parent, kept, **settings))()

    def theirs() -> None:
        tokenizer = BertWordPieceTokenizer(str(vocabulary / "vocab.txt"))
        tokenizer.enable_truncation(WINDOW, stride=WINDOW - STRIDE - 2)
        tokenizer.enable_padding(length=WINDOW)
        for text in pandas.read_csv(table)["text"]:
            encoding = tokenizer.encode(text)
            windows = [encoding, *encoding.overflowing][:AT_MOST]
            assert np.array([window.ids for window in windows], dtype=np.int32).shape[1] == WINDOW

    units = sum(item.units_expected or 0 for item in usable("note", table.parent, kept, **settings))
    return Row("notes, CSV", "note_vs_plain", "pandas, tokenizers", units, ours, theirs)


def seconds(read: Callable[[], None]) -> float:
    """Of the processor, which others at work on it do not change much."""
    start = time.process_time()
    read()
    return time.process_time() - start


def measure(quick: bool, work: Path) -> dict[str, float | None]:
    """Ours over the peer's rate, of each row the best of some turns. Prints a table."""
    from rich.console import Console
    from rich.table import Table

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = work.resolve() / "units"
    rows = [ecg_row(work, quick), *film_rows(work, quick), *volume_rows(work, quick), note_row(work, quick)]
    table = Table("units a second a core", "units", "ours", "ms a unit", "peer", "theirs", "ratio")
    ratios: dict[str, float | None] = {}
    for row in rows:
        seconds(row.ours), seconds(row.theirs)
        turns = [(seconds(row.ours), seconds(row.theirs)) for _ in range(3 if quick else 6)]
        our_rate, peer_rate = (row.units / min(column) for column in zip(*turns, strict=True))
        ratios[row.ratio] = round(our_rate / peer_rate, 3)
        rates = f"{our_rate:,.0f}", f"{1000 / our_rate:.2f}", row.peer, f"{peer_rate:,.0f}"
        table.add_row(row.name, f"{row.units}", *rates, f"{our_rate / peer_rate:.2f}")
    Console(width=160).print(table)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer files, fewer turns")
    parser.add_argument("--work", type=Path, default=Path("imaging-benchmark"), help="where files are written")
    options = parser.parse_args()
    print(json.dumps(measure(options.quick, options.work)))


if __name__ == "__main__":
    main()
