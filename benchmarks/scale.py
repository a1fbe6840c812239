"""From raw CSV to verified shards at several sizes: large simulated hospitals of MEHRT's lengths, and the nights after.

    python benchmarks/scale.py [--subjects N ...] [--quick] [--work DIR] [--buckets N] [--compressed]
                               [--nights NIGHT ...]

Each size has a root of its own and, one after the other: a full night, one on which nothing changed, one with one
changed patient, one with 1 % of the patients changed and spread over all, its tables exported whole; `--nights` names
others. Of each the steps: seconds of the clock and of processors (all processes), peak of the process tree (PSS), bytes
that calls read and wrote.

The last line is JSON, of the largest size. Ratios are of processors' seconds: those of the clock say little where
others work too. `growth_time` is the full night's processor seconds a subject against the size before, `growth_peak`
its peak; both are null for one size.
"""

import argparse
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from measure import NightCost, night, show_night, work_folder

from extractors.simulate.large import simulate_large

SIZES = (10_000, 100_000)
USUAL = ("full", "unchanged", "one", "next")
QUICK_SIZES = (300, 1_200)
QUICK_BUCKETS = 16
COMPRESSED_FROM = 200_000
"""Subjects from which tables are written as .csv.gz unless it is asked for: a million are 37 GB of text."""


@dataclass(frozen=True)
class Size:
    """What was measured at one size: its nights by name, and the events of its release."""

    subjects: int
    events: int
    nights: dict[str, NightCost]

    @property
    def full(self) -> NightCost:
        return self.nights["full"]

    def against_full(self, name: str) -> float | None:
        """A night's processor seconds, as a share of the full night's."""
        found = self.nights.get(name)
        return round(found.cpu_seconds / self.full.cpu_seconds, 4) if found else None


def exported(hospital: Path, subjects: int, name: str, compressed: bool) -> None:
    """Puts another night's tables in place of those that are there; vectors and lists of images stay."""
    other = hospital.with_name(f"{hospital.name}-{name}")
    simulate_large(other, subjects=subjects, night=name, compressed=compressed)
    shutil.rmtree(hospital / "tables")
    (other / "tables").rename(hospital / "tables")
    shutil.rmtree(other)


def configuration(hospital: Path, buckets: int | None) -> Path:
    """The hospital's own, with the number of buckets that is asked for."""
    path = hospital / "large.yaml"
    if buckets is not None:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump({**settings, "buckets": buckets}), encoding="utf-8")
    return path


def measure_size(work: Path, subjects: int, buckets: int | None, compressed: bool, names: Sequence[str]) -> Size:
    """Simulates a hospital and carries out its nights."""
    hospital, root = work / "hospital", work / "warehouse"
    simulate_large(hospital, subjects=subjects, compressed=compressed)
    command = ("run", str(configuration(hospital, buckets)), "--root", str(root))
    nights = {}
    for name in names:
        if name in ("one", "next", "reordered"):
            exported(hospital, subjects, name, compressed)
        nights[name] = night(f"{subjects:,} subjects, {TITLES[name]}", command, root)
        show_night(nights[name])
    files = ((root / "current").resolve() / "data").rglob("*.parquet")
    return Size(subjects, sum(pq.read_metadata(path).num_rows for path in files), nights)


# In the order in which they follow each other.
TITLES = {
    "full": "full night",
    "unchanged": "nothing changed",
    "one": "one patient has a visit more",
    "next": "1 % of the patients changed",
    "reordered": "the first night's rows in another order",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="+", help=f"sizes, ascending; {SIZES} if not given")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES}, under a minute and a half")
    parser.add_argument("--work", type=Path, help="where hospitals and roots are kept; none may lie there yet")
    parser.add_argument("--buckets", type=int, help="of each root; the run's own number if not given")
    parser.add_argument("--compressed", action="store_true", help=f"tables as .csv.gz also below {COMPRESSED_FROM:,}")
    parser.add_argument(
        "--nights", nargs="+", choices=list(TITLES), default=list(USUAL), help="which, always after a full one"
    )
    options = parser.parse_args()
    sizes = sorted(options.subjects or (QUICK_SIZES if options.quick else SIZES))
    buckets = options.buckets or (QUICK_BUCKETS if options.quick else None)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    measured = []
    with work_folder(options.work) as work:
        for subjects in sizes:
            asked = set(options.nights) if not options.quick or subjects == sizes[-1] else set()
            names = [name for name in TITLES if name == "full" or name in asked]
            folder = work / str(subjects)
            folder.mkdir(parents=True, exist_ok=True)
            compressed = options.compressed or subjects >= COMPRESSED_FROM
            measured.append(measure_size(folder, subjects, buckets, compressed, names))
            if options.work is None:
                shutil.rmtree(folder)
    largest = measured[-1]
    before = measured[-2] if len(measured) > 1 else None
    full = largest.full
    said = {
        "subjects": largest.subjects,
        "events": largest.events,
        "full_events_per_s": round(largest.events / full.seconds),
        "full_events_per_cpu_s": round(largest.events / full.cpu_seconds),
        "night_1pct_vs_full": largest.against_full("next"),
        "unchanged_vs_full": largest.against_full("unchanged"),
        "unchanged_s": round(largest.nights["unchanged"].seconds, 2) if "unchanged" in largest.nights else None,
        "one_subject_vs_full": largest.against_full("one"),
        "reordered_vs_full": largest.against_full("reordered"),
        "gate_share": round(full.judging / full.cpu_seconds, 4),
        "peak_gib": round(full.peak_gib, 3),
        "growth_time": None,
        "growth_peak": None,
    }
    if before is not None:
        each = [size.full.cpu_seconds / size.subjects for size in (before, largest)]
        said["growth_time"] = round(each[1] / each[0], 4)
        said["growth_peak"] = round(full.peak_gib / before.full.peak_gib, 4)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
