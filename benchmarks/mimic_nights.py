"""Nights of MIMIC-IV from raw tables to verified shards, and what they cost when little changed.

The published demo again and again under other ids (`mimic_replica.py`: 100 patients and 1,072,592 events a replica). Of
each size a full night, one on which nothing changed, and one on which one patient in a hundred, spread over all, has
each of its laboratory rows once more, in the one file of all laboratory rows.

The limit that the later nights are held against is the full one on the same machine, in the same minutes. The last line
is JSON, of the largest size; ratios are of processors' seconds.

    python benchmarks/mimic_nights.py [--sizes 20 100] [--quick] [--data DEMO] [--work DIR]
"""

import argparse
import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
from ehr_to_meds import more_labs
from measure import NightCost, night, show_night, warm, work_folder
from mimic_replica import find_demo, replicate

SIZES, QUICK_SIZES = (20, 100), (2,)
CONFIGURATION = """\
name: mimic-nights
sources: [{{source: mimic-iv, path: {raw}}}]
deid: {{mode: synthetic}}
buckets: auto
profiles: {{history: {{}}}}
"""


def with_more_labs(raw: Path, work: Path) -> None:
    """Rows of one patient in a hundred follow the file's last row."""
    path, added = raw / "hosp" / "labevents.csv.gz", work / "added.csv.gz"
    patients = more_labs(raw, added)
    rows = pl.concat([pl.scan_csv(each, infer_schema=False) for each in (path, added)])
    rows.sink_csv(path.with_suffix(".new"), compression="gzip", compression_level=1)
    path.with_suffix(".new").replace(path)
    added.unlink()
    print(f"\n{patients} patients have more laboratory rows")


def measure_size(demo: Path, work: Path, size: int) -> tuple[int, dict[str, NightCost]]:
    """The events of a size's first release, and its nights."""
    raw, root, config = replicate(demo, work, size, ["gzip", "-1"]), work / "root", work / "night.yaml"
    config.write_text(CONFIGURATION.format(raw=raw), encoding="utf-8")
    warm(raw)
    command = ("run", str(config), "--root", str(root))
    full = night(f"MIMIC-IV demo ×{size}, full night", command, root)
    show_night(full)
    files = ((root / "current").resolve() / "data").rglob("*.parquet")
    events = sum(pq.read_metadata(path).num_rows for path in files)
    print(f"{events:,} events, {events / full.seconds:,.0f} a second of the clock, {full.peak_gib:.2f} GiB")
    unchanged = night(f"×{size}, nothing changed", command, root)
    show_night(unchanged)
    with_more_labs(raw, work)
    changed = night(f"×{size}, 1 % of the patients changed", command, root)
    show_night(changed)
    return events, {"full": full, "unchanged": unchanged, "changed": changed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", help=f"replicas of the demo, ascending; {SIZES} if not given")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES}, under a minute")
    parser.add_argument("--data", type=Path, help="the MIMIC-IV demo's folder")
    parser.add_argument("--work", type=Path, help="where tables and roots are kept")
    options = parser.parse_args()
    demo = find_demo(options.data)
    with work_folder(options.work) as work:
        for size in sorted(options.sizes or (QUICK_SIZES if options.quick else SIZES)):
            folder = work / str(size)
            folder.mkdir(parents=True)
            events, nights = measure_size(demo, folder, size)
            if options.work is None:
                shutil.rmtree(folder)
    full = nights["full"]
    said = {
        "size": size,
        "events": events,
        "full_events_per_s": round(events / full.seconds),
        "full_events_per_cpu_s": round(events / full.cpu_seconds),
        "night_1pct_vs_full": round(nights["changed"].cpu_seconds / full.cpu_seconds, 4),
        "unchanged_vs_full": round(nights["unchanged"].cpu_seconds / full.cpu_seconds, 4),
        "unchanged_s": round(nights["unchanged"].seconds, 2),
        "gate_share": round(full.judging / full.cpu_seconds, 4),
        "peak_gib": round(full.peak_gib, 3),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
