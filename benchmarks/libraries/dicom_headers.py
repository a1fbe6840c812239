"""DICOM headers: our scan against pydicom."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from libraries.turns import Ratios, Work, in_turns


def dicom_files(work: Path, data: Path | None) -> dict[str, list[Path]]:
    """Slices of a head study, and odd files of many makers; phantoms in their place where there are no real ones."""
    import imaging_ct

    if data is not None and (data / "ct-head-series").is_dir():
        return {
            "head study": sorted((data / "ct-head-series" / "Philips").rglob("I*0")),
            "files of many makers": sorted(path for path in (data / "ct-robustness").rglob("*") if path.is_file()),
            "sarcoma study": sorted(path for path in (data / "ct-ibsi-sts").rglob("*") if path.is_file()),
        }
    folder = work / "dicom"
    folder.mkdir(exist_ok=True)
    imaging_ct.slices(folder, None, 16)
    return {"phantoms": sorted(folder.rglob("*.dcm"))}


def measure_dicom(quick: bool, work: Path, data: Path | None) -> Ratios:
    """Headers a second, and whether the texts are pydicom's."""
    import pydicom

    from extractors.ct import header as ct_header
    from extractors.dicom import elements
    from extractors.dicom.elements import TAGS, quiet

    def all_of(paths: Sequence[Path], read: Callable[[Any, Path], object]) -> Work:
        def work() -> None:
            for path in paths:
                with path.open("rb") as file:
                    read(file, path)

        return work

    def scan(file: Any, path: Path) -> object:
        return elements.read_elements(file, path.stat().st_size)

    def specific(file: Any, path: Path) -> object:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(TAGS))

    def texts(file: Any, path: Path) -> object:
        return elements._by_pydicom(file, path.stat().st_size)

    def before_pixels(file: Any, path: Path) -> object:
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)

    def index(file: Any, path: Path) -> object:
        return ct_header.read_header(file, path.stat().st_size, path.name, "", "", "UTC")

    def index_by_pydicom(file: Any, path: Path) -> object:
        usual, ct_header.read_elements = ct_header.read_elements, elements._by_pydicom
        try:
            return index(file, path)
        finally:
            ct_header.read_elements = usual

    readers = {
        "timeloom": scan,
        "pydicom, specific_tags": specific,
        "pydicom, the same texts": texts,
        "pydicom, before pixels": before_pixels,
        "index, timeloom": index,
        "index, by pydicom": index_by_pydicom,
    }
    print(f"\nDICOM headers a second; pydicom {version('pydicom')}, one thread, files in the page cache")
    print(" " * 24 + f"{'files':>7}{'by pydicom':>12}{'texts differ':>14}" + "".join(f"{name:>25}" for name in readers))
    ratios: Ratios = {}
    with quiet():
        for name, found in dicom_files(work, data).items():
            paths = [path for path in found if _reads(texts, path) and _reads(scan, path)]
            left = sum(not _scanned(path) for path in paths)
            differ = sum(_texts_differ(path) for path in paths)
            most = max(1, 100 // len(paths))
            works = {kind: all_of(list(paths) * most, read) for kind, read in readers.items()}
            medians = in_turns(works, 3 if quick else 9)
            rates = {kind: len(paths) * most / median for kind, median in medians.items()}
            print(
                f"{name:<24}{len(paths):>7}{left:>12}{differ:>14}" + "".join(f"{rates[kind]:>25,.0f}" for kind in rates)
            )
            key = "dicom_" + name.replace(" ", "_")
            ratios[f"{key}_vs_specific_tags"] = round(rates["timeloom"] / rates["pydicom, specific_tags"], 2)
            ratios[f"{key}_vs_same_texts"] = round(rates["timeloom"] / rates["pydicom, the same texts"], 2)
            ratios[f"{key}_index_vs_by_pydicom"] = round(rates["index, timeloom"] / rates["index, by pydicom"], 2)
            ratios[f"{key}_texts_differ"] = differ
    return ratios


def _reads(read: Callable[[Any, Path], object], path: Path) -> bool:
    """Whether a file is a data set that can be read at all."""
    from extractors.items import VerdictError

    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return False
            file.seek(0)
            read(file, path)
    except (VerdictError, Exception):
        return False
    return True


def _scanned(path: Path) -> bool:
    from extractors.dicom import elements

    with path.open("rb") as file:
        try:
            elements._scan(file, file.read(), path.stat().st_size)
        except Exception:  # what _scan leaves to pydicom
            return False
    return True


def _texts_differ(path: Path) -> bool:
    from extractors.dicom import elements

    with path.open("rb") as file:
        size = path.stat().st_size
        try:
            ours, theirs = elements.read_elements(file, size), elements._by_pydicom(file, size)
        except Exception:  # deflated data sets have no second reading
            return False
    given = [{name: text for name, text in header.values.items() if text} for header in (ours, theirs)]
    return given[0] != given[1] or ours.pixels != theirs.pixels or ours.syntax != theirs.syntax
