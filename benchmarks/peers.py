"""The converters that this project is held against: how each is installed, laid out and run where it is fastest."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
from measure import Result


@dataclass(frozen=True)
class Peer:
    """A converter and what pip installs for it."""

    title: str
    requirements: tuple[str, ...]


MEDS_ETL = "meds_etl[cpp]==0.3.11"
BATCHED = "polars==1.31.0"  # read_csv_batched still reads in batches: fastest and smallest from x20 on
LATEST = "polars==1.44.2"  # the last release before 2.0, which dropped read_csv_batched: fastest at x1
PEERS = {
    "meds-etl-cpp": Peer("meds_etl C++ (polars 1.31)", (MEDS_ETL, BATCHED)),
    "meds-etl-cpp-latest": Peer("meds_etl C++ (polars 1.44)", (MEDS_ETL, LATEST)),
    "meds-etl-polars": Peer("meds_etl polars (polars 1.31)", (MEDS_ETL, BATCHED)),
    "mimic-iv-meds": Peer("MIMIC-IV-MEDS 0.2.0", ("MIMIC-IV-MEDS==0.2.0",)),
}
CONCEPT_MAPS = "meds_etl/mimic/concept_map"
"""MIMIC-IV-MEDS downloads these tables of item codes; meds_etl ships the same ones."""


def title(name: str) -> str:
    """The name in the table."""
    return PEERS[name].title if name in PEERS else name


def environment_of(name: str, work: Path) -> Path:
    """The folder of a converter's environment; those that install the same share one."""
    requirements = PEERS[name].requirements if name in PEERS else (name,)
    return work / "envs" / min((n for n, p in PEERS.items() if p.requirements == requirements), default=name)


def install(name: str, requirements: Sequence[str], work: Path) -> Path | None:
    """The Python of an environment that has the requirements, installed if need be; None where pip could not."""
    folder = environment_of(name, work)
    python = folder / "bin" / "python"
    mark = folder / "installed.json"
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == list(requirements):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], capture_output=True)
    if done.returncode:
        return None
    mark.write_text(json.dumps(list(requirements)), encoding="utf-8")
    return python


def run(name: str, raw: Path, folder: Path, work: Path, processes: int, ceiling: float) -> Result:
    """One run of a peer on a raw tree, inside `folder`."""
    python = install(name, PEERS[name].requirements, work)
    if python is None:
        return Result(0, failure="pip could not install it")
    output = folder / "out"
    if name.startswith("meds-etl"):
        (folder / "src").mkdir()
        (folder / "src" / "2.2").symlink_to(raw, target_is_directory=True)
        backend = "polars" if name == "meds-etl-polars" else "cpp"
        # Its documentation: for C++ as many shards as cores; for polars as few as memory allows.
        shards = processes if backend == "cpp" else 10
        command = [str(python.parent / "meds_etl_mimic"), str(folder / "src"), str(output), "--backend", backend]
        command += ["--num_proc", str(processes), "--num_shards", str(shards)]
        return measure.run(command, output, processes, ceiling)
    return _mimic_iv_meds(python, raw, folder, work, processes, ceiling)


def _mimic_iv_meds(python: Path, raw: Path, folder: Path, work: Path, processes: int, ceiling: float) -> Result:
    maps = install("meds-etl-cpp", PEERS["meds-etl-cpp"].requirements, work)
    if maps is None:
        return Result(0, failure="pip could not install meds_etl, which has its concept maps")
    source = folder / "src"
    source.mkdir()
    for part in ("hosp", "icu"):
        (source / part).symlink_to(raw / part, target_is_directory=True)
    for table in next(maps.parents[1].glob(f"lib/python*/site-packages/{CONCEPT_MAPS}")).glob("*.csv"):
        (source / table.name).symlink_to(table)
    # One process of two threads: its two-worker mode (joblib) is slower, 23 against 15 s at x1, 100 against 73 at x20.
    # Its reducers look for their input every 300 s unless told otherwise.
    command = [str(python.parent / "meds-extract-run"), "spec=MIMIC-IV", f"output_dir={folder / 'out'}"]
    command += ["do_download=false", f"input_dir={source}", "dataset_key=demo", "overrides=['polling_time=0.1']"]
    environment = {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    return measure.run(command, folder / "out", processes, ceiling, environment=environment)
