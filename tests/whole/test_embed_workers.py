"""Workers that fill a root under leases, as processes: killed, stopped, refused; and nights that wait, or do not."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from flows.commands.gc import carry_out, read_kept
from flows.runs.embedding import work
from flows.runs.settings import RunSettings
from pipelines.dealing import wanted_of
from tests.support.images.phantoms import write_series
from tests.support.nights.site import Site, site_of_tables
from validation.verify import verify_release
from warehouse import Release
from warehouse.embeddings.bucket_lease import holders
from warehouse.embeddings.store import close_stores, content_hash
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.sealed import read_sealed, write_sealed

# In `make test` alone: nights, and processes that encode.
pytestmark = pytest.mark.whole

VOLUMES, SLICES, BATCH = 12, 20, 4
UNITS = VOLUMES * SLICES


def begun(folder: Path, export: Path) -> Site:
    """A hospital with CT, each volume of another patient, and nights that leave the encoding to others."""
    site = site_of_tables(folder, export)
    for number in range(VOLUMES):
        write_series(
            folder / "ct" / str(number), SLICES, PatientID=f"P{number + 1:06d}", SeriesInstanceUID=f"2.25.{number + 99}"
        )
    encoder = {"name": "random-dinov2", "width": 64, "device": "cpu", "batch_size": BATCH}
    site.config["modalities"] = {"ct": {"path": str(folder / "ct"), "encoder": encoder}}
    site.config["sources"] = [{"source": "simulated-hospital", "path": str(folder / "tables")}]
    return site


def embedding(site: Site, **settings: Any) -> Path:
    """Changes how the site's nights encode; gives their YAML."""
    site.config["embedding"] = settings
    path = site.folder / "run.yaml"
    path.write_text(yaml.safe_dump(site.config))
    return path


def made(site: Site) -> dict[str, str]:
    """What an embedding comes to: the content of every store, and the items of the current release."""
    close_stores()
    stores = {
        path.relative_to(site.layout.root).as_posix(): content_hash(path)
        for path in sorted(site.layout.root.glob("embeddings/*/*/*.lmdb"))
    }
    close_stores()
    return stores | site.hashes("embed")


def stores_of(found: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in found.items() if name.startswith("embeddings/")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    """One night of one process, which nobody disturbs."""
    site = begun(tmp_path_factory.mktemp("calm"), export)
    assert site.night().published
    return site


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, export: Path, calm: Site) -> Iterator[Site]:
    """The same hospital, whose first release was published without any vector."""
    site = begun(tmp_path_factory.mktemp("waiting"), export)
    embedding(site, workers="elsewhere", wait=False)
    outcome = site.night()
    assert outcome.published and outcome.exit_code == calm_exit(calm)
    assert outcome.waiting == {"ct": VOLUMES}
    assert any("vectors that wait to be made: 12 ct" in line for line in outcome.lines())
    yield site
    close_stores()


def calm_exit(calm: Site) -> int:
    """Rows of the tables are quarantined; images are not."""
    return 2 if (pl.read_parquet(Release.open(calm.layout.root).path / "quarantine.parquet")).height else 0


@pytest.fixture
def waiting(first: Site, tmp_path: Path) -> Site:
    site = first.copy(tmp_path)
    site.config = deepcopy(first.config)
    embedding(site, workers="elsewhere", wait=False)
    return site


def start(site: Site, log: Path, *, pause: float = 0.0, idle: float = 0.0, gate: Path | None = None) -> Any:
    command = [sys.executable, "-m", "tests.support.nights.slow_worker", str(site.folder / "run.yaml")]
    command += [str(site.layout.root), str(log), str(pause), str(idle), *([str(gate)] if gate else [])]
    repository = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def encoded(log: Path) -> dict[int, int]:
    """Units that each process has given to an encoder."""
    found: dict[int, int] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        if len(parts := line.split()) == 2:
            found[int(parts[0])] = found.get(int(parts[0]), 0) + int(parts[1])
    return found


def until(what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def leases(site: Site) -> list[str]:
    return sorted(path.name for path in site.layout.root.glob("embeddings/*/*/*.lease"))


def test_a_release_without_vectors_has_empty_places_and_says_so(first: Site) -> None:
    release = Release.open(first.layout.root)
    items = release.items().collect()
    assert items["verdict"].to_list() == ["waiting_for_vector"] * VOLUMES
    assert items["units_expected"].sum() == UNITS and items["units_encoded"].sum() == 0
    assert release.manifest.verdicts == {"ct": {"waiting_for_vector": VOLUMES}}
    events = release.events().filter(pl.col("item_key").is_not_null()).collect()
    assert events.height == VOLUMES, "it happened"
    for split in ("train", "tuning", "held_out"):
        for batch in release.shards("mehrt", split=split, seed=None).batches(4):
            assert not batch.item_keys.get("ct"), "no filler stands for a vector"
    assert [finding for finding in verify_release(first.layout.root) if not finding.ok] == []
    page = (release.path / "quality" / "report.html").read_text(encoding="utf-8")
    assert "wait for their vectors" in page
    expectations = pl.read_parquet(release.path / "quality" / "expectations.parquet")
    warned = expectations.filter(pl.col("sentence").str.contains("wait for their vectors"))
    assert warned["result"].to_list() == ["fail"] and warned["severity"].to_list() == ["warning"]


def test_two_of_four_workers_are_killed_and_nothing_is_lost(waiting: Site, calm: Site, tmp_path: Path) -> None:
    embedding(waiting, workers="elsewhere", wait=False, checkpoint_seconds=0.5)
    log, gate, pause = tmp_path / "log", tmp_path / "gate", 0.1
    workers = [start(waiting, log, pause=pause, gate=gate) for _ in range(4)]
    gate.touch()
    killed: list[Any] = []
    while len(killed) < 2:
        busy = until(lambda: [w for w in workers if w not in killed and encoded(log).get(w.pid, 0) >= 2 * BATCH])
        busy[0].send_signal(signal.SIGKILL)
        assert busy[0].wait() == -signal.SIGKILL, "it ended before it could be killed"
        killed.append(busy[0])
    for worker in workers:
        if worker not in killed:
            said, wrong = worker.communicate(timeout=240)
            assert worker.returncode == 0, wrong
            assert "units encoded" in said
    twice = sum(encoded(log).values()) - UNITS
    # What a worker had not stored yet: half a second's batches, those on the device, and those of the item in work.
    assert 0 <= twice <= 2 * (0.5 / pause * BATCH + 3 * BATCH + SLICES)
    print(f"{twice} of {UNITS} units were encoded twice")
    assert leases(waiting) == []
    outcome = waiting.night()
    assert outcome.published and outcome.waiting == {} and outcome.damaged == []
    assert made(waiting) == made(calm)
    assert wanted_of(waiting.layout) is None
    assert not waiting.night().published


def test_a_worker_that_was_stopped_writes_nothing_after_it(waiting: Site, calm: Site, tmp_path: Path) -> None:
    embedding(waiting, workers="elsewhere", wait=False, checkpoint_seconds=0.3, lease_seconds=4)
    log = tmp_path / "log"
    slow = start(waiting, log, pause=0.1)
    until(lambda: encoded(log).get(slow.pid, 0) >= 3 * BATCH and leases(waiting))
    slow.send_signal(signal.SIGSTOP)
    other = start(waiting, log)
    _, wrong = other.communicate(timeout=240)
    assert other.returncode == 0, wrong
    assert leases(waiting) == []
    after = stores_of(made(waiting))
    slow.send_signal(signal.SIGCONT)
    _, said = slow.communicate(timeout=240)
    assert slow.returncode == 1
    assert said.count("\n") == 1 and "is lost: this worker was stopped" in said
    assert stores_of(made(waiting)) == after == stores_of(made(calm))


@pytest.mark.proof
def test_a_lease_that_is_deleted_by_hand_ends_its_worker_alone(waiting: Site, calm: Site, tmp_path: Path) -> None:
    embedding(waiting, workers="elsewhere", wait=False, checkpoint_seconds=0.3)
    log = tmp_path / "log"
    slow = start(waiting, log, pause=0.1)
    until(lambda: encoded(log).get(slow.pid, 0) >= BATCH and leases(waiting))
    for path in waiting.layout.root.glob("embeddings/*/*/*.lease"):
        path.unlink()
    _, said = slow.communicate(timeout=240)
    assert slow.returncode == 1 and "or it was deleted" in said
    assert work(RunSettings(waiting.folder / "run.yaml", waiting.layout.root), print, idle_seconds=0).items
    assert stores_of(made(waiting)) == stores_of(made(calm))


def test_workers_of_another_version_key_or_encoder_are_refused(waiting: Site) -> None:
    layout = waiting.layout

    def refused(match: str) -> None:
        with pytest.raises(TimeloomError, match=match):
            work(RunSettings(waiting.folder / "run.yaml", layout.root), print, idle_seconds=0)
        assert leases(waiting) == [] and not list(layout.root.glob("embeddings/*/*/*.lmdb"))

    whole = read_sealed(layout.wanted)
    write_sealed(layout.wanted, whole | {"made_by": {"timeloom": "0.0.1"}})
    refused("made by another version of timeloom")
    write_sealed(layout.wanted, whole | {"key": "0011223344556677"})
    refused("another de-identification key")
    write_sealed(layout.wanted, whole)
    settings = read_sealed(layout.settings, older=True)
    write_sealed(layout.settings, settings | {"key": "0011223344556677"})
    refused("was made with another de-identification key")
    write_sealed(layout.settings, settings)
    waiting.config["modalities"]["ct"]["encoder"]["width"] = 32
    embedding(waiting, workers="elsewhere", wait=False)
    refused(r"the ct vectors are wanted as random-dinov2-\w+, and this worker would make random-dinov2-\w+")


def test_a_night_waits_for_a_worker_and_is_that_of_one_process(export: Path, calm: Site, tmp_path: Path) -> None:
    site = begun(tmp_path, export)
    embedding(site, workers="elsewhere")
    worker = start(site, tmp_path / "log", idle=600)
    try:
        outcome = site.night()
        assert outcome.published and outcome.waiting == {}
        assert made(site) == made(calm)
        assert site.manifest.content_hash == calm.manifest.content_hash
        assert encoded(tmp_path / "log").keys() == {worker.pid}
    finally:
        worker.terminate()
        worker.communicate(timeout=60)
    assert leases(site) == [] and wanted_of(site.layout) is None


def test_without_any_worker_a_night_ends_and_the_next_goes_on(export: Path, calm: Site, tmp_path: Path) -> None:
    site = begun(tmp_path, export)
    embedding(site, workers="elsewhere", worker_timeout=0.5)
    with pytest.raises(TimeloomError, match=r"no worker has shown life for 0 s, and 4 buckets lack vectors; start"):
        site.night()
    assert not site.layout.current.exists()
    embedding(site)
    assert site.night().published
    assert site.manifest.content_hash == calm.manifest.content_hash


@pytest.mark.proof
def test_two_nights_and_two_workers_at_once(export: Path, calm: Site, tmp_path: Path) -> None:
    """Nights that encode themselves are helped, and one waits for the other."""
    site = begun(tmp_path, export)
    config = embedding(site)
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--root", str(site.layout.root), "--direct"]
    nights = [subprocess.Popen([*command, "--wait", "--workers", "1"], stderr=subprocess.PIPE) for _ in range(2)]
    helpers = [start(site, tmp_path / "log", pause=0.05, idle=600) for _ in range(2)]
    try:
        for night in nights:
            night.communicate(timeout=300)
            assert night.returncode == calm_exit(calm)
    finally:
        for helper in helpers:
            helper.terminate()
            helper.communicate(timeout=60)
    assert made(site) == made(calm)
    assert len(list(site.layout.releases.iterdir())) == 1


def test_what_workers_make_for_the_next_night_is_not_collected(waiting: Site, calm: Site) -> None:
    """Nor are their leases, as long as they live."""
    settings = RunSettings(waiting.folder / "run.yaml", waiting.layout.root)
    assert work(settings, print, idle_seconds=0).items == VOLUMES
    store = next(waiting.layout.root.glob("embeddings/*/*/*.lmdb"))
    child = (
        f"from pathlib import Path\nfrom warehouse.embeddings.bucket_lease import take\ntake(Path({str(store)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", child], check=True)
    assert leases(waiting) == [f"{store.stem}.lease"] and holders(waiting.layout) == {}
    gone = carry_out(read_kept(waiting.layout.root, None, {}), apply=True).gone
    assert [part.kind for part in gone if part.kind in ("lease", "vectors", "store")] == ["lease"]
    assert leases(waiting) == []
    assert stores_of(made(waiting)) == stores_of(made(calm))


def test_what_is_wanted_names_no_item_and_no_path(first: Site) -> None:
    text = first.layout.wanted.read_text()
    keys = Release.open(first.layout.root).items().collect()["item_key"].to_list()
    assert not any(key in text for key in keys)
    assert str(first.folder) not in text and "P0000" not in text


def test_a_damaged_list_of_what_is_wanted_is_written_anew(waiting: Site, calm: Site) -> None:
    waiting.layout.wanted.write_text("{")
    assert wanted_of(waiting.layout) is None
    assert not waiting.night().published
    assert wanted_of(Layout(waiting.layout.root)) is not None
