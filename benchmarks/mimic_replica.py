"""Raw MIMIC-IV trees of any size out of the published demo: the same hundred patients again under other ids.

Replica k adds k steps to every id that tables are joined on or that names a row, so that nothing joins across
replicas. Dictionaries, providers and caregivers stay as they are. The demo has no `icu/chartevents`, which every
converter reads and which is the largest table of the real thing: a plausible one of the published schema is drawn once
(seeded, within the demo's ICU stays, of the items that `icu/d_items` links to it) and replicated like the others.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

CHARTEVENTS_ROWS = 600_000
FORMAT = 1
"""Raised whenever the same demo would give other bytes, so that a kept tree is not taken for the present one."""

STEPS = {
    "subject_id": 100_000,
    "hadm_id": 10_000_000,
    "stay_id": 10_000_000,
    "transfer_id": 10_000_000,
    "labevent_id": 1_000_000,
    "specimen_id": 100_000_000,
    "microevent_id": 100_000,
    "micro_specimen_id": 10_000_000,
    "pharmacy_id": 100_000_000,
    "orderid": 10_000_000,
    "linkorderid": 10_000_000,
}
"""The distance between replicas: above the range of that id in the demo, so that no two replicas share one."""

SUBJECT_PREFIXED = ("poe_id", "emar_id", "discontinue_of_poe_id", "discontinued_by_poe_id")
"""Ids of the form `<subject_id>-<number>`."""

SHARED = ("d_hcpcs", "d_icd_diagnoses", "d_icd_procedures", "d_labitems", "provider", "caregiver", "d_items")

VITALS = (
    # itemid, mean, standard deviation, decimals, share of all rows
    (220045, 86.0, 17.0, 0, 0.060),  # heart rate
    (220210, 20.0, 5.5, 0, 0.058),  # respiratory rate
    (220277, 96.8, 2.6, 0, 0.058),  # oxygen saturation
    (220179, 120.0, 21.0, 0, 0.035),  # blood pressure, cuff: systolic, diastolic, mean
    (220180, 64.0, 15.0, 0, 0.035),
    (220181, 78.0, 15.0, 0, 0.035),
    (220050, 117.0, 22.0, 0, 0.020),  # the same, arterial line
    (220051, 58.0, 12.0, 0, 0.020),
    (220052, 77.0, 14.0, 0, 0.020),
    (223761, 98.6, 1.1, 1, 0.015),  # temperature, Fahrenheit
    (220621, 142.0, 48.0, 0, 0.006),  # glucose
    (223835, 46.0, 12.0, 0, 0.006),  # inspired oxygen fraction
)
PHRASES = (
    "SR (Sinus Rhythm)",
    "None",
    "Normal",
    "No Response-ETT",
    "Obeys Commands",
    "Spontaneously",
    "Clear",
    "Diminished",
    "Warm, Dry",
    "Weak Palpable",
    "Nasal cannula",
    "Turned right, HOB 30 degrees",
    'Patient states "I am in no pain"',
    "Soft, non-tender, bowel sounds present",
    "Oriented to person, place and time",
    "1",
    "0",
    "> 20",
)


def _chartevents(demo: Path, rows: int, seed: int = 20240131) -> pl.DataFrame:
    """`rows` rows of `icu/chartevents`, every column text, sorted by subject, stay and time."""
    draw = np.random.default_rng(seed)
    stays = pl.read_csv(demo / "icu" / "icustays.csv.gz", try_parse_dates=True).sort("subject_id", "stay_id")
    seconds = (stays["outtime"] - stays["intime"]).dt.total_seconds().to_numpy()
    stay = draw.choice(len(stays), rows, p=seconds / seconds.sum())
    minute = (draw.random(rows) * (seconds[stay] // 60)).astype(np.int64)
    minute = np.where(draw.random(rows) < 0.7, minute // 60 * 60, minute)  # most charting is done on the hour

    items = pl.read_csv(demo / "icu" / "d_items.csv.gz").filter(pl.col("linksto") == "chartevents").sort("itemid")
    items = items.sample(fraction=1, shuffle=True, seed=seed)
    share = 1 / np.arange(20, 20 + len(items))
    vitals = {item: values for item, *values in VITALS}
    is_vital = items["itemid"].is_in(list(vitals)).to_numpy()
    share[is_vital] = 0
    share *= (1 - sum(values[3] for values in vitals.values())) / share.sum()
    share[is_vital] = [vitals[item][3] for item in items["itemid"].to_numpy()[is_vital]]
    item = draw.choice(len(items), rows, p=share / share.sum())

    usual = [vitals.get(i) or [float(m), m / 5, d, 0] for i, m, d in _usual(items, draw)]
    mean, spread, decimals = (np.array([u[k] for u in usual])[item] for k in range(3))
    number = np.abs(draw.normal(mean, spread))
    number = np.where(decimals > 0, np.round(number, 1), np.round(number))
    phrase = (item * 7 + draw.geometric(0.5, rows)) % len(PHRASES)
    # What is charted in one hour of a stay is stored together, by the caregiver of that shift.
    round_ = (stay * 1_000 + minute // 60) % 4_096
    late = draw.exponential(25, 4_096).astype(np.int64)[round_]
    caregivers = pl.read_csv(demo / "icu" / "caregiver.csv.gz")["caregiver_id"].sort()
    caregiver = caregivers[draw.integers(0, len(caregivers), 400)][(stay * 7 + minute // 720) % 400]
    numeric = items["param_type"].is_in(["Numeric", "Numeric with tag"]).to_numpy()[item]

    format_time = "%Y-%m-%d %H:%M:%S"
    shown = pl.col("number").cast(pl.String).str.strip_suffix(".0")
    return (
        pl.DataFrame(
            {
                "stay": stay.astype(np.uint32),
                "item": item.astype(np.uint32),
                "minute": minute,
                "late": late,
                "number": number,
                "phrase": np.array(PHRASES)[phrase],
                "numeric": numeric,
                "empty": draw.random(rows) < 0.002,
                "unstored": draw.random(rows) < 0.001,
                "warning": (draw.random(rows) < 0.01).astype(np.int64),
                "caregiver": caregiver,
            }
        )
        .with_columns(pl.col("minute") + pl.int_range(pl.len()).over("stay", "item", "minute"))  # no item twice at once
        .hstack(stays[stay].select("subject_id", "hadm_id", "stay_id", "intime"))
        .hstack(items[item].select("itemid", "unitname"))
        .with_columns(
            charttime=pl.max_horizontal("intime", pl.col("intime").dt.truncate("1h") + pl.duration(minutes="minute"))
        )
        .sort("subject_id", "stay_id", "charttime", "itemid", "number")
        .select(
            pl.col("subject_id", "hadm_id", "stay_id").cast(pl.String),
            pl.col("caregiver").cast(pl.String).alias("caregiver_id"),
            pl.col("charttime").dt.strftime(format_time),
            pl.when(~pl.col("unstored"))
            .then((pl.col("charttime") + pl.duration(minutes=1 + pl.col("late"))).dt.strftime(format_time))
            .alias("storetime"),
            pl.col("itemid").cast(pl.String),
            pl.when(~pl.col("empty")).then(pl.when(pl.col("numeric")).then(shown).otherwise("phrase")).alias("value"),
            pl.when(pl.col("numeric") & ~pl.col("empty")).then(shown).alias("valuenum"),
            pl.when(pl.col("numeric")).then("unitname").alias("valueuom"),
            pl.col("warning").cast(pl.String),
        )
    )


def _usual(items: pl.DataFrame, draw: np.random.Generator) -> list[tuple[int, float, int]]:
    """For each item its id, a mean of its own between 1 and 300, and its decimals (0 or 1)."""
    means = np.exp(draw.uniform(0, np.log(300), len(items)))
    return list(zip(items["itemid"].to_list(), means.tolist(), draw.integers(0, 2, len(items)).tolist(), strict=True))


def _shifted(table: pl.DataFrame, replica: int) -> pl.DataFrame:
    shift = [(pl.col(c).cast(pl.Int64) + replica * STEPS[c]).cast(pl.String) for c in table.columns if c in STEPS]
    prefixed = [
        (pl.col("subject_id").cast(pl.Int64) + replica * STEPS["subject_id"]).cast(pl.String)
        + pl.col(c).str.extract(r"(-.*)$")
        for c in table.columns
        if c in SUBJECT_PREFIXED
    ]
    named = [e.alias(c) for e, c in zip(prefixed, [c for c in table.columns if c in SUBJECT_PREFIXED], strict=True)]
    return table.with_columns(*shift, *named)


def _check_steps(name: str, table: pl.DataFrame) -> None:
    for column in set(table.columns) & STEPS.keys():
        ids = table[column].cast(pl.Int64).drop_nulls()
        if len(ids) and int(ids.max()) - int(ids.min()) >= STEPS[column]:  # type: ignore[arg-type]
            raise SystemExit(f"{name}: {column} spans more than a step between replicas; is this the MIMIC-IV demo?")


def write_csv_gz(path: Path, table: pl.DataFrame, replicas: Sequence[int], compressor: Sequence[str]) -> None:
    """The replicas of a table, one after another, as one gzip stream; memory is that of one replica."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as target:
        process = subprocess.Popen(list(compressor), stdin=subprocess.PIPE, stdout=target)
        assert process.stdin is not None
        for replica in replicas:
            text = _shifted(table, replica).write_csv(include_header=replica == replicas[0])
            process.stdin.write(text.encode())
        process.stdin.close()
        if process.wait():
            raise SystemExit(f"the compressor ended with {process.returncode} at {path.name}")
    partial.replace(path)


def replicate(demo: Path, work: Path, size: int, compressor: Sequence[str]) -> Path:
    """The folder of the demo times `size`, made unless it is already there: `hosp/` and `icu/` of `*.csv.gz`."""
    target = work / "raw" / f"x{size}"
    mark = target / "replica.json"
    wanted = {"format": FORMAT, "size": size, "chartevents": CHARTEVENTS_ROWS}
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return target
    for folder in ("hosp", "icu"):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for source in sorted((demo / folder).glob("*.csv.gz")):
            name = source.name.removesuffix(".csv.gz")
            if name in SHARED:
                shutil.copyfile(source, target / folder / source.name)
                continue
            table = pl.read_csv(source, infer_schema=False)
            _check_steps(name, table)
            write_csv_gz(target / folder / source.name, table, range(size), compressor)
    if not (demo / "icu" / "chartevents.csv.gz").is_file():
        table = _chartevents(demo, CHARTEVENTS_ROWS)
        write_csv_gz(target / "icu" / "chartevents.csv.gz", table, range(size), compressor)
    mark.write_text(json.dumps(wanted))
    return target


def find_demo(given: Path | None) -> Path:
    """The MIMIC-IV demo's folder: the one given, else below $TIMELOOM_DATA, else beside the repository.

    Raises:
        SystemExit: there is none, with one line that says where it was looked for.
    """
    data = Path(os.environ.get("TIMELOOM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    demo = given or data / "mimic-iv-demo-2.2"
    if not (demo / "hosp" / "patients.csv.gz").is_file():
        raise SystemExit(
            "no MIMIC-IV demo: give --data its folder (the one with hosp/ and icu/), or set TIMELOOM_DATA to a folder "
            "that has mimic-iv-demo-2.2"
        )
    return demo
