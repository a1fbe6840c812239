"""What more embed workers give: one, two and four over the same items, and what is encoded twice where one is killed.

    python benchmarks/embed_scale.py [--quick] [--work DIR]

A night that waits for nobody indexes a tree of CT volumes once; then workers, processes of their own, fill its stores
under leases. The encoder stands in for a GPU: a small network whose every batch takes 20 ms more, asleep, so that two
cores can host four workers. What is measured is how work is dealt, stored and handed over, and no network. Rates count
from the moment at which all workers are let go to the end of the last one. `idle` is the share of that time, of all
workers, in which no batch was on the stand-in. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from measure import work_folder
from pydicom.uid import generate_uid

from extractors.simulate import simulate
from flows.runs.run import open_run
from flows.runs.settings import RunSettings
from warehouse.embeddings.store import close_stores, content_hash

STEP_SECONDS, BATCH, BUCKETS = 0.02, 4, 16
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """What some workers took for the whole tree."""

    workers: int
    seconds: float
    units: int
    killed: int
    hashes: tuple[str, ...]

    def busy(self) -> float:
        """Seconds in which a batch was on the stand-in, of all workers together."""
        return self.units / BATCH * STEP_SECONDS


def prepare(work: Path, volumes: int, slices: int) -> Path:
    """A root whose first release waits for all of its vectors."""
    sys.path.insert(0, str(REPOSITORY))
    from tests.support.images.phantoms import write_series

    hospital = work / "hospital"
    simulate(hospital, subjects=max(20, volumes), seed=5, modalities=("note",))
    flat = np.random.default_rng(0).normal(0, 300, (64, 64)).astype(np.float32)
    for number in range(volumes):
        write_series(
            work / "ct" / f"{number:04d}",
            slices,
            lambda index, number=number: flat + 7.0 * index + number,
            PatientID=f"P{number + 1:06d}",
            SeriesInstanceUID=generate_uid(entropy_srcs=[str(number)]),
        )
    encoder = {"name": "random-dinov2", "width": 32, "device": "cpu", "batch_size": BATCH}
    config = {
        "sources": [{"source": "simulated-hospital", "path": str(hospital / "tables")}],
        "deid": {"mode": "synthetic"},
        "buckets": BUCKETS,
        "limits": {"unparsable_times": 0.05},
        "modalities": {"ct": {"path": str(work / "ct"), "encoder": encoder}},
        "embedding": {"workers": "elsewhere", "wait": False, "checkpoint_seconds": 2},
    }
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    with open_run(RunSettings(work / "run.yaml", work / "begun", workers=1), None) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
    close_stores()
    return work / "begun"


def fill(begun: Path, workers: int, kill_after: int | None = None) -> Case:
    """Fills a copy of a root with so many workers; one of them is killed when it has encoded `kill_after` units."""
    work = begun.parent
    for name in (begun.name, f"{begun.name}.private"):
        copied = work / name.replace(begun.name, "filled")
        shutil.rmtree(copied, ignore_errors=True)
        subprocess.run(["cp", "-a", str(work / name), str(copied)], check=True)
    log, gate = work / "units.log", work / "gate"
    for path in (log, gate):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.support.nights.slow_worker", str(work / "run.yaml"), str(work / "filled")]
    command += [str(log), str(STEP_SECONDS), "0", str(gate)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE) for _ in range(workers)
    ]
    for process in started:  # each says when it has imported all that it needs
        assert process.stdout is not None
        process.stdout.readline()
    begin = time.perf_counter()
    gate.touch()
    killed = 0
    while any(process.poll() is None for process in started):
        if kill_after is not None and not killed and encoded(log).get(started[0].pid, 0) >= kill_after:
            started[0].send_signal(signal.SIGKILL)
            killed = 1
        time.sleep(0.01)
    seconds = time.perf_counter() - begin
    assert all(process.returncode == 0 for process in started[killed:]), "a worker failed"
    stores = sorted((work / "filled").glob("embeddings/*/*/*.lmdb"))
    hashes = tuple(content_hash(store) for store in stores)
    close_stores()
    return Case(workers, seconds, sum(encoded(log).values()), killed, hashes)


def encoded(log: Path) -> dict[int, int]:
    """Units that each process has encoded."""
    found: dict[int, int] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        if len(parts := line.split()) == 2:
            found[int(parts[0])] = found.get(int(parts[0]), 0) + int(parts[1])
    return found


def run(work: Path, quick: bool) -> None:
    """Prepares a root, fills it again and again, and prints."""
    volumes, slices = (48, 8) if quick else (240, 24)
    begun = prepare(work, volumes, slices)
    cases = [fill(begun, workers) for workers in (1, 2, 4)]
    alone = cases[0].seconds
    rows = []
    for case in cases:
        idle = 1 - case.busy() / (case.workers * case.seconds)
        rate, times = volumes / case.seconds, alone / case.seconds
        rows.append({"workers": case.workers, "items_a_second": rate, "times": times, "idle": idle})
        print(f"{case.workers} workers: {rate:.1f} items a second, {times:.2f} times one, idle {idle:.0%}")
    killed = fill(begun, 4, kill_after=volumes * slices // 16)
    same = len({case.hashes for case in (*cases, killed)}) == 1
    twice = killed.units - volumes * slices
    print(
        f"one of four killed: {twice} of {volumes * slices} units encoded twice; stores {'equal' if same else 'DIFFER'}"
    )
    figures = {"items": volumes, "units": volumes * slices, "step_seconds": STEP_SECONDS, "batch": BATCH}
    print(json.dumps(figures | {"cases": rows, "killed": killed.killed, "units_twice": twice, "same_stores": same}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, under a minute")
    parser.add_argument("--work", type=Path, help="where files go; a temporary folder if not given")
    options = parser.parse_args()
    with work_folder(options.work) as work:
        run(work, options.quick)


if __name__ == "__main__":
    main()
