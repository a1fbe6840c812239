"""A whole night: the same bytes on every engine, after every kill, and under a real Prefect server; only changed
files are written again, and a release that the gate refuses is not published."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.simulate import simulate
from flows.prefect_server import start_server
from flows.runs.run import Run, open_run
from flows.runs.settings import RunSettings
from pipelines.night import Stage
from tests.support.nights.command_site import BUCKETS, TIMELOOM, Site
from validation.stages import NIGHT
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.hashing import bucket_of
from warehouse.layout import ReleaseLayout
from warehouse.manifest import read_manifest
from warehouse.parquet import read_frame

# Of the stages, those that have work in these nights.
IDLE = {"vectors", "texts", "subset", "digests", "duplicates", "triplets", "graphs"}
STEPS = [
    *(stage.name for stage in NIGHT if not stage.prepares and stage.name not in IDLE),
    "validate",
    "publish",
]


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty patients, a few CT series and slides, and every planted fault."""
    folder = tmp_path_factory.mktemp("export") / "hospital"
    simulate(folder, subjects=40, seed=11, imaging_share=0.05, modalities=("ct", "wsi"))
    return folder


@pytest.fixture(scope="session")
def published(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One night on two local workers. Change nothing: copy it."""
    site = Site(tmp_path_factory.mktemp("local"), hospital).configure()
    assert site.run(workers=2).exit_code == 2
    return site


def lab(number: int, patient: str, code: str = "6690-2") -> str:
    """A row of labs.csv."""
    return f"L9{number:011d},{patient},E{patient[1:]}0001,{code},2023-02-28 08:51:00,2023-02-28 12:31:00,4.{number},x"


@pytest.mark.parametrize(("engine", "workers"), [("beam", 1), ("beam", 2)])
def test_every_engine_publishes_the_same_bytes(engine: str, workers: int, published: Site, tmp_path: Path) -> None:
    other = Site(tmp_path, published.hospital).configure()
    other.run(engine, workers)
    assert other.manifest.content_hash == published.manifest.content_hash
    assert other.vectors() == published.vectors()
    assert len(other.vectors()) >= 2
    on_disk = {name: sha256_file(other.current.path / name) for name in other.manifest.files}
    assert on_disk == {name: entry.sha256 for name, entry in other.manifest.files.items()}


def test_a_second_night_without_news_publishes_nothing(published: Site, tmp_path: Path) -> None:
    site = published.copy(tmp_path)
    before = site.releases(), site.manifest
    outcome = site.run()
    assert not outcome.published
    assert outcome.exit_code == 2, "quarantined items stay quarantined"
    assert outcome.release == before[1].release_id
    assert (site.releases(), site.manifest) == before
    assert not any(step["ran"] for step in outcome.steps)
    assert sum(step["seconds"] for step in outcome.steps) < 5
    assert not list(site.layout.work.iterdir())


def _records(site: Site, *stages: str) -> int:
    return sum(len(list(site.layout.work.glob(f"*/tasks/{stage}/*.json"))) for stage in stages)


def _readable(site: Site, deep: bool) -> None:
    """The current release is whole."""
    release = site.current
    manifest = read_manifest(release.manifest)
    for name, entry in manifest.files.items():
        assert (release.path / name).stat().st_size == entry.bytes
        if deep:
            assert sha256_file(release.path / name) == entry.sha256


def test_a_run_killed_three_times_ends_like_an_undisturbed_one(hospital: Path, tmp_path: Path) -> None:
    start = Site(tmp_path / "start", hospital).configure(images=False)
    start.run()
    calm, killed = start.copy(tmp_path / "calm"), start.copy(tmp_path / "killed")
    calm.run(workers=2)
    last_good = start.manifest.release_id

    dice = random.Random(7)
    embedded, aligned = dice.randint(1, BUCKETS - 2), dice.randint(1, BUCKETS - 1)
    moments: list[Callable[[], bool]] = [
        lambda: _records(killed, "embed") >= embedded,
        lambda: _records(killed, "align", "count") >= aligned,
        lambda: bool(list(killed.layout.work.glob("*/release/quality/*"))),
    ]
    for reached in moments:
        with subprocess.Popen(killed.command("--direct", "--json"), stderr=subprocess.PIPE, text=True) as run:
            while run.poll() is None and not reached():
                _readable(killed, deep=False)
                time.sleep(0.005)
            run.send_signal(signal.SIGKILL)
        assert run.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        assert killed.manifest.release_id == last_good
        _readable(killed, deep=True)

    done = subprocess.run(killed.command("--direct", "--json"), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["published"]
    assert sum(step["resumed"] for step in outcome["steps"]) > BUCKETS
    assert killed.manifest.content_hash == calm.manifest.content_hash
    assert killed.vectors() == calm.vectors()
    assert killed.manifest.release_id != last_good
    assert len(killed.releases()) == 2
    assert not list(killed.layout.work.iterdir())
    _readable(killed, deep=True)


def _bucket(patient: str) -> int:
    config = DeidConfig(mode="synthetic")
    subject = Deidentifier(config, load_key(config, Path())).subject_ids(pl.Series([patient]))
    return int(bucket_of(np.array(subject.to_list(), dtype=np.int64), BUCKETS)[0])


def _rewritten(old: ReleaseLayout, new: ReleaseLayout, folder: str) -> set[str]:
    """Files of a folder that are not links to the previous release."""
    return {
        path.name
        for path in (new.path / folder).glob("*.parquet")
        if not (old.path / folder / path.name).is_file() or not path.samefile(old.path / folder / path.name)
    }


def _splits(tree: ReleaseLayout) -> dict[int, str]:
    return dict(read_frame(tree.subject_splits).select("subject_id", "split").iter_rows())


def _ids(tree: ReleaseLayout) -> dict[str, int]:
    return dict(read_frame(tree.vocabulary("mehrt")).select("token", "token_id").iter_rows())


def test_a_night_rewrites_only_what_changed(published: Site, tmp_path: Path) -> None:
    site = published.copy(tmp_path, hospital=True)
    first = site.current
    known = pl.read_csv(site.hospital / "tables" / "labs.csv", infer_schema=False)
    patient, code = str(known["patient_id"][0]), str(known["loinc"][0])
    site.append("labs", lab(1, patient, code), lab(2, patient, code))
    outcome = site.run()
    second = site.current
    assert outcome.published
    assert site.manifest.parent == first.path.name
    assert second.path != first.path
    touched = {f"{_bucket(patient):04d}.parquet"}
    assert _rewritten(first, second, "data") == touched
    assert _rewritten(first, second, "items") == set()
    # What only grows is a file of its own in each release: where one is damaged, a repair takes the other.
    assert second.lags.read_bytes() == first.lags.read_bytes() and not second.lags.samefile(first.lags)
    assert _rewritten(first, second, "timelines/mehrt") == touched
    assert _rewritten(first, second, "measures/timelines/mehrt") == touched
    assert (
        touched
        <= _rewritten(first, second, "measures/counts")
        <= {*touched, f"probes-{min(touched)}", f"strata-{min(touched)}", "release.parquet"}
    )
    measured = next(step for step in outcome.steps if step["step"] == "measure")
    # The bucket, the shards of three splits, and the whole: no other bucket.
    assert 2 <= measured["ran"] <= 5
    assert measured["linked"] >= BUCKETS - 1
    assert _splits(second) == _splits(first)
    assert _ids(second) == _ids(first)
    assert len(read_frame(second.events(_bucket(patient)))) == len(read_frame(first.events(_bucket(patient)))) + 2

    newcomers = [f"P9000{number:02d}" for number in range(6)]
    site.append("patients", *(f"{name},F,1960,white" for name in newcomers))
    site.append("labs", *(lab(10 + number, name, "99999-9") for number, name in enumerate(newcomers)))
    assert site.run().published
    third = site.current
    assert _rewritten(second, third, "data") == {f"{_bucket(name):04d}.parquet" for name in newcomers}
    assert len(_splits(third)) == len(_splits(second)) + 6
    assert _splits(third).items() >= _splits(second).items(), "nobody moves"
    assert _ids(third).items() >= _ids(second).items(), "no id moves"
    assert min(set(_ids(third).values()) - set(_ids(second).values())) == len(_ids(second)), "new ids are appended"
    assert site.releases() == sorted(tree.path.name for tree in (first, second, third))


def test_what_the_gate_refuses_is_not_published(
    published: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import cli

    site = published.copy(tmp_path, hospital=True)
    site.append("labs", lab(1, "P000001"))
    before = site.releases(), site.manifest
    real = Run._work

    def spoil(run: Run, stage: Stage) -> None:
        """Puts one bucket's events into the wrong order after packing, which only the gate can find."""
        if stage.name != "measure":
            return real(run, stage)
        path = run._tree.events(_bucket("P000001"))
        table = read_frame(path).reverse().to_arrow()
        schema = pq.read_schema(path)
        path.unlink()
        pq.write_table(table.cast(schema), path)
        return real(run, stage)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Run, "_work", spoil)
        patch.setattr(sys, "argv", site.command("--direct", workers=1))
        cli.main()
    assert ended.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("timeloom: ")]
    assert len(said) == 1
    assert "the gate refuses the release: " in said[0]
    assert (site.releases(), site.manifest) == before
    _readable(site, deep=True)

    outcome = site.run()
    assert outcome.published, "the same night without the fault: the spoilt file is found and made again"
    _readable(site, deep=True)


def test_two_nights_at_once(published: Site, tmp_path: Path) -> None:
    site = published.copy(tmp_path)
    with open_run(RunSettings(site.config, site.root, workers=1), None):
        done = subprocess.run(site.command("--direct"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = "another run is working on warehouse; wait for its end, as `timeloom run --wait` does"
    assert done.stderr == f"timeloom: {said}\n"


# Under a real server ---------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A Prefect server on the loopback interface."""

    url: str
    environment: dict[str, str]

    def ask(self, what: str, **body: Any) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.url}/{what}/filter", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return list(json.load(answer))

    def of_run(self, run: str) -> dict[str, list[dict[str, Any]]]:
        """Everything that the server knows about a flow run."""
        only = {"id": {"any_": [run]}}
        return {
            "flow_runs": self.ask("flow_runs", flow_runs=only),
            "task_runs": self.ask("task_runs", flow_runs=only),
            "artifacts": self.ask("artifacts", flow_runs=only),
            "logs": self.ask("logs", logs={"flow_run_id": {"any_": [run]}}),
        }

    def finished(self, run: str) -> dict[str, list[dict[str, Any]]]:
        """The same, after the server has processed its last messages."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            known = self.of_run(run)
            if known["task_runs"] and all(entry["end_time"] for entry in known["task_runs"]):
                break
            time.sleep(0.5)
        return known


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a home of its own, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        started = start_server(port)
    yield Server(started.url, os.environ | variables | {"PREFECT_API_URL": started.url})
    started.stop()


def _identifiers(site: Site) -> set[str]:
    """Raw ids of patients and of their records, names of their image folders and files, and the hashed ids."""
    tables = site.hospital / "tables"
    frames = [pl.read_csv(path, infer_schema=False) for path in sorted(tables.glob("*.csv"))]
    names = ("patient_id", "encounter_id", "lab_id")
    raw = {value for frame in frames for name in names if name in frame.columns for value in frame[name] if value}
    images = {path.name for folder in ("ct", "slides") for path in (site.hospital / folder).iterdir()}
    return raw | (images - {"manifest.csv"}) | {str(subject) for subject in _splits(site.current)}


def test_the_nightly_flow_is_seen_by_a_real_server(published: Site, tmp_path: Path, server: Server) -> None:
    site = published.copy(tmp_path, hospital=True)
    site.append("labs", lab(1, "P000001"))
    known = {run["id"] for run in server.ask("flow_runs")}
    done = subprocess.run(site.command("--json"), capture_output=True, text=True, check=False, env=server.environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr == ""
    outcome = json.loads(done.stdout)
    assert outcome["published"]

    (run,) = [flow_run for flow_run in server.ask("flow_runs") if flow_run["id"] not in known]
    seen = server.finished(run["id"])
    assert seen["flow_runs"][0]["state_type"] == "COMPLETED"
    assert sorted(task_run["name"] for task_run in seen["task_runs"]) == sorted([*STEPS, *IDLE]), (
        "one task run a stage, none a bucket"
    )
    states = {task_run["name"]: task_run["state_name"] for task_run in seen["task_runs"]}
    assert {name for name, state in states.items() if state == "Skipped"} == IDLE
    # One row of one patient: no vector is made again.
    assert states["embed"] == "Unchanged"
    assert {states[name] for name in ("meds", "align", "tokenize", "pack", "publish")} == {"Completed"}
    assert [step["step"] for step in outcome["steps"]] == STEPS

    artifacts = {artifact["key"]: artifact for artifact in seen["artifacts"]}
    assert {key for key, artifact in artifacts.items() if artifact["type"] == "progress"} == {
        f"progress-{s}" for s in STEPS
    }
    assert all(artifact["data"] == 100.0 for artifact in artifacts.values() if artifact["type"] == "progress")
    assert artifacts["steps"]["type"] == "table"
    assert [row["step"] for row in json.loads(artifacts["steps"]["data"])] == STEPS
    assert artifacts["release"]["type"] == "markdown"
    assert outcome["release"] in artifacts["release"]["data"]
    assert f"timeloom report --root {site.layout.root}" in artifacts["quality-report"]["data"]
    tables = {key: json.loads(artifacts[key]["data"]) for key in ("ledger", "expectations", "items", "changes")}
    assert {row["difference"] for row in tables["ledger"]} == {0}
    assert {row["result"] for row in tables["expectations"] if row["severity"] == "critical"} == {"pass"}
    assert {"what": "labs", "number": "events"}.items() <= tables["changes"][1].items()
    assert artifacts["lengths"]["data"].startswith("data:image/png;base64,")

    answers = json.dumps(seen)
    assert not [word for word in _identifiers(site) if word in answers]
    asked = {
        "config", "root", "engine", "runner", "workers", "limit", "rehash", "accept_loss", "beam_options", "wait",
    }  # fmt: skip
    assert set(seen["flow_runs"][0]["parameters"]) == asked


def _flow_run_with(site: Site, server: Server, patch: str) -> dict[str, list[dict[str, Any]]]:
    """Runs a night with new data in a separate process, which executes `patch` first; returns what the server saw."""
    site.append("labs", lab(1, "P000001"))
    known = {run["id"] for run in server.ask("flow_runs")}
    script = (
        "import sys\n"
        "from flows import artifacts, nightly\n"
        "from flows.runs import gate\n"
        f"{patch}\n"
        "if __name__ == '__main__':\n"
        "    nightly.nightly(config=sys.argv[1], root=sys.argv[2], workers=1)\n"
    )
    command = [sys.executable, "-c", script, str(site.config), str(site.root)]
    subprocess.run(command, capture_output=True, check=False, env=server.environment)
    (run,) = [flow_run for flow_run in server.ask("flow_runs") if flow_run["id"] not in known]
    return server.finished(run["id"])


def test_a_failing_step_tells_the_server_no_value(published: Site, tmp_path: Path, server: Server) -> None:
    site = published.copy(tmp_path, hospital=True)
    patch = "def judge(*_, **__):\n    int('Erika Mustermann')\ngate.judge_release = judge\nnightly.RETRIES = 0"
    seen = _flow_run_with(site, server, patch)
    assert seen["flow_runs"][0]["state_type"] == "FAILED"
    assert {task_run["name"]: task_run["state_type"] for task_run in seen["task_runs"]}["validate"] == "FAILED"
    assert "ValueError" in json.dumps(seen)
    assert "Mustermann" not in json.dumps(seen)
    assert site.manifest.release_id == published.manifest.release_id


def test_a_stage_of_the_list_is_a_step_of_the_flow(published: Site, tmp_path: Path, server: Server) -> None:
    site = published.copy(tmp_path, hospital=True)
    patch = (
        "from validation import stages\nfrom tests.support.nights import toy_night_stage\n"
        "stages.NIGHT = (*stages.NIGHT, toy_night_stage.STAGE)"
    )
    seen = _flow_run_with(site, server, patch)
    assert seen["flow_runs"][0]["state_type"] == "COMPLETED"
    assert {run["name"]: run["state_type"] for run in seen["task_runs"]}["toy"] == "COMPLETED"
    assert site.manifest.stages["toy"] == 1


def test_a_server_that_takes_no_artifact_ends_nothing(published: Site, tmp_path: Path, server: Server) -> None:
    site = published.copy(tmp_path, hospital=True)
    patch = (
        "def refuse(*_, **__):\n    raise ConnectionError('the server is away')\n"
        "artifacts.update_progress_artifact = artifacts.create_table_artifact = refuse"
    )
    seen = _flow_run_with(site, server, patch)
    assert seen["flow_runs"][0]["state_type"] == "COMPLETED"
    assert [task_run["run_count"] for task_run in seen["task_runs"]] == [1] * len([*STEPS, *IDLE]), (
        "no step may be repeated"
    )
    assert site.manifest.release_id != published.manifest.release_id


def test_a_schedule_fires(published: Site, tmp_path: Path, server: Server) -> None:
    assert tuple(map(int, version("sqlalchemy").split(".")[:2])) < (2, 1), "with 2.1 cron schedules never fire"
    site = published.copy(tmp_path, hospital=True)
    site.append("labs", lab(1, "P000001"))
    before = site.manifest.release_id
    known = {run["id"] for run in server.ask("flow_runs")}
    command = [TIMELOOM, "serve", str(site.config), "--root", str(site.root), "--cron", "* * * * *"]
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        serving = subprocess.Popen(command, env=server.environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 150
        done: list[dict[str, Any]] = []
        while not done and time.monotonic() < deadline and serving.poll() is None:
            time.sleep(1)
            fresh = [run for run in server.ask("flow_runs") if run["id"] not in known]
            done = [run for run in fresh if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]
        assert done, log.read_text()
        assert done[0]["state_type"] == "COMPLETED", log.read_text()
        assert done[0]["auto_scheduled"]
        assert site.manifest.release_id != before
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.wait(timeout=60)


def test_serve_refuses_what_cannot_run(published: Site, tmp_path: Path, server: Server) -> None:
    site = Site(tmp_path, published.hospital).configure()
    for arguments, words in (
        ([str(site.config), "--root", str(site.root), "--cron", "every night"], "`every night` is no cron expression"),
        ([str(tmp_path / "absent.yaml")], "cannot read the configuration"),
    ):
        done = subprocess.run(
            [TIMELOOM, "serve", *arguments], capture_output=True, text=True, check=False, env=server.environment
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    port = server.url.removesuffix("/api").rpartition(":")[2]
    with pytest.raises(TimeloomError, match="another Prefect server listens"):
        start_server(int(port))
