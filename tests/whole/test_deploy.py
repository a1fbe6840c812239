"""`timeloom deploy` against a real Prefect server: what stands there afterwards, a night on a work pool that a worker
takes, and automations that call a webhook."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.deployments import deployment_name
from flows.prefect_server import Server, start_server
from tests.support.nights.command_site import TIMELOOM

# In `make proof` alone: a server, two workers and four flow runs take a minute.
pytestmark = pytest.mark.proof

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    started = start_server(port, tmp_path_factory.mktemp("prefect"))
    yield started
    started.stop()


class Receiver:
    """What a webhook is told."""

    def __init__(self) -> None:
        heard: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self.heard = heard
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("clinic.yaml", "clinic-source.yaml", "clinic-formulary.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    shutil.copytree(EXAMPLES / "clinic", tmp_path / "clinic")
    # A row of no patient: quarantined, so that nights end with exit code 2.
    with (tmp_path / "clinic" / "labs.csv").open("a", encoding="utf-8") as labs:
        labs.write(",V2400,CRP,2024-05-14T19:31+02:00,2024-05-14T21:03+02:00,5.1,mg/l\n")
    return tmp_path


def ask(server: Server, what: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{server.url}/{what}/filter", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return list(json.load(answer))


def until(what: Callable[[], Any], seconds: float = 180) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def test_a_deployed_night_runs_on_a_work_pool_and_a_webhook_hears_of_it(
    server: Server, receiver: Receiver, folder: Path
) -> None:
    root = folder / "warehouse"
    name = deployment_name(root)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_API_URL": server.url, "PREFECT_HOME": str(folder / "home"), "NO_COLOR": "1"}
    command = [
        TIMELOOM, "deploy", str(folder / "clinic.yaml"), "--root", str(root), "--webhook", receiver.url,
        "--timezone", "Europe/Vienna", "--file", str(folder / "prefect.yaml"),
    ]  # fmt: skip
    # Twice: what stands there is replaced, and not doubled.
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert f"nightly/{name}, embed/{name}, verify/{name}, backfill/{name}, gc/{name}" in done.stdout

    deployments = {each["entrypoint"]: each for each in ask(server, "deployments")}
    assert len(deployments) == 5
    night = deployments["flows.nightly.nightly"]
    (schedule,) = night["schedules"]
    assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 2 * * *", "Europe/Vienna")
    assert {pool["name"] for pool in ask(server, "work_pools")} >= {"cpu", "gpu"}
    queues = {each["name"]: each["concurrency_limit"] for each in ask(server, "work_queues")}
    assert (queues[name], queues[f"{name}-embed"]) == (1, None)
    assert len(ask(server, "automations")) == 2

    prefect = [sys.executable, "-m", "prefect"]
    good, bad = (
        subprocess.run(
            [*prefect, "deployment", "run", f"nightly/{name}", "--param", f"config={folder / config}"],
            env=environment, capture_output=True, text=True, check=False,
        )
        for config in ("clinic.yaml", "no-such.yaml")
    )  # fmt: skip
    assert (good.returncode, bad.returncode) == (0, 0), good.stderr + bad.stderr
    # One after the other, as the root's queue has it; then the worker ends.
    worker = subprocess.run(
        [*prefect, "worker", "start", "--pool", "cpu", "--run-once"],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if len([run for run in ask(server, "flow_runs") if run["end_time"]]) < 2:
        subprocess.run([*prefect, "worker", "start", "--pool", "cpu", "--run-once"], env=environment, check=False)
    assert worker.returncode == 0, worker.stdout

    runs = until(lambda: [run for run in ask(server, "flow_runs") if run["end_time"]])
    assert sorted(run["state_type"] for run in runs) == ["COMPLETED", "FAILED"]
    assert (root / "current").exists()
    heard = until(lambda: receiver.heard if len(receiver.heard) > 1 else None)
    assert {each["event"] for each in heard} == {"prefect.flow-run.Failed", "timeloom.night.quarantined"}
    assert not [each for each in heard if "V2400" in json.dumps(each)]
