"""What it costs to find the CT of a tree: all of it, on a night without change, and on one with a single new file.

    python benchmarks/indexing.py [--quick] [--files N] [--workers N]

The tree is made up: small slices, a hundred in a series, a folder each. It is compared with `index_ct`, which holds the
headers of a whole tree in memory, as `timeloom index` does. Memory is the peak over all processes, and its growth is
what a file more costs, from a tree of a quarter of the files to the whole one. The last line is JSON: ratios of CPU
seconds, below one where the stages need less, and bytes a file.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measure import resident
from rich.console import Console

from extractors.ct.index import index_ct
from extractors.deid import load_key
from pipelines import group, index, scan
from pipelines.config import RunConfig
from pipelines.engine.context import RunContext
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.local import LocalEngine
from pipelines.night import Night, carry_out
from warehouse.layout import Layout

FILES, QUICK_FILES = 200_000, 20_000
SLICES = 100
SIDE = 8
STAGES = (scan.STAGE, group.STAGE, index.STAGE)
# Texts of one length each, which a slice is told apart by.
_SERIES, _INSTANCE, _PATIENT, _HEIGHT = "2.25.1111111", "2.25.2222222.33333", "P4444444", "55555.0"


def template(folder: Path) -> bytes:
    """A slice whose texts can be replaced by others of the same length."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.images.phantoms import disc, write_slice

    write_slice(
        folder / "template",
        disc(SIDE),
        0,
        SeriesInstanceUID=_SERIES,
        StudyInstanceUID=_SERIES,
        SOPInstanceUID=_INSTANCE,
        PatientID=_PATIENT,
        ImagePositionPatient=["0", "0", _HEIGHT],
    )
    return (folder / "template").read_bytes()


def write_series(content: bytes, tree: Path, series: int, slices: int = SLICES) -> None:
    """One series of one patient, in a folder of its own."""
    folder = tree / f"{series // 100:05d}" / f"{series:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    known = {_SERIES: f"2.25.{series + 1_000_000}", _PATIENT: f"P{series:07d}"}
    for old, new in known.items():
        content = content.replace(old.encode(), new.encode())
    # Pixels of its own: where they are equal the whole is read.
    content = content[:-4] + series.to_bytes(4, "little")
    for number in range(slices):
        place = {_INSTANCE: f"2.25.{series + 1_000_000}.{number + 10_000}", _HEIGHT: f"{2 * number + 10_000}.0"}
        placed = content
        for old, new in place.items():
            placed = placed.replace(old.encode(), new.encode())
        (folder / f"IM{number:04d}").write_bytes(placed)


def night(tree: Path, work: Path, workers: int) -> None:
    """The stages that find images, as a night runs them."""
    ct = {"path": str(tree), "encoder": {"name": "random-dinov2", "width": 1024}}
    config = RunConfig.model_validate(
        {
            "sources": [{"source": "simulated-hospital", "path": str(work)}],
            "deid": {"mode": "synthetic"},
            "modalities": {"ct": ct},
        }
    )
    layout = Layout(work / "warehouse")
    load_key(config.deid, layout.private, create=True)
    with LocalEngine(workers) as engine:
        fingerprints = Fingerprints(layout.private)
        run = Night(config, work, layout, RunContext(engine, work / "work", None, None), fingerprints)
        for stage in STAGES:
            carry_out(stage, run, STAGES)
        print(run.reports["index"].entries["ct"].counts["verdicts"])


def cpu_seconds() -> float:
    """Of the processes that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(*arguments: object) -> tuple[float, float, int, str]:
    """Seconds, CPU seconds, peak bytes over all processes, and what this script printed with other arguments."""
    command = [sys.executable, __file__, *map(str, arguments)]
    start, before, peak = time.monotonic(), cpu_seconds(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the benchmark's process ended with {process.returncode}")
    return time.monotonic() - start, cpu_seconds() - before, peak, said.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FILES:,} files, about a minute")
    parser.add_argument("--files", type=int, help=f"{FILES:,} if not given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "TREE", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        what, tree, work = options.run[0], Path(options.run[1]), Path(options.run[2])
        if what == "memory":
            print(len(index_ct(tree, workers=options.workers)))
        else:
            night(tree, work, options.workers)
        return
    console = Console()
    files = options.files or (QUICK_FILES if options.quick else FILES)
    workers = ("--workers", options.workers)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        content = template(base)
        made = 0
        for part, number in (("quarter", files // 4), ("whole", files)):
            for series in range(made, number // SLICES):
                write_series(content, base / "tree", series)
            made = number // SLICES
            for what in ("memory", "night"):
                seconds, cpu, peak, said = measured("--run", what, base / "tree", base / part, *workers)
                spent = f"{seconds:.1f} s, {cpu:.1f} s of CPU"
                console.print(f"{what}, {number:,} files: {spent}, {peak >> 20:,} MiB ({said})", markup=False)
                found |= {f"{what}_{part}": cpu, f"{what}_{part}_peak": peak}
        for what, series in (("unchanged", None), ("one_file", made)):
            if series is not None:
                write_series(content, base / "tree", series, slices=1)
            seconds, found[what], peak, said = measured("--run", "night", base / "tree", base / "whole", *workers)
            spent = f"{seconds:.1f} s, {found[what]:.1f} s of CPU"
            console.print(f"{what}: {spent}, {peak >> 20:,} MiB ({said})", markup=False)
    more = files - files // 4
    growth = {
        what: (found[f"{what}_whole_peak"] - found[f"{what}_quarter_peak"]) / more for what in ("memory", "night")
    }
    print(
        json.dumps(
            {
                "files": files,
                "full_vs_memory": round(found["night_whole"] / found["memory_whole"], 3),
                "one_file_vs_memory": round(found["one_file"] / found["memory_whole"], 3),
                "unchanged_vs_full": round(found["unchanged"] / found["night_whole"], 3),
                "one_file_vs_full": round(found["one_file"] / found["night_whole"], 3),
                "bytes_a_file_in_memory": round(growth["memory"]),
                "bytes_a_file": round(growth["night"]),
            }
        )
    )


if __name__ == "__main__":
    main()
