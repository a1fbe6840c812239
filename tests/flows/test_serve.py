"""What `timeloom serve` decides without a server: names, ports, refusals, what is started again and what ends it."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import root_server, serve
from flows.prefect_server import PortTakenError
from flows.root_server import start_root_server
from flows.schedule import Schedule
from flows.serve import deployment_name, serve_nightly
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.publish import locked

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class FakeServer:
    """What `start_root_server` gives, without a process."""

    def __init__(self, port: int, ended: bool = False) -> None:
        self.port, self.ended, self.stopped = port, ended, False
        self.url = f"http://127.0.0.1:{port}/api"

    def stop(self, seconds: float) -> None:
        self.stopped = True


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for name in ("clinic.yaml", "clinic-source.yaml", "clinic-formulary.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    shutil.copytree(EXAMPLES / "clinic", tmp_path / "clinic")
    return tmp_path / "clinic.yaml"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a server was started")

    for name in ("PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(serve, "start_root_server", refuse)


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_each_root_has_a_deployment_of_its_own() -> None:
    names = [deployment_name(Path(root)) for root in ("/a/warehouse", "/b/warehouse", "/a/Station 4/Wärme", "/")]
    assert len(set(names)) == len(names)
    assert deployment_name(Path("/a/warehouse")) == names[0]
    assert all(re.fullmatch(r"[a-z0-9-]+-[0-9a-f]{6}", name) for name in names)
    assert names[0].startswith("warehouse-") and names[2].startswith("w-rme-") and names[3].startswith("root-")


def test_homes_are_beside_their_roots_or_in_a_home_that_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layouts = [Layout(tmp_path / name / "warehouse") for name in ("a", "b")]
    beside = [serve._home(layout, deployment_name(layout.root)) for layout in layouts]
    assert beside == [tmp_path / name / "warehouse.prefect" for name in ("a", "b")]
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "shared"))
    within = [serve._home(layout, deployment_name(layout.root)) for layout in layouts]
    assert len(set(within)) == 2
    assert {home.parent for home in within} == {tmp_path / "shared"}


def _answer(monkeypatch: pytest.MonkeyPatch, refused: set[int]) -> list[int]:
    """Servers that start unless their port is in `refused`; gives the ports that are tried."""
    tried = []

    def start(port: int, home: Path) -> FakeServer:
        tried.append(port)
        if port in refused:
            raise PortTakenError(f"another program listens on port {port}", "give --port")
        return FakeServer(port)

    monkeypatch.setattr(root_server, "start_server", start)
    return tried


def test_a_root_keeps_its_port_and_leaves_one_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: int
) -> None:
    monkeypatch.setattr(root_server, "FREED_SECONDS", 0.1)
    monkeypatch.setattr(root_server, "FIRST_PORT", taken)
    monkeypatch.setattr(root_server, "PORTS", 40)
    tried = _answer(monkeypatch, refused=set())
    first = start_root_server(tmp_path / "a", None)
    assert first.port > taken
    assert tried == [first.port], "a port that is taken needs no server to say so"
    # Another root's server was a moment faster.
    _answer(monkeypatch, refused={first.port})
    second = start_root_server(tmp_path / "b", None)
    assert second.port > first.port
    # Later each has the port that it had.
    tried = _answer(monkeypatch, refused=set())
    assert start_root_server(tmp_path / "b", None).port == second.port
    assert tried == [second.port]
    (tmp_path / "b" / "port").write_text(str(taken))
    assert start_root_server(tmp_path / "b", None).port > taken
    (tmp_path / "b" / "port").write_text("nonsense")
    assert start_root_server(tmp_path / "b", None).port > taken


def test_a_port_that_is_asked_for_is_not_exchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: int) -> None:
    monkeypatch.setattr(root_server, "FREED_SECONDS", 0.1)
    _answer(monkeypatch, refused={taken})
    with pytest.raises(TimeloomError, match=f"port {taken}"):
        start_root_server(tmp_path / "home", taken)
    monkeypatch.setattr(root_server, "PORTS", 0)
    with pytest.raises(TimeloomError, match="no port from"):
        start_root_server(tmp_path / "home", None)
    (tmp_path / "file").touch()
    with pytest.raises(TimeloomError, match="cannot be made or written"):
        start_root_server(tmp_path / "file" / "home", None)


@pytest.mark.parametrize(
    ("cron", "timezone", "words"),
    [
        ("0 2 * * *", "Mars/Olympus", "there is no time zone Mars/Olympus"),
        ("0 2 * * *", "", "there is no time zone"),
        ("every night", "UTC", "`every night` is no cron expression"),
        ("61 2 * * *", "Europe/Vienna", "`61 2"),
    ],
)
def test_times_that_there_are_not_are_refused_before_a_server_starts(
    config: Path, tmp_path: Path, cron: str, timezone: str, words: str
) -> None:
    with pytest.raises(TimeloomError, match=re.escape(words)):
        serve_nightly(config, tmp_path / "root", cron, timezone, None, lambda _: None)
    assert not (tmp_path / "root").exists()


def test_a_root_is_served_once(config: Path, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "root")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    with (
        locked(layout, layout.serve_lock, TimeloomError("busy", "wait")),
        pytest.raises(TimeloomError, match="another `timeloom serve` runs for root"),
    ):
        serve_nightly(config, tmp_path / "elsewhere" / "root", "0 2 * * *", "UTC", None, lambda _: None)


# --- what is watched


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> serve._Watch:
    """A watch over a server that answers and a process that sleeps."""
    monkeypatch.setattr(serve, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(serve, "is_there", lambda _: True)
    monkeypatch.setattr(Schedule, "command", lambda _: [sys.executable, "-c", "import time; time.sleep(60)"])
    said: list[str] = []
    schedule = Schedule("root-000000", "config.yaml", str(tmp_path / "root"), "0 2 * * *", "UTC")
    made = serve._Watch(schedule, tmp_path / "home", None, "http://127.0.0.1:1", said.append)
    made.said = said  # type: ignore[attr-defined]
    return made


def _count(watch: serve._Watch) -> int:
    return len([line for line in watch.said if "is started again" in line])  # type: ignore[attr-defined]


def test_a_server_that_ends_is_started_again_at_its_port_until_that_is_of_no_use(
    monkeypatch: pytest.MonkeyPatch, watch: serve._Watch
) -> None:
    servers: list[FakeServer] = []
    asked: list[int | None] = []

    def start(home: Path, port: int | None) -> FakeServer:
        asked.append(port)
        servers.append(FakeServer(4217, ended=True))
        return servers[-1]

    monkeypatch.setattr(serve, "start_root_server", start)
    try:
        watch.start()
        with pytest.raises(TimeloomError, match="the Prefect server has ended, 6 times"):
            watch.watch()
    finally:
        watch.stop()
    assert asked == [None, *[4217] * serve.MOST_RESTARTS]
    assert _count(watch) == serve.MOST_RESTARTS
    assert all(server.stopped for server in servers)


def test_a_server_that_hangs_is_started_again(monkeypatch: pytest.MonkeyPatch, watch: serve._Watch) -> None:
    monkeypatch.setattr(serve, "is_there", lambda _: False)
    monkeypatch.setattr(serve, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(serve, "start_root_server", lambda *_: FakeServer(4217))
    try:
        watch.start()
        with pytest.raises(TimeloomError, match="the Prefect server does not answer, 6 times"):
            watch.watch()
    finally:
        watch.stop()


def test_a_server_that_is_named_and_goes_ends_serve(monkeypatch: pytest.MonkeyPatch, watch: serve._Watch) -> None:
    monkeypatch.setattr(serve, "SILENT_SECONDS", 0.05)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(serve, "reach_named", lambda: "http://127.0.0.1:9/api")
    watch.home = None
    try:
        watch.start()
        monkeypatch.setattr(serve, "is_there", lambda _: False)
        with pytest.raises(TimeloomError, match="the Prefect server at PREFECT_API_URL is gone"):
            watch.watch()
    finally:
        watch.stop()


def test_what_asks_for_nights_is_started_again_and_ended(monkeypatch: pytest.MonkeyPatch, watch: serve._Watch) -> None:
    monkeypatch.setattr(serve, "start_root_server", lambda *_: FakeServer(4217))
    monkeypatch.setattr(Schedule, "command", lambda _: [sys.executable, "-c", ""])
    try:
        watch.start()
        with pytest.raises(TimeloomError, match="what asks the Prefect server for nights has ended, 6 times"):
            watch.watch()
    finally:
        watch.stop()
    assert isinstance(watch.keeper, subprocess.Popen)
    assert watch.keeper.poll() is not None
