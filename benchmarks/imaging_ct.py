"""CT slices a second: our reader against pydicom alone and SimpleITK, one and two processes, in one run.

Each reads the same files from the file cache into Hounsfield units (float32): ours through read_ct_units, with its
checks; pydicom by dcmread, pixel_array and rescale with the plug-ins that are installed; SimpleITK by ReadImage, which
rescales. SimpleITK lives in an environment of its own below --work. Slices: the head study of the public test data
where $TIMELOOM_DATA has it, else phantoms with a scanner's noise; 512 x 512, 16 bits.

    python benchmarks/imaging_ct.py [--data FOLDER] [--work FOLDER] [--quick]
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "jpeg_lossless": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}
READERS = ("ours", "pydicom", "SimpleITK")
SIMPLE_ITK = "SimpleITK==2.5.2"
SLICES = 32
PROCESSES = (1, 2)

# Runs in SimpleITK's own environment: reads rounds and paths as lines of JSON, answers with seconds.
_PEER = """
import json, sys, time
import numpy as np, SimpleITK as sitk
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
for line in sys.stdin:
    rounds, paths = json.loads(line)
    start = time.perf_counter()
    for _ in range(rounds):
        for path in paths:
            pixels = sitk.GetArrayViewFromImage(sitk.ReadImage(path))[0].astype(np.float32)
    print(time.perf_counter() - start, flush=True)
"""


def ours(folder: Path, names: Sequence[str]) -> Callable[[], None]:
    """Our reader on some slices of a volume, with stamps to hold against, as a decoder process does."""
    from extractors.ct.header import stamp_of
    from extractors.ct.index import read_ct_units
    from extractors.dicom.files import disk_stamp
    from extractors.items import UnitRequest, file_fingerprint

    paths = tuple(names)
    stamps = [stamp_of(disk_stamp((folder / name).stat()), file_fingerprint(folder / name)) for name in names]
    request = UnitRequest(folder, paths, {"stamps": stamps})

    def read() -> None:
        for batch in read_ct_units(request, 16):
            assert batch.pixels.dtype == np.float32

    return read


def alone(folder: Path, names: Sequence[str]) -> Callable[[], None]:
    """pydicom and its plug-ins."""
    import pydicom

    def read() -> None:
        for name in names:
            dataset = pydicom.dcmread(folder / name)
            pixels = dataset.pixel_array.astype(np.float32)
            pixels *= np.float32(dataset.RescaleSlope)
            pixels += np.float32(dataset.RescaleIntercept)

    return read


def _worker(reader: str, pipe: Any) -> None:
    """Reads as often as it is told; keeps what was made ready for some files."""
    made: dict[tuple[str, ...], Callable[[], None]] = {}
    while (order := pipe.recv()) is not None:
        rounds, folder, names = order
        key = (folder, *names)
        if key not in made:
            made[key] = (ours if reader == "ours" else alone)(Path(folder), names)
        start = time.perf_counter()
        for _ in range(rounds):
            made[key]()
        pipe.send(time.perf_counter() - start)


class Team:
    """Processes of one reader that wait for orders."""

    def __init__(self, reader: str, python: Path | None) -> None:
        self._pipes: list[Any] = []
        self._members: list[Any] = []
        for _ in range(max(PROCESSES)):
            if reader == "SimpleITK":
                command = [str(python), "-c", _PEER]
                member = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                self._members.append(member)
            else:
                context = multiprocessing.get_context("spawn")
                parent_end, worker_end = context.Pipe()
                process = context.Process(target=_worker, args=(reader, worker_end), daemon=True)
                process.start()
                self._pipes.append(parent_end)
                self._members.append(process)

    def run(self, folder: Path, members: int, rounds: int) -> float:
        """Slices a second of some members together, from the first order to the last answer; each has its files."""
        names = sorted(path.name for path in folder.iterdir())
        start = time.perf_counter()
        for number in range(members):
            part = names[number::members]
            if self._pipes:
                self._pipes[number].send((rounds, str(folder), part))
            else:
                order = json.dumps([rounds, [str(folder / name) for name in part]])
                self._members[number].stdin.write(f"{order}\n")
                self._members[number].stdin.flush()
        for number in range(members):
            if self._pipes:
                self._pipes[number].recv()
            else:
                self._members[number].stdout.readline()
        return len(names) * rounds / (time.perf_counter() - start)

    def close(self) -> None:
        """Ends the members."""
        for pipe in self._pipes:
            pipe.send(None)
        for member in self._members:
            if self._pipes:
                member.join(10)
            else:
                member.stdin.close()
                member.wait(10)


def slices(folder: Path, data: Path | None, count: int = SLICES) -> str:
    """Writes `count` slices in each syntax below `folder`; returns where they come from."""
    import imagecodecs
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    sources = sorted((data / "ct-head-series" / "Philips" / "S21570" / "S2010").glob("I*")) if data else []
    datasets = [pydicom.dcmread(path) for path in sources[:count]] or [_phantom(number) for number in range(count)]
    encoders: dict[str, Callable[[Any], bytes]] = {
        "jpeg_lossless": lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=16),
        "jpeg_ls": imagecodecs.jpegls_encode,
        "jpeg2000": lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0),
    }
    for number, dataset in enumerate(datasets):
        pixels = np.ascontiguousarray(dataset.pixel_array)
        bits = pixels.view("u2") if dataset.BitsStored == 16 else pixels.view("u2") & ((1 << dataset.BitsStored) - 1)
        for name, syntax in SYNTAXES.items():
            if name == "uncompressed":
                dataset.PixelData = pixels.tobytes()
            else:
                frame = pixels if name == "jpeg2000" else bits
                dataset.PixelData = encapsulate([bytes(encoders[name](frame))])
            dataset["PixelData"].VR = "OW"
            dataset["PixelData"].is_undefined_length = name != "uncompressed"
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            (folder / name).mkdir(exist_ok=True)
            dataset.save_as(folder / name / f"{number:03d}.dcm", implicit_vr=False, little_endian=True)
    return "head study" if sources else "phantoms"


def _phantom(number: int) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    rng = np.random.default_rng(number)
    y, x = np.mgrid[:512, :512] - 255.5
    body = np.where(x**2 + (1.4 * y) ** 2 < 230**2, 40.0, -1000.0) + rng.normal(0, 12, (512, 512))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"2.25.{number + 1}", "Rows": 512, "Columns": 512,
        "ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "SamplesPerPixel": 1, "RescaleSlope": 1,
        "PhotometricInterpretation": "MONOCHROME2", "RescaleIntercept": -1024, "PixelSpacing": [1, 1],
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = np.rint(body + 1024).astype("<i2").tobytes()
    return dataset


def simple_itk(work: Path) -> Path | None:
    """The Python of an environment with SimpleITK; None where pip could not install it."""
    python = work / "envs" / "simpleitk" / "bin" / "python"
    mark = work / "envs" / "simpleitk" / "installed.json"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == [SIMPLE_ITK]:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(python.parents[1])], check=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", SIMPLE_ITK, "numpy"], capture_output=True, check=False
    )
    if done.returncode:
        return None
    mark.write_text(json.dumps([SIMPLE_ITK]), encoding="utf-8")
    return python


def rates(quick: bool, work: Path, data: Path | None) -> dict[str, dict[tuple[str, int], float]]:
    """Slices a second by syntax, reader and processes: the best of some interleaved repetitions."""
    python = simple_itk(work)
    repeats, seconds, count = (2, 0.1, 8) if quick else (4, 0.8, SLICES)
    found: dict[str, dict[tuple[str, int], float]] = {}
    with tempfile.TemporaryDirectory(dir=work, prefix="ct-") as name:
        folder = Path(name)
        slices(folder, data, count)
        teams = {reader: Team(reader, python) for reader in (READERS if python is not None else READERS[:2])}
        for syntax in SYNTAXES:
            keys = [(reader, members) for reader in teams for members in PROCESSES]
            for reader, members in keys:
                teams[reader].run(folder / syntax, members, 1)  # the first round imports and opens
            best = {(reader, members): teams[reader].run(folder / syntax, members, 1) for reader, members in keys}
            for _ in range(repeats):
                for reader, members in keys:
                    rounds = max(1, round(seconds * best[reader, members] / count))
                    rate = teams[reader].run(folder / syntax, members, rounds)
                    best[reader, members] = max(best[reader, members], rate)
            found[syntax] = best
        for team in teams.values():
            team.close()
    return found


def ratios(found: dict[str, dict[tuple[str, int], float]]) -> dict[str, float | None]:
    """Ours with two processes over the better peer with two; null where a peer did not run."""
    line: dict[str, float | None] = {}
    for syntax, best in found.items():
        peers = [best[reader, 2] for reader in READERS[1:] if (reader, 2) in best]
        line[f"ct_{syntax}_vs_best"] = round(best["ours", 2] / max(peers), 3) if len(peers) == 2 else None
    return line


def table(found: dict[str, dict[tuple[str, int], float]]) -> Any:
    """Slices a second, and what ours are to the better peer with one process and with two."""
    from rich.table import Table

    shown = Table("slices/s", *(f"{reader} x{count}" for reader in READERS for count in PROCESSES), "x2 : best peer x2")
    shown.add_column("x2 : best peer x1")
    for syntax, best in found.items():
        cells = [f"{best[key]:,.0f}" if key in best else "-" for key in ((r, c) for r in READERS for c in PROCESSES)]
        peers = {count: max(best.get((reader, count), 0.0) for reader in READERS[1:]) for count in PROCESSES}
        shown.add_row(syntax, *cells, *(f"{best['ours', 2] / peers[count]:.2f}" for count in (2, 1)))
    return shown


def measure(quick: bool, work: Path | None = None, data: Path | None = None) -> dict[str, float | None]:
    """The ratios, after printing the table."""
    from rich.console import Console

    work = (work or Path(tempfile.gettempdir()) / "timeloom-imaging").resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = rates(quick, work, data or (Path(os.environ["TIMELOOM_DATA"]) if "TIMELOOM_DATA" in os.environ else None))
    Console(width=160).print(table(found))
    return ratios(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of public test data, with ct-head-series/")
    parser.add_argument("--work", type=Path, help="keeps SimpleITK's environment")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repetitions")
    options = parser.parse_args()
    print(json.dumps(measure(options.quick, options.work, options.data)))


if __name__ == "__main__":
    main()
