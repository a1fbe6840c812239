"""Decoder processes: memory that is never handed out twice and leaves nothing behind, deaths that cost one item."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedders.decoding.pool import DecodedPiece, Decoders, Ended, Event, Failed
from embedders.decoding.process import SpanRequest
from embedders.decoding.ring_buffer import Ring
from embedders.encoders.build import Encoder, EncoderConfig, get_encoder
from embedders.running.runner import EmbeddedItem, ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.store_bucket import Bucket, read_verdicts
from extractors.modalities import EXTRACTORS
from tests.support.images import unit_readers
from warehouse.embeddings.store import close_stores
from warehouse.errors import TimeloomError

# In `make test` alone: each test starts processes.
pytestmark = pytest.mark.whole

REPOSITORY = str(Path(__file__).parents[3])


def request(item: ItemToEmbed) -> SpanRequest:
    return SpanRequest(unit_readers.READER, 16, item.root, item.paths, item.geometry, 0, item.units_expected)


def everything(pool: Decoders, requests: list[SpanRequest]) -> list[Event]:
    """All events; each piece is held against what its units should be, and released at once."""
    found: list[Event] = []
    waiting = list(enumerate(requests))
    while waiting or not pool.idle:
        while waiting and pool.wanted:
            pool.put(*waiting.pop(0))
        for event in pool.events(0.1):
            if isinstance(event, DecodedPiece):
                assert np.array_equal(event.units.pixels, unit_readers.pixels(event.number, event.units.indices))
                pool.release(event)
            found.append(event)
    return found


@given(st.integers(1, 40), st.lists(st.integers(1, 700), max_size=60), st.randoms())
def test_a_ring_never_gives_a_place_twice(blocks: int, sizes: list[int], dice: random.Random) -> None:
    ring = Ring(blocks * 64)
    taken: dict[int, int] = {}
    for size in sizes:
        offset = ring.take(size)
        if offset is None:
            assert taken or size > ring.size, "an empty ring has room for whatever fits"
            for old in dice.sample(sorted(taken), len(taken) // 2):
                ring.free(old)
                del taken[old]
            continue
        assert offset >= 0 and offset + size <= ring.size
        assert all(offset + size <= other or other + length <= offset for other, length in taken.items())
        taken[offset] = size
        assert len(ring) == len(taken)


@pytest.mark.parametrize(("processes", "memory"), [(1, 3 << 14), (2, 1 << 20)])
def test_units_come_in_order_through_any_memory(processes: int, memory: int, tmp_path: Path) -> None:
    """The smaller memory holds three pieces of one unit each."""
    items = [unit_readers.item(tmp_path, number, 37, bad=[0, 5, 36]) for number in range(3)]
    with Decoders(processes, memory) as pool:
        events = everything(pool, [request(item) for item in items])
    for number in range(3):
        pieces = [event for event in events if isinstance(event, DecodedPiece) and event.number == number]
        assert [piece.units.first for piece in pieces] == [0, *(piece.units.upto for piece in pieces[:-1])]
        assert pieces[-1].units.upto == 37
        indices = np.concatenate([piece.units.indices for piece in pieces])
        assert indices.tolist() == [unit for unit in range(37) if unit not in (0, 5, 36)]
        assert np.concatenate([piece.units.places for piece in pieces])[:, 0].tolist() == (indices * 10).tolist()
    assert sorted(event.number for event in events if isinstance(event, Ended)) == [0, 1, 2]


def test_a_decoder_that_goes_on_waiting_says_so_again(tmp_path: Path) -> None:
    """What is given back first need not be the oldest: tiles go on while a volume's rest waits for its batch."""
    small, large = (
        SpanRequest("tests.support.images.unit_readers:read_large", 16, tmp_path, (name,), {"bytes": size}, 0, count)
        for name, size, count in (("a", 1 << 10, 16), ("b", 16 << 10, 160))
    )
    with Decoders(1, 1 << 20, timeout=2.5) as pool:
        pool.put(0, small)
        pool.put(1, large)
        pieces: list[DecodedPiece] = []

        def listen(seconds: float) -> bool:
            """Whether the decoder waits for memory at the end."""
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pieces.extend(event for event in pool.events(0.05) if isinstance(event, DecodedPiece))
            return bool(pool.stalled())

        pid = set(pool.pids)
        while not listen(0.2):
            pass
        oldest, *others = pieces
        assert oldest.number == 0 and {piece.number for piece in others} == {1}
        for piece in others:
            pool.release(piece)
        count = len(pieces)
        assert listen(0.5), "it says so again"
        assert listen(3.0) and len(pieces) == count and set(pool.pids) == pid, "longer than a decoder's time limit"
        pool.release(oldest)
        listen(0.3)
        assert len(pieces) > count


def test_memory_that_holds_no_unit_is_one_clear_line(tmp_path: Path) -> None:
    with Decoders(1, 4096 // 2) as pool:
        pool._share = 1024
        with pytest.raises(TimeloomError, match="memory does not hold one image") as caught:
            everything(pool, [request(unit_readers.item(tmp_path, 0, 3))])
    assert "embedding.memory_mb" in caught.value.remedy


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=12), "ct")


def embed(items: list[ItemToEmbed], encoder: Encoder, store: Path, how: RunnerSettings) -> list[EmbeddedItem]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXTRACTORS, "ct", unit_readers.EXTRACTOR)
        results, _ = embed_buckets([Bucket(store, encoder.spec, items, lambda: encoder)], how)
    close_stores()
    return results[store]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_codec_that_crashes_costs_its_item_alone(processes: int, tmp_path: Path, encoder: Encoder) -> None:
    faults: dict[int, dict[str, object]] = {1: {"crash": 20}, 3: {"crash_once": 17, "marker": str(tmp_path / "marker")}}
    items = [unit_readers.item(tmp_path / "x", number, 24, **faults.get(number, {})) for number in range(5)]
    results = embed(items, encoder, tmp_path / "s.lmdb", RunnerSettings(processes))
    assert [result.verdict for result in results] == ["ok", "failed_unreadable", "ok", "ok", "ok"]
    assert list(read_verdicts(tmp_path / "s.lmdb")) == [items[1].item_key]
    calm = embed(items[2:], encoder, tmp_path / "calm.lmdb", RunnerSettings())
    assert calm == results[2:]


def test_a_decoder_that_hangs_costs_its_item_alone(tmp_path: Path, encoder: Encoder) -> None:
    items = [
        unit_readers.item(tmp_path / "x", number, 5, **({"hang": 2} if number == 0 else {})) for number in range(2)
    ]
    begun = time.monotonic()
    results = embed(items, encoder, tmp_path / "s.lmdb", RunnerSettings(1, decode_timeout=1.5))
    assert [result.verdict for result in results] == ["failed_unreadable", "ok"]
    assert time.monotonic() - begun < 20


def test_what_died_is_read_on_from_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "log"
    item = unit_readers.item(tmp_path / "x", 0, 48, crash_once=33, marker=str(tmp_path / "marker"), log=str(log))
    with Decoders(1, 1 << 20) as pool:
        events = everything(pool, [request(item)])
    assert [(event.units.first, event.units.upto) for event in events if isinstance(event, DecodedPiece)] == [
        (0, 16),
        (16, 32),
        (32, 48),
    ]
    read = [line.split() for line in log.read_text().splitlines()]
    assert [int(line[2]) for line in read] == [0, 16, 32, 32]
    assert read[2][0] != read[3][0], "in another process"


def test_a_second_death_is_the_end(tmp_path: Path) -> None:
    with Decoders(1, 1 << 20) as pool:
        events = everything(pool, [request(unit_readers.item(tmp_path, 0, 48, crash=33))])
    assert events[-1] == Failed(0, 32, "failed_unreadable", "decoder died")


def test_a_reader_that_cannot_be_imported_is_no_death(tmp_path: Path) -> None:
    item = unit_readers.item(tmp_path, 0, 3)
    with Decoders(1, 1 << 20) as pool, pytest.raises(TimeloomError, match="does not work here"):
        everything(pool, [SpanRequest("tests.support.images.unit_readers:absent", 16, item.root, item.paths, {}, 0, 3)])


def _in_shared_memory() -> set[str]:
    """Named pieces of Python's shared memory; what else lies there may be of tests that run beside this one."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


@pytest.mark.whole
def test_nothing_is_left_when_the_run_is_killed(tmp_path: Path) -> None:
    """Neither a process, also of those that wait for room, nor a named piece of shared memory."""
    unit_readers.item(tmp_path, 0, 5000)
    child = textwrap.dedent("""
        import sys
        from pathlib import Path
        from embedders.decoding.process import SpanRequest
        from embedders.decoding.pool import Decoders
        pool = Decoders(2, 1 << 20)
        for number in range(2):
            reader = "tests.support.images.unit_readers:read"
            pool.put(number, SpanRequest(reader, 16, Path(sys.argv[1]), ("0",), {}, 0, 5000))
        while len(pool.stalled()) < 2:
            pool.events(0.1)
        print(*pool.pids, flush=True)
        sys.stdin.read()
    """)
    before = _in_shared_memory()
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    with subprocess.Popen(
        [sys.executable, "-c", child, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
        assert _in_shared_memory() <= before
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
