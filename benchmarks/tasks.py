"""How fast ten tasks are labelled, against ES-ACES on the same files and rules, and how much memory it takes.

A hospital of made-up patients is written as a release has it: cancers, treatments, stays, intensive care, creatinine,
and laboratory results that no task reads, five hundred events a patient. `derive` and `labels` make the labels of ten
tasks, a bucket at a time, in a process of their own; ES-ACES extracts the ten in the two-file form from MEDS files of
the same events, those that it needs derived among them, in another. Its labels and ours are compared. Seconds are those
of the processor, one thread each, so that others on the machine matter less. The last line is JSON: `labels_vs_aces` is
ACES's seconds over ours.

    python benchmarks/tasks.py [--quick] [--subjects N] [--aces-buckets N] [--work FOLDER]

Args:
    --quick: 1,000 patients (half a million events), under a minute.
    --subjects: patients; a bucket has 15,625 of them, as a root of a million in 64 buckets has.
    --aces-buckets: ACES runs on so many of the buckets, and its seconds are scaled: it is slow, and needs much memory.
        With 0 it does not run.
    --work: where the files go; a temporary folder if not given.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PER_BUCKET = 15_625
FIRST_DAY, DAY = 14_610, 86_400_000_000  # 2010-01-01, µs
TEN = (
    "mortality", "metastasis", "aki_icd", "aki_kdigo", "neutropenic_fever", "transfusion", "hospital_mortality",
    "icu_mortality", "icu_admission", "icu_readmission",
)  # fmt: skip
# Code, how many a patient on average, and the share of patients who have any.
CODES = {
    "ICD10CM/C50911": (6, 0.7),
    "RXNORM/2555": (10, 0.6),
    "RXNORM/56946": (8, 0.3),
    "ICD10CM/C787": (2, 0.2),
    "ICD10CM/N179": (2, 0.2),
    "ICD10CM/D701": (2, 0.2),
    "ICD10CM/R5081": (2, 0.2),
    "ICD10CM/N186": (1, 0.03),
    "ICD10CM/C8338": (1, 0.05),
    "ICD10PCS/30233N1": (2, 0.2),
}
LABS = tuple(f"LOINC/{number}-{number % 10}" for number in range(100, 300))
CREATININE = "LOINC/2160-0"


def bucket_events(bucket: int, subjects: int) -> pl.DataFrame:
    """Events of some patients, columns of EVENTS that labels read."""
    rng = np.random.default_rng([bucket, 15])
    first = bucket * PER_BUCKET
    begin = (FIRST_DAY + rng.integers(0, 2000, subjects)) * DAY
    span = rng.integers(60, 1500, subjects) * DAY
    parts: list[pl.DataFrame] = []

    def put(code: Any, place: Any, at: Any, **columns: Any) -> None:
        frame = {"subject_id": first + place, "time": at, **columns}
        parts.append(
            pl.DataFrame(frame).with_columns(code if isinstance(code, pl.Series) else pl.lit(code).alias("code"))
        )

    def moments(place: Any) -> Any:
        return begin[place] + (rng.random(len(place)) * span[place]).astype(np.int64) // 60_000_000 * 60_000_000

    put("MEDS_BIRTH", np.arange(subjects), begin - 60 * 365 * DAY)
    for code, (mean, share) in CODES.items():
        has = np.flatnonzero(rng.random(subjects) < share)
        place = np.repeat(has, 1 + rng.poisson(mean - 1, len(has)))
        put(code, place, moments(place))
    place = np.repeat(np.arange(subjects), rng.poisson(40, subjects))
    put(
        CREATININE,
        place,
        moments(place),
        numeric_value=np.round(rng.lognormal(0, 0.3, len(place)), 1).astype(np.float32),
    )
    place = np.repeat(np.arange(subjects), rng.poisson(400, subjects))
    which = pl.Series("code", np.array(LABS)[rng.integers(0, len(LABS), len(place))])
    put(which, place, moments(place), numeric_value=rng.normal(10, 2, len(place)).astype(np.float32))
    dies = np.flatnonzero(rng.random(subjects) < 0.2)
    put("MEDS_DEATH", dies, begin[dies] + span[dies])
    # One after the other, so that ACES, which knows no visits, can say which end is whose; none reaches beyond death.
    has = np.flatnonzero(rng.random(subjects) < 0.8)
    place = np.repeat(has, 1 + rng.poisson(2, len(has)))
    number = np.arange(len(place)) - np.flatnonzero(np.diff(place, prepend=-1))[np.searchsorted(has, place)]
    start, length = begin[place] + number * 30 * DAY, rng.integers(6, 9, len(place)) * DAY
    before = start + length < begin[place] + span[place]
    place, start, length, visit = place[before], start[before], length[before], ((first + place) * 100 + number)[before]
    put("HOSPITAL_ADMISSION/X", place, start, visit_id=visit)
    put("HOSPITAL_DISCHARGE/X", place, start + length, visit_id=visit)
    for later in (1, 3):
        taken = rng.random(len(place)) < 0.3
        into = start[taken] + later * DAY + rng.integers(0, DAY // 2, taken.sum()) // 60_000_000 * 60_000_000
        put("ICU_ADMISSION/X", place[taken], into, visit_id=visit[taken])
        put("ICU_DISCHARGE/X", place[taken], into + DAY, visit_id=visit[taken])
    events = pl.concat(parts, how="diagonal").with_columns(
        pl.col("time").cast(pl.Datetime("us")),
        pl.lit("s").alias("time_precision"),
        pl.lit("clinical").alias("kind"),
        pl.lit("made").alias("source"),
        pl.when(pl.col("code") == CREATININE).then(pl.lit("mg/dL")).alias("unit"),
    )
    return events.with_columns(pl.col("time").alias("available_time")).sort("subject_id", "time", "code")


def write_release(folder: Path, subjects: int) -> int:
    """Writes every bucket; gives their number."""
    from pipelines.align import CODE_COUNTS
    from pipelines.metadata import CODES as METADATA
    from warehouse.layout import ReleaseLayout
    from warehouse.parquet import empty_frame, write_table, write_tables
    from warehouse.schemas import EVENTS, SCHEME_SUBJECTS

    tree, buckets, everyone = ReleaseLayout(folder), -(-subjects // PER_BUCKET), set()
    none = empty_frame(EVENTS)
    for bucket in range(buckets):
        count = min(PER_BUCKET, subjects - bucket * PER_BUCKET)
        events = pl.concat([none, bucket_events(bucket, count)], how="diagonal_relaxed").select(none.columns)
        # As align writes them: some patients a row group.
        pieces = (part for _, part in events.group_by(pl.col("subject_id") // 1000, maintain_order=True))
        write_tables(tree.events(bucket), pieces, EVENTS, "data")
        counted = events.group_by("code").agg(pl.len().cast(pl.Int64).alias("events")).sort("code")
        write_table(tree.codes_of(bucket), counted, CODE_COUNTS, "codes")
        everyone |= set(counted["code"])
    codes = pl.DataFrame({"code": sorted(everyone)}).with_columns(
        pl.lit(None, pl.String).alias("description"), pl.lit(None, pl.List(pl.String)).alias("parent_codes")
    )
    write_table(tree.codes, codes, METADATA, "codes")
    ids = np.arange(subjects)
    split = pl.Series(np.array(["train", "tuning", "held_out"])[np.digitize(ids % 20, [17, 18])])
    assigned = pl.DataFrame({"subject_id": ids, "split": split, "order": ids.astype(np.float64)})
    write_table(tree.scheme_subjects("mehrt"), assigned, SCHEME_SUBJECTS, "splits")
    return buckets


def tasks_of() -> Any:
    """The ten tasks, their switches set to what ACES can say."""
    from pipelines.tasks.settings import LabelsConfig
    from tests.support.aces_tasks import expressible

    return LabelsConfig.model_validate({"tasks": {name: expressible(name).model_dump() for name in TEN}})


def ours(folder: Path, buckets: int) -> None:
    """Runs the two stages, bucket by bucket; prints seconds and peak."""
    from pipelines.papers import derive, labels
    from pipelines.tasks.members import LabelCodes
    from warehouse.layout import ReleaseLayout

    config, tree = tasks_of(), ReleaseLayout(folder)
    start = time.process_time()
    codes = LabelCodes.of(tree, config).params
    tasks = {name: task.model_dump(mode="json") for name, task in config.read_tasks.items()}
    settings = config.derived.model_dump(mode="json")
    seconds = []
    for bucket in range(buckets):
        begun = time.process_time()
        derive.run({"bucket": bucket, "settings": settings, "codes": codes}, folder)
        labels.run({"bucket": bucket, "tasks": tasks, "withheld": [], "codes": codes, "scheme": "mehrt"}, folder)
        seconds.append(time.process_time() - begun)
    _say(seconds=time.process_time() - start, by_bucket=seconds)


def aces(folder: Path, buckets: int) -> None:
    """Extracts the ten tasks from MEDS files of the same events, bucket by bucket; prints seconds and peak."""
    import logging

    from pipelines.tasks.codes import resolve
    from pipelines.tasks.labelling import lists_of
    from pipelines.tasks.members import LabelCodes
    from tests.support.aces import aces_labels, write_events
    from warehouse.layout import ReleaseLayout

    logging.disable(logging.CRITICAL)
    config, tree = tasks_of(), ReleaseLayout(folder)
    codes, columns = LabelCodes.of(tree, config), ["subject_id", "time", "available_time", "code"]
    seconds, differing, compared = 0.0, 0, 0
    for bucket in range(buckets):
        files = (tree.events(bucket), tree.derived(bucket))
        events = pl.concat([pl.read_parquet(path, columns=columns) for path in files])
        members = resolve(lists_of(config.read_tasks), codes.lists, events["code"].unique(), codes.edges)
        lists = {name: members.filter(pl.col("list") == name)["code"].unique().to_list() for name in codes.lists}
        path = write_events(folder / "aces", events, "available_time")
        del events
        for name, task in config.read_tasks.items():
            begun = time.process_time()
            theirs = aces_labels(path, task, lists)
            seconds += time.process_time() - begun
            made = pl.read_parquet(tree.labels(name, bucket)).iter_rows()
            found = {(subject, moment): value for subject, moment, value in made}
            differing += sum(found.get(key) != theirs.get(key) for key in found.keys() | theirs.keys())
            compared += len(found)
    _say(seconds=seconds, differing=differing, compared=compared)


def _say(**figures: Any) -> None:
    # What `getrusage` says of a child is at least what its parent had when it was started.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    print(json.dumps({**figures, "peak_gib": round(peak, 3)}))


def child(part: str, folder: Path, buckets: int) -> dict[str, Any]:
    """Runs a part in a process of its own, on one thread."""
    environment = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--part", part, "--work", str(folder), "--aces-buckets", str(buckets)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--subjects", type=int, default=125_000)
    parser.add_argument("--aces-buckets", type=int, default=1)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--part", choices=("ours", "aces"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        (ours if given.part == "ours" else aces)(given.work, given.aces_buckets)
        return
    subjects = 1_000 if given.quick else given.subjects
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        folder = Path(name)
        buckets = write_release(folder, subjects)
        events = sum(pl.scan_parquet(path).select(pl.len()).collect().item() for path in (folder / "data").glob("*"))
        print(f"{subjects:,} patients, {events:,} events in {buckets} buckets")
        labelled = child("ours", folder, buckets)
        rate = events / labelled["seconds"] / 1e6
        print(f"timeloom: {labelled['seconds']:.1f} s, {rate:.1f} M events/s, {labelled['peak_gib']} GiB")
        result = {
            "subjects": subjects,
            "events": events,
            "tasks": len(TEN),
            "seconds": round(labelled["seconds"], 2),
            "peak_gib": labelled["peak_gib"],
        }
        number = min(buckets, given.aces_buckets)
        if number:
            theirs = child("aces", folder, number)
            same = sum(labelled["by_bucket"][:number])
            print(f"ES-ACES, {number} of {buckets} buckets: {theirs['seconds']:.1f} s, timeloom {same:.1f} s")
            print(f"{theirs['differing']} of {theirs['compared']:,} labels differ")
            result |= {
                "labels_vs_aces": round(theirs["seconds"] / same, 1),
                "aces_seconds": round(theirs["seconds"] * buckets / number, 1),
                "aces_peak_gib": theirs["peak_gib"],
                "labels_that_differ": theirs["differing"],
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
