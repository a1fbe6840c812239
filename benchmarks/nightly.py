"""What a night costs, step by step: a full run of the demo hospital with its images, a night on which nothing changed,
one on which one patient's rows did, one on which those of one patient in a hundred did.

The limit that an incremental night is held against is the full run on the same machine, in the same minutes. Ratios are
of the seconds of processors, all processes together: seconds of the clock say little where others work too. The last
line is JSON.

    python benchmarks/nightly.py [--quick] [--subjects N]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import night, show_night

FULL_SUBJECTS, QUICK_SUBJECTS = 500, 60


def add_rows(labs: Path, patients: int) -> None:
    """A laboratory row more for some patients, spread over all: each one's first row again under another id."""
    header, *lines = labs.read_text(encoding="utf-8").splitlines()
    first = {line.split(",")[1]: line for line in reversed(lines)}
    chosen = sorted(first)[:: max(1, len(first) // patients)][:patients]
    added = [first[patient].replace(",", f"-{len(lines)},", 1) for patient in chosen]
    labs.write_text("\n".join([header, *lines, *added]) + "\n", encoding="utf-8")


def rewritten(root: Path) -> tuple[int, int]:
    """Files of the current release's buckets that the release before does not share, and all of them."""
    files = list(((root / "current").resolve() / "data").glob("*.parquet"))
    return sum(path.stat().st_nlink == 1 for path in files), len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SUBJECTS} subjects, under a minute and a half")
    parser.add_argument("--subjects", type=int, help=f"{FULL_SUBJECTS} if not given")
    options = parser.parse_args()
    subjects = options.subjects or (QUICK_SUBJECTS if options.quick else FULL_SUBJECTS)
    with tempfile.TemporaryDirectory() as folder:
        demo = Path(folder) / "demo"
        warehouse, labs = demo / "warehouse", demo / "hospital" / "tables" / "labs.csv"
        made = [sys.executable, "-m", "flows.cli", "simulate", str(demo / "hospital"), "--subjects", str(subjects)]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = ("demo", "--root", str(demo), "--subjects", str(subjects))
        full = night(f"full run of {subjects} subjects", command, warehouse)
        show_night(full)
        unchanged = night("nothing changed", command, warehouse)
        show_night(unchanged)
        add_rows(labs, 1)
        single = night("one row of one subject added", command, warehouse)
        show_night(single)
        changed, files = rewritten(warehouse)
        print(f"{changed} of {files} event files rewritten")
        add_rows(labs, max(1, subjects // 100))
        spread = night("a row of one subject in a hundred added", command, warehouse)
        show_night(spread)
        cpu = full.cpu_seconds
        ratios = {
            "unchanged_vs_full": round(unchanged.cpu_seconds / cpu, 4),
            "one_subject_vs_full": round(single.cpu_seconds / cpu, 4),
            "night_1pct_vs_full": round(spread.cpu_seconds / cpu, 4),
            "gate_share": round(full.judging / cpu, 4),
            "files_rewritten": changed,
            "files": files,
            "full_s": round(full.seconds, 1),
            "full_cpu_s": round(cpu, 1),
            "unchanged_s": round(unchanged.seconds, 1),
            "peak_gib": round(full.peak_gib, 2),
        }
        print(json.dumps(ratios))


if __name__ == "__main__":
    main()
