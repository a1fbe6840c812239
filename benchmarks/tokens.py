"""How many tokens a core makes and packs in a second, against meds-torch-data on the same events.

The hundred patients of the MIMIC-IV demo, converted by `timeloom meds`, are there many times under other ids. Three
profiles: `every` makes a token or more of every event, `ethos` is the built-in one, and `pair` has every code, the
quantile of every number and 19 intervals. Seconds are those of the processor, the best of three, so that others on the
machine matter less; reading and writing of files are among them. The last line is JSON: `tokenize_pack_mtok_s_core` is
that of `every`; `vs_meds_torch_data` is events a second of everything from MEDS to what a trainer reads (counting and
fitting too), over theirs.

    python benchmarks/tokens.py [--quick] [--demo FOLDER] [--meds-torch-data PYTHON]

Args:
    --quick: 6 copies of the demo instead of 40.
    --demo: the folder mimic-iv-demo-2.2; where not given, below $TIMELOOM_DATA or ../shared/data.
    --meds-torch-data: a Python that has meds-torch-data 0.9, in an environment of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import yaml

from pipelines import count, pack, tokenize, vocabulary
from pipelines.align import CODE_COUNTS
from pipelines.engine.context import RunContext, StageReport
from pipelines.engine.execute import execute
from pipelines.engine.local import LocalEngine
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import StageFunction, Task
from pipelines.profiles import ProfileConfig, built_in
from pipelines.split import SUBJECT_SPLITS
from warehouse.hashing import bucket_of, splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame, write_table, write_tables
from warehouse.schemas import EVENTS, ITEMS, SCHEME_SUBJECTS

# What the engine gives its workers: one thread, and memory that is kept. It counts from a process's first moment.
KEPT = {"POLARS_MAX_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}
BUCKETS, STEP, SCHEME = 2, 100_000, "mehrt"
VALUED = {"values": True}
PROFILES = {
    "every": built_in("mehrt", namespaces=None, scheme=SCHEME),
    "ethos": built_in("ethos", scheme=SCHEME),
    "pair": built_in(
        "mehrt", namespaces=None, scheme=SCHEME, values="pair", intervals="ethos19",
        codes={"MIMIC_LAB": VALUED, "LOINC": VALUED, "OMR": VALUED, "INFUSION_START": VALUED, "OUTPUT": VALUED},
    ),
}  # fmt: skip


def convert(demo: Path, work: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The demo's events and codes.parquet."""
    config = {"name": "demo", "sources": [{"source": "mimic-iv", "path": str(demo)}], "buckets": 1}
    config["deid"] = {"mode": "expert", "subject_ids": "keep", "dates": "keep"}
    (work / "demo.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "meds",
        str(work / "demo.yaml"),
        "--out",
        str(work / "demo"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise SystemExit(done.stderr)
    events = pl.concat([read_frame(path) for path in sorted((work / "demo" / "data").glob("*.parquet"))])
    return events, read_frame(work / "demo" / "metadata" / "codes.parquet")


def replicate(events: pl.DataFrame, codes: pl.DataFrame, copies: int, tree: ReleaseLayout) -> pl.DataFrame:
    """Writes what the stages read: buckets of events, their codes, splits; gives the splits."""
    write_table(tree.codes, codes, vocabulary_of_codes(), "codes")
    subjects = pl.concat([events.select(pl.col("subject_id").unique().sort() + STEP * copy) for copy in range(copies)])
    ids = subjects["subject_id"].to_numpy()
    chance = pl.Series(splitmix64(ids) % 100)
    split = (
        pl.when(chance < 85)
        .then(pl.lit("train"))
        .when(chance < 90)
        .then(pl.lit("tuning"))
        .otherwise(pl.lit("held_out"))
    )
    splits = subjects.select("subject_id", split.alias("split"), pl.Series("order", splitmix64(ids) / 2**64))
    write_table(tree.scheme_subjects(SCHEME), splits, SCHEME_SUBJECTS, "splits")
    write_table(tree.subject_splits, splits.select("subject_id", "split"), SUBJECT_SPLITS, "splits")
    for bucket in range(BUCKETS):
        parts = []
        for copy in range(copies):
            moved = events.with_columns(pl.col("subject_id") + STEP * copy)
            in_bucket = pl.Series(bucket_of(moved["subject_id"].to_numpy(), BUCKETS) == bucket)
            parts.append(moved.filter(in_bucket))
        write_tables(tree.events(bucket), parts, EVENTS, "events")
        write_table(tree.items(bucket), ITEMS.empty_table(), ITEMS, "items")
        counts = pl.concat(parts).group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
        write_table(tree.codes_of(bucket), counts, CODE_COUNTS, "codes")
    return splits


def vocabulary_of_codes() -> pa.Schema:
    """The schema of codes.parquet."""
    from pipelines.metadata import CODES

    return CODES


def best_of(stage: StageFunction, tasks: list[Task], context: RunContext) -> tuple[StageReport, float]:
    """What a stage did, and the processor's seconds of the best of three runs of its tasks."""
    report = run_stage(stage, tasks, context)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for task in tasks:
            execute(task)
        seconds.append(time.process_time() - start)
    return report, min(seconds)


def measure(name: str, profile: ProfileConfig, staging: Path) -> dict[str, float]:
    """Seconds, tokens and fill of one profile, by the stages of a run."""
    context = RunContext(LocalEngine(1), staging, None, None)
    inputs: dict[int, Any] = dict.fromkeys(range(BUCKETS), "x")
    splits = dict.fromkeys(range(BUCKETS), "x")
    counts, counting = best_of(count.STAGE, count.tasks_of(context, name, profile, inputs, splits, {}), context)
    _, fitting = best_of(vocabulary.STAGE, [vocabulary.task_of(context, name, profile, counts)], context)
    lines, tokenizing = best_of(tokenize.STAGE, tokenize.tasks_of(context, name, profile, inputs, {}), context)
    words = read_frame(ReleaseLayout(staging / "release").vocabulary(name))
    tasks = pack.tasks_of(context, name, profile, [list(range(BUCKETS))], lines, splits, words, {})
    packs, packing = best_of(pack.STAGE, tasks, context)
    (counted,) = (entry.counts for entry in packs.entries.values())
    left_out = sum(sum(split["dropped"].values()) for split in counted["splits"].values())
    return {
        "tokens": lines.total("tokens"),
        "count_and_fit_s": counting + fitting,
        "tokenize_s": tokenizing,
        "pack_s": packing,
        "fill": counted["fill"],
        "lost": lines.total("tokens") - counted["tokens"] - left_out,
    }


def meds_torch_data(python: Path, tree: ReleaseLayout, splits: pl.DataFrame, work: Path) -> float:
    """The processor's seconds that meds-torch-data takes to make tensors of the same events."""
    source = work / "meds"
    events = pl.concat([read_frame(tree.events(bucket)) for bucket in range(BUCKETS)])
    plain = events.select("subject_id", "time", "code", "numeric_value").sort("subject_id", maintain_order=True)
    for split, subjects in splits.group_by("split"):
        path = source / "data" / str(split[0]) / "0.parquet"
        path.parent.mkdir(parents=True)
        plain.join(subjects.select("subject_id"), on="subject_id", how="semi", maintain_order="left").write_parquet(
            path
        )
    (source / "metadata").mkdir()
    read_frame(tree.codes).write_parquet(source / "metadata" / "codes.parquet")
    splits.select("subject_id", "split").write_parquet(source / "metadata" / "subject_splits.parquet")
    (source / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "demo", "meds_version": "0.4.1"}))
    command = [str(python.parent / "MTD_preprocess"), f"MEDS_dataset_dir={source}", f"output_dir={work / 'tensors'}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or not list((work / "tensors").rglob("*.nrt")):
        raise SystemExit(f"meds-torch-data made nothing:\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 copies of the demo instead of 40")
    parser.add_argument("--demo", type=Path, help="the folder mimic-iv-demo-2.2")
    parser.add_argument("--meds-torch-data", type=Path, help="a Python that has meds-torch-data 0.9")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEPT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEPT)
    pa.set_cpu_count(1)
    data = Path(os.environ.get("TIMELOOM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    demo = options.demo or data / "mimic-iv-demo-2.2"
    if not demo.is_dir():
        raise SystemExit("no mimic-iv-demo-2.2: give its folder with --demo")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        events, codes = convert(demo, work)
        tree = ReleaseLayout(work / "run" / "release")
        splits = replicate(events, codes, 6 if options.quick else 40, tree)
        number = sum(len(read_frame(tree.events(bucket))) for bucket in range(BUCKETS))
        print(f"{number:,} events of {len(splits):,} subjects; seconds of one core")
        print(" profile       tokens  count, fit  tokenize   pack  Mtok/s     fill lost")
        found = {name: measure(name, profile, work / "run") for name, profile in PROFILES.items()}
        rates = {name: entry["tokens"] / (entry["tokenize_s"] + entry["pack_s"]) / 1e6 for name, entry in found.items()}
        for name, figures in found.items():
            seconds = f"{figures['count_and_fit_s']:>11.2f} {figures['tokenize_s']:>9.2f} {figures['pack_s']:>6.2f}"
            packing = f"{figures['fill']:>8.3%} {figures['lost']}"
            print(f"{name:>8} {figures['tokens']:>12,} {seconds} {rates[name]:>7.2f} {packing}")
        ours = sum(found["every"][part] for part in ("count_and_fit_s", "tokenize_s", "pack_s"))
        versus = None
        if options.meds_torch_data:
            theirs = meds_torch_data(options.meds_torch_data, tree, splits, work)
            versus = round(theirs / ours, 2)
            print(f"meds-torch-data: {theirs:.2f} s, {number / theirs / 1e6:.2f} M events/s")
            print(f"timeloom, all of it: {ours:.2f} s, {number / ours / 1e6:.2f} M events/s")
        print("ethos-ares: no package; 0.113 Mtok/s measured before on such data, of which no ratio is made")
        print(
            json.dumps(
                {
                    "tokenize_pack_mtok_s_core": round(rates["every"], 2),
                    "ethos_profile_mtok_s_core": round(rates["ethos"], 2),
                    "pair_profile_mtok_s_core": round(rates["pair"], 2),
                    "tokenize_mtok_s_core": round(found["every"]["tokens"] / found["every"]["tokenize_s"] / 1e6, 2),
                    "vs_ethos": None,
                    "vs_meds_torch_data": versus,
                    "pack_fill": round(found["every"]["fill"], 5),
                    "tokens_lost": sum(int(figures["lost"]) for figures in found.values()),
                }
            )
        )


if __name__ == "__main__":
    main()
