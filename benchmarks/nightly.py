"""What a night costs: a full run, a night on which nothing changed, one on which one patient's rows did.

The limit that an incremental night is held against is the full run on the same machine, in the same minute. Prints
seconds and the peak memory of the whole process tree; the last line is JSON with the ratios.

    python benchmarks/nightly.py [--quick] [--subjects N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

FULL_SUBJECTS, QUICK_SUBJECTS = 500, 60


def timeloom(*arguments: str) -> tuple[float, float]:
    """Seconds and peak GiB of a run, over every process of its tree."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "flows.cli", *arguments], stdout=subprocess.DEVNULL)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in tree:
                try:
                    total += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code not in (0, 2):
        raise SystemExit(f"the run ended with {code}")
    return time.monotonic() - start, peak / 2**30


def rewritten(root: Path) -> tuple[int, int]:
    """Files of the current release's buckets that the release before does not share, and all of them."""
    current = (root / "current").resolve()
    files = list((current / "data").glob("*.parquet"))
    return sum(path.stat().st_nlink == 1 for path in files), len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SUBJECTS} subjects, under a minute")
    parser.add_argument("--subjects", type=int, help=f"{FULL_SUBJECTS} if not given")
    options = parser.parse_args()
    subjects = options.subjects or (QUICK_SUBJECTS if options.quick else FULL_SUBJECTS)
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "simulate", str(demo / "hospital"), "--subjects", str(subjects)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        command = ("demo", "--root", str(demo), "--subjects", str(subjects), "--direct")
        full, peak = timeloom(*command)
        print(f"full run of {subjects} subjects: {full:.1f} s, peak {peak:.2f} GiB over all processes")
        unchanged, _ = timeloom(*command)
        print(f"nothing changed: {unchanged:.1f} s")
        labs = demo / "hospital" / "tables" / "labs.csv"
        lines = labs.read_text(encoding="utf-8").splitlines()
        labs.write_text("\n".join([*lines, lines[1].replace(",", "0,", 1)]) + "\n", encoding="utf-8")
        one_subject, _ = timeloom(*command)
        changed, files = rewritten(demo / "warehouse")
        print(f"one row of one subject added: {one_subject:.1f} s, {changed} of {files} event files rewritten")
        ratios = {
            "unchanged_vs_full": round(unchanged / full, 4),
            "one_subject_vs_full": round(one_subject / full, 4),
            "files_rewritten": changed,
            "files": files,
            "full_s": round(full, 1),
            "peak_gib": round(peak, 2),
        }
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
