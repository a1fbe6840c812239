"""Stages on Beam's runners, with workers that this process did not start: the bytes of the local engine.

The Dask cluster is a scheduler and two workers, each a process of its own, for which every path is another one than
where the night was planned, and which have the key by other means.
"""

import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows import extras
from flows.runs.settings import RunSettings, make_engine
from pipelines.config import parse_config
from pipelines.engine import beam
from pipelines.engine.beam import BeamEngine
from pipelines.engine.local import LocalEngine
from pipelines.engine.parcel import PATHS_VARIABLE, pack
from pipelines.engine.run_stage import run_stage
from pipelines.engine.task import Task
from tests.pipelines.engine.test_engine import STAGE, context_of, tasks_of
from tests.support.nights import faulty_runner
from tests.support.nights.dask_cluster import BARE, REPOSITORY, DaskCluster, dask_cluster
from tests.support.nights.site import Site
from tests.support.nights.vector_site import vector_hospital, vector_site
from warehouse.embeddings.environments import close_stores
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file
from warehouse.sealed import read_sealed

KEY = "5a" * 32
PLANNED = "/planned/on/another/machine"
EXPERT = {"deid": {"mode": "expert"}}
# The stages of the shorter night end before this one: tables, vectors and items are events then.
END = "metadata"


class WatchedEngine(LocalEngine):
    """Keeps every task as a runner would get it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.sent: list[str] = []

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Runs the tasks."""
        self.sent += [pack(task) for task in tasks]
        super().map(tasks, done)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def hospital(folder: Path) -> Path:
    return vector_hospital(folder / "hospital")


@pytest.fixture(autouse=True)
def importable_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beam's worker processes inherit the environment, not the path of this process."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    yield
    close_stores()


@contextmanager
def key_here() -> Iterator[None]:
    """This process has the key by the environment; there is none in the private folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIMELOOM_KEY", KEY)
        yield


@contextmanager
def planned_elsewhere(folder: Path) -> Iterator[None]:
    """What is sent names paths that no process of this machine can read."""

    def packed(task: Task) -> str:
        sent = pack(task).replace(str(folder), PLANNED)
        assert str(folder) not in sent
        return sent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam, "pack", packed)
        yield


@pytest.fixture(scope="module")
def watched() -> WatchedEngine:
    return WatchedEngine()


@pytest.fixture(scope="module")
def calm(folder: Path, hospital: Path, watched: WatchedEngine) -> Site:
    """All stages of a night on the local engine; it is not judged."""
    site = vector_site(folder / "calm", hospital, **EXPERT)
    with key_here():
        site.killed_before("validate", watched)
    close_stores()
    return site


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[DaskCluster]:
    (folder / "key").write_text(f"{KEY}\n")
    by_file = {
        PATHS_VARIABLE: f"{PLANNED}={folder}",
        "TIMELOOM_KEY": "",
        "TIMELOOM_KEY_COMMAND": f"cat {folder / 'key'}",
    }
    (folder / "cluster").mkdir()
    with dask_cluster(folder / "cluster", environment=by_file) as started:
        yield started


def made(site: Site) -> dict[str, str]:
    """By path, the content of all that a run has made; records apart, which say what it cost, and stores."""
    layout = site.layout
    (staging,) = layout.work.iterdir()
    found = {
        str(path.relative_to(top)): sha256_file(path)
        for top in (staging / "release", layout.segments)
        for path in top.rglob("*")
        if path.is_file() and not (top == layout.segments and path.suffix == ".json")
    }
    assert not any(path.name.endswith(".part") for path in layout.root.rglob("*"))
    return found


def test_a_night_on_dask_workers_elsewhere_makes_the_same_bytes(
    folder: Path, hospital: Path, calm: Site, cluster: DaskCluster
) -> None:
    site = vector_site(folder / "dask", hospital, **EXPERT)
    with key_here(), planned_elsewhere(folder):
        site.killed_before(END, BeamEngine("DaskRunner", 2, cluster.options))
    expected, found = made(calm), made(site)
    assert {path.split("/")[0] for path in found if "/" in path} >= {"data", "items"}
    assert found == {path: expected[path] for path in found}
    records = [json.loads(path.read_text()) for path in site.layout.segments.glob("*.json")]
    assert len({record["cost"]["process"] for record in records}) >= 2, "both workers had tasks"
    assert not (site.layout.private / "deid.key").exists()
    # What Dask's workers began, the local engine goes on with.
    watched = WatchedEngine()
    with key_here():
        site.killed_before(END, watched)
    assert watched.sent == []


def test_the_key_is_in_no_task(calm: Site, watched: WatchedEngine) -> None:
    stages = {json.loads(sent)["task"]["stage"] for sent in watched.sent}
    assert stages > {"meds", "index", "embed", "align", "tokenize", "pack", "measure"}
    fingerprint = read_sealed(calm.layout.settings)["key"]
    told = [sent for sent in watched.sent if fingerprint in sent]
    assert {json.loads(sent)["task"]["stage"] for sent in told} == {"meds", "index"}
    for text in (KEY, KEY.upper(), "Z" * 16, KEY[:16]):
        assert not any(text in sent for sent in watched.sent)


def toy(folder: Path) -> list[Path]:
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text("".join(f"{(7 * line) % 11} {number}\n" for line in range(11)))
    return sorted(folder.iterdir())


def hashes(inputs: list[Path], staging: Path, engine: BeamEngine | LocalEngine) -> dict[str, str]:
    return run_stage(STAGE, tasks_of(inputs, staging), context_of(staging, engine)).hashes()


def test_a_worker_with_another_key_is_refused(tmp_path: Path, hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherKeyEngine(LocalEngine):
        """Its workers have another key."""

        def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TIMELOOM_KEY", "77" * 32)
                super().map(tasks, done)

    site = vector_site(tmp_path / "site", hospital, **EXPERT)
    monkeypatch.setenv("TIMELOOM_KEY", KEY)
    with pytest.raises(TimeloomError) as caught:
        site.killed_before(END, OtherKeyEngine(1))
    said = str(caught.value)
    assert f"the de-identification key on {socket.gethostname()} is not the one that the root was made with" in said
    assert KEY not in said
    assert "77" * 32 not in said
    assert list(site.layout.segments.glob("*.segment")) == []


def test_a_worker_without_timeloom_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    inputs = toy(tmp_path / "raw")
    with dask_cluster(tmp_path, BARE) as cluster, pytest.raises(TimeloomError) as caught:
        hashes(inputs, tmp_path / "staging", BeamEngine("DaskRunner", 1, cluster.options))
    assert "a worker of the Beam runner DaskRunner has no module pipelines" in str(caught.value)
    assert "\n" not in str(caught.value)
    expected = hashes(inputs, tmp_path / "calm", LocalEngine(1))
    assert hashes(inputs, tmp_path / "staging", LocalEngine(1)) == expected


def test_a_scheduler_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    options = [f"--dask_client_address={address}", "--dask_connection_timeout=1"]
    inputs = toy(tmp_path / "raw")
    with pytest.raises(TimeloomError) as caught:
        hashes(inputs, tmp_path / "staging", BeamEngine("DaskRunner", 1, options))
    assert str(caught.value).startswith("the Beam runner DaskRunner failed: ")
    assert address in str(caught.value)
    assert "\n" not in str(caught.value)
    expected = hashes(inputs, tmp_path / "calm", LocalEngine(1))
    assert hashes(inputs, tmp_path / "staging", LocalEngine(1)) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dask_client_adress=tcp://127.0.0.1:1"], "the Beam runner DaskRunner has no option --dask_client_adress"),
        (["--dask_npartitions=2", "--dask_partition_size=1"], "an option is wrong"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, options: list[str], says: str) -> None:
    with pytest.raises(TimeloomError) as caught:
        hashes(toy(tmp_path / "raw"), tmp_path / "staging", BeamEngine("DaskRunner", 1, options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.MODULES, "dask", ("absent_module",))
    config = parse_config(
        {"sources": [{"source": "simulated-hospital", "path": "tables"}], "deid": {"mode": "synthetic"}},
        tmp_path,
        "test",
    )
    with pytest.raises(TimeloomError, match=r"runs on Dask need absent_module.*timeloom\[dask\]"):
        make_engine(RunSettings(tmp_path / "c.yaml", engine="beam", runner="DaskRunner"), config)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["DaskRunner", "FnApiRunner"])
def test_a_whole_night_is_published_with_the_same_hashes(
    tmp_path: Path, folder: Path, hospital: Path, cluster: DaskCluster, name: str
) -> None:
    engine = BeamEngine(name, 2, cluster.options if name == "DaskRunner" else [])
    here, there = (vector_site(folder / f"{name}-{place}", hospital, **EXPERT) for place in ("here", "there"))
    with key_here():
        here.night()
        close_stores()
        if name == "DaskRunner":
            with planned_elsewhere(folder):
                there.night(engine)
        else:
            there.night(engine)
    files = {path: file.sha256 for path, file in here.manifest.files.items()}
    assert {path: file.sha256 for path, file in there.manifest.files.items()} == files
    assert there.manifest.content_hash == here.manifest.content_hash


@pytest.mark.proof
@pytest.mark.parametrize("fault", ["repeat", "reverse", "twice_at_once"])
def test_a_night_on_a_runner_with_faults_makes_the_same_bytes(
    folder: Path, hospital: Path, calm: Site, fault: str
) -> None:
    site = vector_site(folder / fault, hospital, **EXPERT)
    with key_here():
        site.killed_before("validate", BeamEngine(faulty_runner.NAME, 1, [f"--fault={fault}"]))
    assert made(site) == made(calm)


@pytest.mark.proof
def test_a_night_that_lost_tasks_names_one_and_is_resumed(folder: Path, hospital: Path, calm: Site) -> None:
    site = vector_site(folder / "losing", hospital, **EXPERT)
    losing = BeamEngine(faulty_runner.NAME, 1, ["--fault=lose"])
    with key_here():
        with pytest.raises(TimeloomError, match=r"the engine lost the task meds/0-\w+-0; run again; it resumes"):
            site.killed_before(END, losing)
        site.killed_before(END)
    expected = made(calm)
    assert made(site) == {path: expected[path] for path in made(site)}


@pytest.mark.proof
def test_a_cluster_without_workers_is_given_up(tmp_path: Path) -> None:
    waits_for = {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "3s"}
    inputs = toy(tmp_path / "raw")
    with dask_cluster(tmp_path, settings=waits_for) as cluster:
        for worker in cluster.workers:
            worker.kill()
            worker.wait()
        with pytest.raises(TimeloomError, match="the Beam runner DaskRunner failed: ") as caught:
            hashes(inputs, tmp_path / "staging", BeamEngine("DaskRunner", 2, cluster.options))
    assert "\n" not in str(caught.value)
