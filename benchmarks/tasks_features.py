"""Features of labels beside meds-tab: counts of every code up to each label, from the same events, on as many cores.

    python benchmarks/tasks_features.py [--quick] [--subjects 20000] [--events 500] [--work DIR] [--no-peer]

Both read MEDS files and write a sparse matrix of counts over the whole history of each label; ours adds the age, folds
and few-shot subsets. A release has 64 buckets; meds-tab, which starts anew at each shard, gets shards of 5,000
subjects. It is installed into an environment of its own, and told to make counts of the whole history alone: describe,
then tabularize at the labels. The last line printed is JSON; `features_vs_meds_tab` is its seconds by ours, null where
it could not be installed or run.

`counts` are the sums of ours and of its matrix. They differ: meds-tab 0.2.0 takes the events of a moment from the first
to before the last (`aggregate_matrix`), so that it leaves out one event of each moment. Its seconds are of less work.
"""

import argparse
import json
import shutil
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import measure
import numpy as np
import peers
import polars as pl
import pyarrow.parquet as pq
import scipy.sparse
from measure import Result

from warehouse.files import hash_file, write_json
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Deidentification, FileEntry, Manifest, content_hash
from warehouse.parquet import write_table
from warehouse.publish import publish
from warehouse.schemas import EVENTS, ITEMS, SCHEME_SUBJECTS, SPLITS

TASK, SCHEME, BUCKETS, CODES = "mortality", "mehrt", 64, 3000
MEDS_TAB = ("meds-tab==0.2.0",)
START = datetime(2015, 1, 1)
CEILING = 1800.0
SHARD, MOMENT = 5_000, 5
COLUMNS = ["subject_id", "time", "code", "numeric_value"]


def events_of(subjects: np.ndarray[Any, Any], each: int, random: np.random.Generator) -> pl.DataFrame:
    """Events of some subjects: log-normal numbers of them, five a moment over ten years, codes by Zipf's law."""
    counts = np.maximum(2, random.lognormal(np.log(each) - 0.5, 1.0, len(subjects)).astype(np.int64))
    owner = np.repeat(subjects, counts)
    moments = np.maximum(1, counts // MOMENT)
    first = np.repeat(np.cumsum(moments) - moments, counts)
    which = first + random.integers(0, np.repeat(moments, counts))
    minutes = random.integers(0, 10 * 365 * 24 * 60, int(moments.sum()))[which]
    code = np.minimum(random.zipf(1.3, len(owner)) - 1, CODES - 1)
    frame = pl.DataFrame({"subject_id": owner, "minute": minutes, "place": code})
    births = pl.DataFrame({"subject_id": subjects}).with_columns(
        pl.lit(START).dt.offset_by("-60y").alias("time"), pl.lit("MEDS_BIRTH").alias("code")
    )
    facts = frame.select(
        "subject_id",
        (pl.lit(START) + pl.duration(minutes="minute")).cast(pl.Datetime("us")).alias("time"),
        pl.format("LOINC/{}", "place").alias("code"),
    )
    whole = pl.concat([births.with_columns(pl.col("time").cast(pl.Datetime("us"))), facts])
    return whole.sort("subject_id", "time", "code").with_columns(
        pl.col("time").alias("available_time"),
        pl.lit(None, pl.Float32).alias("numeric_value"),
        pl.lit("clinical").alias("kind"),
        pl.lit("drawn").alias("source"),
    )


def fabricate(root: Path, meds: Path, subjects: int, each: int) -> int:
    """A release with labels, and the same events as meds-tab takes them; gives the number of events."""
    random = np.random.default_rng(0)
    ids = np.arange(1, subjects + 1, dtype=np.int64)
    home = bucket_of(ids, BUCKETS)
    split = np.array(SPLITS)[np.searchsorted([0.8, 0.9], random.random(subjects))]
    layout, tree = Layout(root), ReleaseLayout(root / "work" / "made")
    total, seen = 0, pl.Series("code", [], pl.String)
    for bucket in range(BUCKETS):
        members = ids[home == bucket]
        events = events_of(members, each, random)
        total, seen = total + len(events), pl.concat([seen, events["code"]]).unique()
        lacking = [pl.lit(None).alias(name) for name in EVENTS.names if name not in events.columns]
        write_table(tree.events(bucket), events.with_columns(lacking), EVENTS, "events")
        write_table(tree.items(bucket), pl.from_arrow(ITEMS.empty_table()), ITEMS, "items")
        labels = pl.DataFrame({"subject_id": members}).with_columns(
            pl.Series("prediction_time", [START] * len(members), pl.Datetime("us"))
            + pl.Series(random.integers(1, 10 * 365, len(members))) * pl.duration(days=1),
            pl.Series("boolean_value", random.random(len(members)) < 0.2),
        )
        write_table(tree.labels(TASK, bucket), labels, labels.to_arrow().schema, "labels")
    for name in SPLITS:
        members = ids[split == name]
        for number, part in enumerate(np.array_split(members, max(1, round(len(members) / SHARD)))):
            of_part = pl.col("subject_id").is_in(pl.Series(part).implode())
            for folder, columns in (("data", COLUMNS), (f"labels/{TASK}", None)):
                path = meds / folder.split("/")[0] / name / f"{number}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                frame = (
                    pl.scan_parquet(tree.path / folder / "*.parquet")
                    .filter(of_part)
                    .sort("subject_id", maintain_order=True)
                )
                (frame.select(columns) if columns else frame).collect().write_parquet(path)
    subject_frame = pl.DataFrame({"subject_id": ids, "split": split, "order": np.arange(subjects) / subjects})
    write_table(tree.scheme_subjects(SCHEME), subject_frame, SCHEME_SUBJECTS, "subjects")
    tree.codes.parent.mkdir(parents=True, exist_ok=True)
    seen.sort().to_frame().write_parquet(tree.codes)
    write_json(layout.settings, {"buckets": BUCKETS})
    publish(layout, tree.path, _manifest(tree))
    return total


def _manifest(tree: ReleaseLayout) -> Manifest:
    files = {}
    for path in sorted(tree.path.rglob("*.parquet")):
        strong, fast = hash_file(path)
        rows = pq.read_metadata(path).num_rows
        entry = FileEntry(sha256=strong, xxh3=fast, bytes=path.stat().st_size, rows=rows)
        files[path.relative_to(tree.path).as_posix()] = entry
    return Manifest(
        release_id="2026-11-21T02-00-00Z", parent=None, created_at="2026-11-21T02:00:00+00:00", run_id="benchmark",
        buckets=BUCKETS, deid=Deidentification(mode="synthetic", subject_ids="kept", dates="kept", key_fingerprint=""),
        config_hash="", split_scheme=SCHEME, split_hash="", encoders={}, profiles={}, stages={}, sources={},
        verdicts={},
        content_hash=content_hash(files), tasks={}, files=files,
    )  # fmt: skip


def _counted(command: list[str], folder: Path, cores: int) -> Result:
    """A run measured; it is no converter, so that it leaves no events to count."""
    folder.mkdir(parents=True, exist_ok=True)
    result = measure.run(command, folder / "none", cores, CEILING)
    if result.failure.startswith("ended with 0"):
        result.failure = ""
    return result


def ours(root: Path, folder: Path, cores: int) -> Result:
    code = f"from warehouse import Release; Release.open({str(root)!r}).features({TASK!r}, least_share=0.0)"
    return _counted([sys.executable, "-c", f"{code}.write({str(folder / 'out')!r})"], folder, cores)


def theirs(python: Path, meds: Path, folder: Path, cores: int) -> list[Result]:
    """describe, then tabularize."""
    tool = str(python.parent / "meds-tab")
    common = [f"input_dir={meds / 'data'}", f"output_dir={folder / 'out'}"]
    steps = [
        [f"{tool}-describe", *common],
        [
            f"{tool}-tabularize-time-series", *common, f"input_label_dir={meds / 'labels'}",
            "tabularization.window_sizes=[full]", "tabularization.aggs=[code/count]",
            "tabularization.min_code_inclusion_count=1",
        ],
    ]  # fmt: skip
    return [_counted(step, folder, cores) for step in steps]


def counts_of(folder: Path) -> float:
    """The sum of our counts of codes."""
    columns = pl.read_parquet(folder / "columns.parquet").filter(pl.col("kind") == "count")["column"]
    matrix = pl.read_parquet(folder / "matrix.parquet").filter(pl.col("column").is_in(columns.implode()))
    return float(matrix["value"].sum())


def their_counts(folder: Path) -> float:
    """The sum of meds-tab's."""
    total = 0.0
    for path in folder.rglob("*.npz"):
        stored = np.load(path)
        data, shape = stored["array"] if "array" in stored else stored["data"], stored["shape"]
        total += float(scipy.sparse.coo_array((data[0], (data[1], data[2])), shape=tuple(shape)).sum())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 subjects of 100 events, under a minute")
    parser.add_argument("--subjects", type=int, default=20_000, help="subjects, each with one label")
    parser.add_argument("--events", type=int, default=500, help="events a subject, on average")
    parser.add_argument("--cores", type=int, default=2, help="cores that each may use")
    parser.add_argument("--work", type=Path, default=None, help="a folder to work in; a temporary one if not given")
    parser.add_argument("--no-peer", action="store_true", help="leave meds-tab out")
    options = parser.parse_args()
    subjects, each = (1_000, 100) if options.quick else (options.subjects, options.events)
    work = options.work or Path(tempfile.mkdtemp(prefix="tasks-features-"))
    for folder in ("root", "meds", "ours", "theirs"):
        shutil.rmtree(work / folder, ignore_errors=True)
    events = fabricate(work / "root", work / "meds", subjects, each)
    result = ours(work / "root", work / "ours", options.cores)
    print(f"ours: {result.seconds:.1f} s, {result.cpu_seconds:.1f} s of CPU, {result.peak_gib:.2f} GiB", flush=True)
    report: dict[str, Any] = {
        "subjects": subjects, "events": events, "seconds": result.seconds, "cpu_seconds": result.cpu_seconds,
        "peak_gib": result.peak_gib, "failure": result.failure, "others_cpu_seconds": result.others_cpu_seconds,
        "features_vs_meds_tab": None,
    }  # fmt: skip
    python = None if options.no_peer else peers.install("meds-tab", MEDS_TAB, work)
    if python is None:
        report["meds_tab"] = "left out" if options.no_peer else "pip could not install it"
    else:
        steps = theirs(python, work / "meds", work / "theirs", options.cores)
        failure = next((step.failure for step in steps if step.failure), "")
        seconds, cpu = sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)
        report["meds_tab"] = failure or {
            "seconds": seconds, "cpu_seconds": cpu, "peak_gib": max(step.peak_gib for step in steps)
        }  # fmt: skip
        if not failure and not result.failure:
            report["features_vs_meds_tab"] = round(seconds / result.seconds, 1)
            report["cpu_vs_meds_tab"] = round(cpu / result.cpu_seconds, 1)
            sums = counts_of(work / "ours" / "out"), their_counts(work / "theirs" / "out" / "tabularize")
            report["counts"] = [int(number) for number in sums]
    if options.work is None:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
