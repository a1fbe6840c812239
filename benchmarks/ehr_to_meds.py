"""MIMIC-IV to MEDS: this project and its peers on the same tables, with the same two cores.

The MIMIC-IV demo is replicated x1, x20 and x100 (`mimic_replica.py`), every peer is installed into an environment of
its own below the work folder, and each is run in the way that is fastest for it. Printed are wall seconds, the peak
memory of the whole process tree, the events in the output and events a second; a peer that fails is listed as such and
left out of the ratios. Then this project's x20 run is repeated after one more file of lab rows came, of 1 % of the
subjects. The last line is JSON: our events/s over the fastest peer's at each size, peaks, the incremental ratio.

    python benchmarks/ehr_to_meds.py --work FOLDER [--quick] [--sizes 1,20] [--only NAME] [--reuse-peers]

The work folder keeps raw trees, environments and the peers' results for the next time (x100 needs about 40 GB free).
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import measure
import mimic_replica
import peers
import polars as pl
import psutil
from measure import Result

CONFIG = """\
name: benchmark
sources: [{{source: mimic-iv, path: {raw}}}]
deid: {{mode: limited, subject_ids: keep, dates: keep}}
workers: {workers}
"""
CONVERTED = (0, 2)
"""Exit codes of this project's command: whole, and converted with quarantined rows."""
INCREMENT_SIZE = 20
REPEATS_AT_X1 = 3
"""A run of two seconds is mostly start-up and noise: the best of these counts, for everyone."""


def timeloom(raw: Path, folder: Path, options: argparse.Namespace) -> Result:
    """One run of this project; `folder` keeps its root and its output for a second one."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "benchmark.yaml"
    config.write_text(CONFIG.format(raw=json.dumps(str(raw)), workers=options.processes), encoding="utf-8")
    output = folder / "out"
    command = [sys.executable, "-m", "flows.cli", "meds", str(config), "--root", str(folder / "root")]
    command += ["--out", str(output)]
    return measure.run(command, output, options.processes, options.ceiling, good=CONVERTED)


def measure_converter(name: str, size: int, raw: Path, options: argparse.Namespace) -> Result:
    """The result of a converter at a size; a peer's comes from the work folder with `--reuse-peers`."""
    kept = options.work / "results" / f"{name}-x{size}.json"
    if name != "timeloom" and options.reuse_peers and kept.is_file():
        earlier = json.loads(kept.read_text(encoding="utf-8"))
        if not earlier["result"]["failure"] or earlier["ceiling"] == options.ceiling:
            return Result(**{**earlier["result"], "reused": True})
    measure.warm(raw)
    results = []
    for _ in range(REPEATS_AT_X1 if size == 1 else 1):
        with tempfile.TemporaryDirectory(dir=options.work, prefix="run-") as folder:
            if name == "timeloom":
                results.append(timeloom(raw, Path(folder), options))
            else:
                results.append(peers.run(name, raw, Path(folder), options.work, options.processes, options.ceiling))
    result = min(results, key=lambda r: (bool(r.failure), r.seconds))
    if name != "timeloom":
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"ceiling": options.ceiling, "result": asdict(result)}, indent=1), encoding="utf-8")
    return result


def contents(output: Path) -> dict[str, str]:
    """The hash of every data file of an output, by its path below `data/`."""
    data = output / "data"
    found = {}
    for path in sorted(data.rglob("*.parquet")):
        with path.open("rb") as stream:
            found[str(path.relative_to(data))] = hashlib.file_digest(stream, "blake2b").hexdigest()
    return found


def more_labs(raw: Path, target: Path, seed: int = 7) -> int:
    """Writes lab rows, of 1 % of the subjects, that the raw tree lacks; returns the number of subjects."""
    subjects = pl.read_csv(raw / "hosp" / "patients.csv.gz", columns=["subject_id"])["subject_id"].sort()
    chosen = subjects.sample(max(1, len(subjects) // 100), seed=seed)
    labs = pl.scan_csv(raw / "hosp" / "labevents.csv.gz", infer_schema=False)
    rows = labs.filter(pl.col("subject_id").is_in(chosen.cast(pl.String).implode()))
    fresh = rows.with_columns(
        ((pl.col(column).cast(pl.Int64) + 1_000 * mimic_replica.STEPS[column]).cast(pl.String)).alias(column)
        for column in ("labevent_id", "specimen_id")
    )
    mimic_replica.write_csv_gz(target, fresh.collect(engine="streaming"), [0], ["gzip", "-1"])
    return len(chosen)


def incremental(raw: Path, options: argparse.Namespace) -> dict[str, float | int | None]:
    """Runs on labs that are a folder of parts, adds a part, runs again on the same root."""
    with tempfile.TemporaryDirectory(dir=options.work, prefix="run-") as name:
        folder = Path(name)
        parts = folder / "raw"
        for source in sorted(raw.glob("*/*.csv.gz")):
            table = source.name.removesuffix(".csv.gz")
            target = parts / source.parent.name / ("labevents/part-0.csv.gz" if table == "labevents" else source.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
        measure.warm(raw)
        full = timeloom(parts, folder / "ours", options)
        if full.failure:
            print(f"incremental: the full run failed: {full.failure}")
            return {}
        before = contents(folder / "ours" / "out")
        subjects = more_labs(raw, parts / "hosp" / "labevents" / "part-1.csv.gz")
        again = timeloom(parts, folder / "ours", options)
        if again.failure:
            print(f"incremental: the second run failed: {again.failure}")
            return {}
        after = contents(folder / "ours" / "out")
        rewritten = sum(before.get(path) != digest for path, digest in after.items())
        ratio = again.seconds / full.seconds
        print(
            f"incremental x{INCREMENT_SIZE}: full {full.seconds:.1f} s; a file of lab rows of {subjects} subjects more "
            f"({again.events - full.events} events): {again.seconds:.1f} s, {rewritten} of {len(after)} files rewritten"
            f" (CPU {full.cpu_seconds:.1f} s and {again.cpu_seconds:.1f} s)"
        )
        return {"incremental_time_ratio": round(ratio, 4), "files_rewritten": rewritten, "files": len(after)}


def machine(processes: int) -> str:
    """The machine in one line: processor, cores, memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        model = next(lines, f": {model}").split(":", 1)[1].strip()
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {os.cpu_count()} cores ({processes} used), {memory:.0f} GiB memory, Python {sys.version.split()[0]}"
    )


def row(name: str, size: int, result: Result) -> str:
    """A line of the table."""
    cost = f"{result.seconds:>8.1f} {result.cpu_seconds:>8.1f} {result.peak_gib:>8.2f}"
    gain = f"{result.events:>12,} {result.rate:>12,.0f} {len(result.columns):>8}"
    note = "  (kept result)" if result.reused else ""
    if result.disturbed:
        note += f"  (others took {result.others_cpu_seconds:.0f} CPU s)"
    return f"{name:<34} {'x' + str(size):>5} {cost} {f'  failed: {result.failure}' if result.failure else gain}{note}"


def summary(results: dict[tuple[str, int], Result]) -> dict[str, float | bool | None]:
    """The ratios and peaks of the last line; null for what did not run."""
    line: dict[str, float | bool | None] = {}
    for size in (1, 20, 100):
        ours = results.get(("timeloom", size))
        rates = [r.rate for (name, s), r in results.items() if s == size and name != "timeloom" and not r.failure]
        known = ours is not None and not ours.failure and bool(rates)
        line[f"x{size}_vs_fastest_peer"] = round(ours.rate / max(rates), 3) if known and ours else None
    peaks = [results.get(("timeloom", size)) for size in (20, 100)]
    small, large = (r.peak_gib if r is not None and not r.failure else None for r in peaks)
    line["peak_gib_x100"] = round(large, 3) if large else None
    line["peak_growth_x20_x100"] = round(large / small - 1, 4) if small and large else None
    line["peers_reused"] = any(r.reused for r in results.values())
    return line


def compressor(work: Path) -> list[str]:
    """The fast gzip of an environment of its own, else the system's."""
    python = peers.install("tool", ["isal==1.9.1"], work)
    return [str(python), "-m", "isal.igzip", "-1", "-c"] if python else ["gzip", "-1", "-c"]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = ["timeloom", *peers.PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the MIMIC-IV demo's folder, with hosp/ and icu/")
    parser.add_argument("--work", type=Path, help="keeps raw trees, environments and peers' results")
    parser.add_argument("--sizes", default="1,20,100", help="replicas of the demo, with commas")
    parser.add_argument("--quick", action="store_true", help="no size above x20")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--reuse-peers", action="store_true", help="peers' results of an earlier call where there are")
    parser.add_argument("--processes", type=int, default=2, help="processes and cores of each run")
    parser.add_argument("--ceiling", type=float, default=600, help="seconds after which a run is ended and has failed")
    options = parser.parse_args(given)
    try:
        options.sizes = sorted({int(size) for size in options.sizes.split(",")})
    except ValueError:
        parser.error("--sizes wants whole numbers with commas between them, such as 1,20")
    if options.quick:
        options.sizes = [size for size in options.sizes if size <= INCREMENT_SIZE]
    options.work = (options.work or Path(tempfile.gettempdir()) / "timeloom-ehr-to-meds").resolve()
    options.only = options.only or names
    return options


def main() -> None:
    options = arguments()
    demo = mimic_replica.find_demo(options.data)
    options.work.mkdir(parents=True, exist_ok=True)
    lock = (options.work / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit("another benchmark is running in this work folder; give --work another one") from None
    for leftover in options.work.glob("run-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    gzip = compressor(options.work)
    for name in options.only:
        if name != "timeloom":
            peers.install(name, peers.PEERS[name].requirements, options.work)
    print(machine(options.processes))
    header = f"{'system':<34} {'size':>5} {'wall s':>8} {'CPU s':>8} {'peak GiB':>8} {'events':>12} {'events/s':>12}"
    header += f" {'columns':>8}"
    print(header, "-" * len(header), sep="\n", flush=True)
    results: dict[tuple[str, int], Result] = {}
    extra: dict[str, float | int | None] = {"incremental_time_ratio": None, "files_rewritten": None, "files": None}
    for size in options.sizes:
        raw = mimic_replica.replicate(demo, options.work, size, gzip)
        for name in options.only:
            result = results[name, size] = measure_converter(name, size, raw, options)
            print(row(peers.title(name), size, result), flush=True)
    if "timeloom" in options.only and INCREMENT_SIZE in options.sizes:
        raw = mimic_replica.replicate(demo, options.work, INCREMENT_SIZE, gzip)
        extra.update(incremental(raw, options))
    print(json.dumps({**summary(results), **extra}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{error.cmd[0]} ended with {error.returncode}") from None
