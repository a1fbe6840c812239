"""Kills: what was encoded stays encoded but for one interval, and the store ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

from embedders.encoders.build import Encoder, EncoderConfig, get_encoder
from embedders.running import runner
from embedders.running.checkpoint import Checkpoint
from embedders.running.runner import ItemToEmbed, RunFigures, RunnerSettings, embed_buckets
from embedders.running.spans import Progress
from embedders.running.store_bucket import Bucket
from extractors.modalities import EXTRACTORS
from tests.support.images import unit_readers
from warehouse.embeddings.store import EmbeddingStore, close_stores, content_hash

# In `make test` alone: each test encodes.
pytestmark = pytest.mark.whole

REPOSITORY = Path(__file__).parents[3]
INTERVAL = 60
SETTINGS = {"name": "random-dinov2", "width": 64, "device": "cpu", "batch_size": 12}


def encoder_for(output: str) -> Encoder:
    return get_encoder(EncoderConfig(**SETTINGS, output=output), "ct")  # type: ignore[arg-type]


def embed(items: list[ItemToEmbed], store: Path, output: str = "mean", decoders: int = 0) -> RunFigures:
    encoder = encoder_for(output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXTRACTORS, "ct", unit_readers.EXTRACTOR)
        _, figures = embed_buckets(
            [Bucket(store, encoder.spec, items, lambda: encoder)],
            RunnerSettings(decoders, 1, checkpoint_units=INTERVAL),
        )
    close_stores()
    return figures


CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from tests.embedders.running.test_checkpoint import embed, items_of
    folder, store, output, decoders, log = sys.argv[1:]
    embed(items_of(Path(folder), Path(log)), Path(store), output, int(decoders))
""")


def items_of(folder: Path, log: Path) -> list[ItemToEmbed]:
    return [unit_readers.item(folder, n, units, pause=0.02, log=str(log)) for n, units in enumerate((20, 600, 10))]


def read(log: Path) -> int:
    """Units that readers have made."""
    return sum(int(line.split()[3]) for line in log.read_text().splitlines()) if log.is_file() else 0


@pytest.mark.whole
@pytest.mark.parametrize(("output", "decoders", "kills"), [("mean", 0, 3), ("sequence", 1, 1)])
def test_kills_lose_an_interval_each_and_nothing_else(output: str, decoders: int, kills: int, tmp_path: Path) -> None:
    log, store = tmp_path / "log", tmp_path / "killed" / "0000.lmdb"
    items = items_of(tmp_path / "x", log)
    embed(items, tmp_path / "calm" / "0000.lmdb", output)
    whole = content_hash(tmp_path / "calm" / "0000.lmdb")
    log.unlink()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "x"), str(store), output, str(decoders), str(log)]
    dice = random.Random(5)
    for least in sorted(dice.sample(range(100, 480), kills)):
        with subprocess.Popen(command, env=environment) as process:
            while read(log) < least and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert store.with_suffix(".partial").is_file()
    figures = embed(items, store, output, decoders)
    assert figures.resumed_units > 0
    in_flight = 12 * (runner.DEPTH + 1) + 16 * 3 + decoders * 64  # the last: what the decoders' megabyte holds
    assert read(log) - 630 <= kills * (INTERVAL + in_flight)
    assert content_hash(store) == whole
    close_stores()
    assert sorted(path.name for path in store.parent.iterdir()) == ["0000.lmdb", "0000.lmdb-lock", "0000.writer"]
    before = read(log)
    assert embed(items, store, output).units == 0 and read(log) == before, "a rerun reads nothing"


def progress_of(item: ItemToEmbed, blocks: int) -> Progress:
    encoder = encoder_for("mean")
    progress = Progress.start(item, 64, keep=True)
    for block in range(blocks):
        units = np.arange(16 * block, 16 * (block + 1))
        vectors = encoder.encode(unit_readers.pixels(0, units))
        progress.spans[0].add(16 * (block + 1), units, vectors, np.stack([units, units], axis=1).astype(np.int32))
    return progress


def test_a_checkpoint_gives_back_what_was_saved_in_parts(tmp_path: Path) -> None:
    item = unit_readers.item(tmp_path / "x", 0, 100)
    checkpoint = Checkpoint(tmp_path / "0000.partial")
    progress = progress_of(item, 2)
    checkpoint.save([progress])
    more = progress_of(item, 4)
    checkpoint.save([more])
    checkpoint.close()
    again = Progress.start(item, 64, keep=True)
    assert Checkpoint(tmp_path / "0000.partial").restore(again) == 64
    assert (again.spans[0].total == more.spans[0].total).all() and again.spans[0].encoded == 64
    assert (again.array() == more.array()).all() and (again.places() == more.places()).all()


@pytest.mark.parametrize("change", ["file", "geometry", "byte"])
def test_a_checkpoint_of_something_else_is_not_used(change: str, tmp_path: Path) -> None:
    item = unit_readers.item(tmp_path / "x", 0, 100)
    checkpoint = Checkpoint(tmp_path / "0000.partial")
    checkpoint.save([progress_of(item, 3)])
    checkpoint.close()
    assert checkpoint.restore(Progress.start(item, 64, keep=True)) == 48
    checkpoint.close()
    if change == "file":
        (item.root / item.paths[0]).write_text("00")
    elif change == "geometry":
        item.geometry["other"] = 1  # type: ignore[index]
    else:
        with (
            lmdb.open(str(checkpoint.path), subdir=False, map_size=1 << 30) as environment,
            environment.begin(write=True) as transaction,
        ):
            key = f"{item.item_key}/0".encode()
            value = bytearray(transaction.get(key))
            value[-1] ^= 1
            transaction.put(key, bytes(value))
    assert checkpoint.restore(Progress.start(item, 64, keep=True)) == 0


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path: Path) -> None:
    item = unit_readers.item(tmp_path / "x", 0, 40)
    (tmp_path / "0000.partial").write_bytes(b"no lmdb" * 999)
    embed([item], tmp_path / "0000.lmdb")
    assert EmbeddingStore.open(tmp_path / "0000.lmdb").keys() == [item.item_key]
    assert not (tmp_path / "0000.partial").exists()
