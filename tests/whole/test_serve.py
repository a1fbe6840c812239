"""`timeloom serve` with Prefect servers of its own: two roots side by side, a server that dies, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.nights.command_site import TIMELOOM

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Serving:
    """A `timeloom serve` as its supervisor sees it."""

    def __init__(self, folder: Path, root: str, *arguments: str) -> None:
        self.log = folder / f"{root}.log"
        self.command = [TIMELOOM, "serve", str(folder / "clinic.yaml"), "--root", str(folder / root), *arguments]
        # As an account has them: none of them is to matter.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = kept | {"HOME": str(folder)}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=output, stderr=output)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, what: Callable[[], Any], seconds: float = 180) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.5)
        return found

    def started(self) -> int:
        """The port of its server, once it serves."""
        self.until(lambda: "Ctrl-C ends it" in self.said())
        found = re.search(r"Prefect UI: http://127\.0\.0\.1:(\d+)", self.said())
        assert found
        return int(found[1])

    def ask(self, port: int, what: str) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/{what}/filter", b"{}", {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return list(json.load(answer))
        except OSError:
            return []

    def deployments(self, port: int) -> list[dict[str, Any]]:
        """What its server knows, once there is one."""
        found: list[dict[str, Any]] = self.until(lambda: self.ask(port, "deployments"))
        return found

    def server(self, port: int) -> int:
        """The process of its Prefect server."""
        listed = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        processes = [line.split(None, 2) for line in listed.splitlines()]
        return next(
            int(pid) for pid, ppid, args in processes if int(ppid) == self.process.pid and f"--port {port}" in args
        )

    def end(self) -> tuple[int, float]:
        """The exit code after SIGTERM, and the seconds until then."""
        before = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60), time.monotonic() - before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("clinic.yaml", "clinic-source.yaml", "clinic-formulary.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    shutil.copytree(EXAMPLES / "clinic", tmp_path / "clinic")
    return tmp_path


@pytest.fixture
def serving(folder: Path) -> Iterator[Callable[..., Serving]]:
    begun = []

    def begin(*arguments: str) -> Serving:
        begun.append(Serving(folder, *arguments))
        return begun[-1]

    yield begin
    for each in begun:
        if each.process.poll() is None:
            each.process.terminate()
            each.process.wait(timeout=60)


# In `make proof`: it waits for minutes to begin. tests/flows/test_serve.py has each decision without a server, and in
# test_nightly.py a schedule fires.
@pytest.mark.proof
def test_roots_are_served_side_by_side_and_outlive_their_servers(serving: Callable[..., Serving], folder: Path) -> None:
    first = serving("first", "--cron", "* * * * *", "--timezone", "Europe/Vienna")
    second = serving("second", "--cron", "30 3 * * *")
    ports = [first.started(), second.started()]
    assert ports[0] != ports[1]
    assert all((folder / f"{root}.prefect" / "prefect.db").is_file() for root in ("first", "second"))

    # The same root again, by another name for it.
    (folder / "link").symlink_to(folder / "first")
    again = subprocess.run(
        [*first.command[:4], str(folder / "link")], env=first.environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert again.stderr == (
        "timeloom: another `timeloom serve` runs for first; end that one first, or serve another --root\n"
    )

    schedules = []
    for each, root, port in zip((first, second), ("first", "second"), ports, strict=True):
        (deployment,) = each.deployments(port)
        assert deployment["name"].startswith(f"{root}-")
        assert deployment["parameters"]["root"] == str(folder / root)
        (entry,) = deployment["schedules"]
        schedules.append((entry["schedule"]["cron"], entry["schedule"]["timezone"], entry["active"]))
    assert schedules == [("* * * * *", "Europe/Vienna", True), ("30 3 * * *", "UTC", True)]

    # A server that is killed comes back where it was, and nights begin again.
    known = {run["id"] for run in first.ask(ports[0], "flow_runs") if run["start_time"]}
    os.kill(first.server(ports[0]), signal.SIGKILL)
    first.until(lambda: "the Prefect server has ended; it is started again" in first.said())
    first.until(
        lambda: [
            run
            for run in first.ask(ports[0], "flow_runs")
            if run["id"] not in known and run["auto_scheduled"] and run["state_type"] == "COMPLETED"
        ]
    )
    assert (folder / "first" / "current").exists()

    # One whose server hangs ends too, as soon as it is told to.
    hung = first.server(ports[0])
    os.kill(hung, signal.SIGSTOP)
    code, seconds = first.end()
    assert (code, seconds < 30) == (0, True), first.said()
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)

    # Where another program has its port meanwhile, a server cannot be started again, and serve ends with an error.
    os.kill(second.server(ports[1]), signal.SIGKILL)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deadline = time.monotonic() + 10
        while True:
            try:
                other.bind(("127.0.0.1", ports[1]))
                break
            except OSError:
                assert time.monotonic() < deadline
        other.listen()
        assert second.process.wait(timeout=180) == 1
    assert f"the Prefect server did not start on port {ports[1]}" in second.said().splitlines()[-1]
