"""The LMDB embedding store: whole values, noticed damage, any process."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader, Dataset

from warehouse.embeddings import environments
from warehouse.embeddings.store import (
    HEADER_BYTES,
    PLACES,
    EmbeddingStore,
    EmbeddingWriter,
    close_stores,
    content_hash,
    encode_value,
    sole_writer,
)
from warehouse.errors import TimeloomError


def vectors(count: int, width: int = 1024, seed: int = 0) -> list[tuple[str, np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    return [(f"{index:064x}", rng.normal(size=width).astype(np.float32), index + 1) for index in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "ct" / "random-0" / "0001.lmdb"
    with EmbeddingWriter(path) as writer:
        writer.put_many(vectors(20))
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32])
@pytest.mark.parametrize("shape", [(1536,), (7, 64), (0, 1024), (2, 3, 4, 5), ()])
def test_arrays_come_back_with_shape_dtype_and_units(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer:
        writer.put_many([("key", array, 33)])
    reader = EmbeddingStore.open(tmp_path / "a.lmdb")
    assert np.array_equal(reader.get("key"), array) and reader.get("key").dtype == dtype
    header = reader.header("key")
    assert (header.shape, header.dtype, header.n_units) == (shape, np.dtype(dtype), 33)


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(st.sampled_from([np.float32, np.float16]), hnp.array_shapes(min_dims=0, max_dims=4, max_side=9)),
    st.integers(0, 2**40),
)
def test_any_array_survives_encoding(array: np.ndarray, n_units: int) -> None:
    from warehouse.embeddings.value import decode

    header, decoded = decode(encode_value(array, n_units), Path("x"))
    assert header.n_units == n_units and np.array_equal(decoded, array, equal_nan=True)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(3, np.int64), np.zeros((1,) * 5, np.float32)])
def test_what_has_no_header_code_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot store"):
        encode_value(array, 1)


def test_absent_keys_are_key_errors_that_hold_the_key_only(store: Path) -> None:
    reader = EmbeddingStore.open(store)
    with pytest.raises(KeyError) as caught:
        reader.get("f" * 64)
    assert caught.value.args == ("f" * 64,)
    assert "f" * 64 not in reader and f"{3:064x}" in reader and "é" not in reader and 5 not in reader
    assert len(reader) == 20 and reader.keys() == sorted(reader.keys()) and reader.verify() == 20


@pytest.mark.parametrize("key", ["", "x" * 81, "schlüssel"])
def test_keys_that_lmdb_or_ascii_cannot_hold_are_refused(tmp_path: Path, key: str) -> None:
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer, pytest.raises(ValueError, match="ascii"):
        writer.put_many([("good", np.zeros(2, np.float32), 1), (key, np.zeros(2, np.float32), 1)])
    assert EmbeddingStore.open(tmp_path / "a.lmdb").keys() == []


@pytest.mark.parametrize("offset", [20, 36, 56, HEADER_BYTES, HEADER_BYTES + 2049, HEADER_BYTES + 4096 + 9])
def test_one_flipped_bit_is_noticed_wherever_it_is(store: Path, offset: int) -> None:
    """Offsets: shape, units, checksum, first and middle byte of the array, padding."""
    value = encode_value(*vectors(20)[7][1:])
    content = bytearray(store.read_bytes())
    start = content.find(value[:2000])
    assert start > 0
    content[start + offset] ^= 1
    store.write_bytes(content)
    reader = EmbeddingStore.open(store)
    with pytest.raises(TimeloomError, match=r"ct/random-0/0001\.lmdb is damaged") as caught:
        reader.get(f"{7:064x}")
    assert caught.value.remedy and f"{7:064x}" not in str(caught.value)
    assert reader.get(f"{8:064x}").shape == (1024,)
    with pytest.raises(TimeloomError):
        reader.verify()
    close_stores()
    with EmbeddingWriter(store) as writer:
        assert writer.stored_units(f"{7:064x}") is None and writer.stored_units(f"{8:064x}") == 9


@pytest.mark.parametrize("content", [None, b"", b"not an lmdb file at all" * 1000])
def test_files_that_are_no_store_are_one_clear_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.lmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TimeloomError, match=r"embedding store .*a\.lmdb is"):
        EmbeddingStore.open(path)
    if content:
        with pytest.raises(TimeloomError, match="cannot be written"), EmbeddingWriter(path):
            pass


def test_content_hash_depends_on_content_and_on_nothing_else(tmp_path: Path) -> None:
    items = vectors(300)
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer:
        writer.put_many(items)
    with EmbeddingWriter(tmp_path / "b.lmdb") as writer:
        for start in range(0, 300, 7):
            writer.put_many(items[::-1][start : start + 7])
    assert (tmp_path / "a.lmdb").read_bytes() != (tmp_path / "b.lmdb").read_bytes()
    assert content_hash(tmp_path / "a.lmdb") == content_hash(tmp_path / "b.lmdb")
    with EmbeddingWriter(tmp_path / "b.lmdb") as writer:
        writer.put_many([(items[0][0], items[0][1], 99)])
    assert content_hash(tmp_path / "a.lmdb") != content_hash(tmp_path / "b.lmdb")


def test_the_places_of_a_sequence_stand_beside_it_and_are_no_item(tmp_path: Path) -> None:
    sequence, places = np.ones((5, 8), np.float16), np.arange(10, dtype=np.int32).reshape(5, 2)
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer:
        writer.put_many([("a" * 64, sequence, 5), ("a" * 64 + PLACES, places, 5), *vectors(2)])
    reader = EmbeddingStore.open(tmp_path / "a.lmdb")
    assert reader.keys() == [f"{0:064x}", f"{1:064x}", "a" * 64]
    assert len(reader) == reader.verify() == 3
    assert reader.get("a" * 64).shape == (5, 8)
    assert np.array_equal(reader.places("a" * 64), places) and reader.places("a" * 64).dtype == np.int32
    before = content_hash(tmp_path / "a.lmdb")
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer:
        writer.put_many([("a" * 64 + PLACES, places + 1, 5)])
    assert content_hash(tmp_path / "a.lmdb") != before, "places are content"


def test_a_second_worker_waits_for_a_store_and_then_says_so(store: Path) -> None:
    child = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from warehouse.embeddings.store import sole_writer
        with sole_writer(Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.read()
    """)
    command = [sys.executable, "-c", child, str(store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TimeloomError, match=r"another worker is writing .*0001\.lmdb"), sole_writer(store, 0.2):
            pass
        holder.kill()
    with sole_writer(store, 0.0):
        pass  # free again: it raises where it is not


def test_a_failing_transaction_stores_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_hash(store)

    class FullDisk:
        def __enter__(self) -> "FullDisk":
            return self

        def __exit__(self, *error: object) -> None: ...

        def put(self, key: bytes, value: bytes) -> None:
            raise lmdb.DiskError("no space")

    with EmbeddingWriter(store) as writer:

        class Environment:
            def begin(self, write: bool) -> FullDisk:
                return FullDisk()

        kept, writer._environment = writer._environment, Environment()  # type: ignore[assignment]
        with pytest.raises(TimeloomError, match="could not be written") as caught:
            writer.put_many(vectors(2, seed=5))
        writer._environment = kept
    assert "disk space" in caught.value.remedy
    assert content_hash(store) == before


def test_acknowledged_transactions_survive_kill_9(tmp_path: Path) -> None:
    """The child says a batch's number after its transaction; it dies inside a later one."""
    child = textwrap.dedent("""
        import sys, numpy as np
        from warehouse.embeddings.store import EmbeddingWriter
        with EmbeddingWriter(sys.argv[1]) as writer:
            for batch in range(10_000):
                writer.put_many([(f"{batch:04d}-{i}", np.full(1024, batch, np.float32), i) for i in range(50)])
                print(batch, flush=True)
    """)
    path = tmp_path / "a.lmdb"
    process = subprocess.Popen([sys.executable, "-c", child, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 5:
            process.send_signal(signal.SIGKILL)
            break
    rest = process.stdout.read().split()
    process.wait()
    said = int(rest[-1]) if rest else 5
    reader = EmbeddingStore.open(path)
    assert reader.verify() % 50 == 0 and len(reader) >= 50 * (said + 1)
    assert reader.get(f"{said:04d}-49")[0] == said
    with EmbeddingWriter(path) as writer:
        writer.put_many(vectors(1))
    assert f"{0:064x}" in reader


def test_readers_and_a_writer_live_together_in_one_process(store: Path) -> None:
    first, second = EmbeddingStore.open(store), EmbeddingStore.open(store)
    assert np.array_equal(first.get(f"{1:064x}"), second.get(f"{1:064x}"))
    with EmbeddingWriter(store) as writer:
        assert first.get(f"{1:064x}").shape == (1024,)
        writer.put_many([("new", np.ones(3, np.float32), 1)])
        assert "new" in first
        with pytest.raises(RuntimeError, match="writer in this process"), EmbeddingWriter(store):
            pass
    assert second.get("new").tolist() == [1, 1, 1]


def test_a_reader_follows_a_store_that_another_process_grows(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "READER_ROOM_BYTES", 1 << 20)
    reader = EmbeddingStore.open(store)
    assert len(reader) == 20
    child = textwrap.dedent("""
        import sys, numpy as np
        from warehouse.embeddings.store import EmbeddingWriter
        with EmbeddingWriter(sys.argv[1]) as writer:
            writer.put_many([(f"new-{i}", np.full(1024, i, np.float32), i) for i in range(500)])
    """)
    subprocess.run([sys.executable, "-c", child, str(store)], check=True)
    assert reader.get("new-499")[0] == 499 and len(reader) == 520 and reader.verify() == 520


def test_a_process_reads_more_stores_than_whole_maps_would_fit(tmp_path: Path) -> None:
    """200 buckets: with a map of 1 TiB each they would need more than the 128 TiB of a process."""
    for bucket in range(200):
        with EmbeddingWriter(tmp_path / f"{bucket:04d}.lmdb") as writer:
            writer.put_many(vectors(1, width=8, seed=bucket))
    readers = [EmbeddingStore.open(tmp_path / f"{bucket:04d}.lmdb") for bucket in range(200)]
    assert all(len(reader) == 1 for reader in readers)
    close_stores()


def test_reading_needs_no_lock_file_and_no_writable_folder(store: Path) -> None:
    store.with_name(store.name + "-lock").unlink()
    store.chmod(0o444)
    store.parent.chmod(0o555)
    try:
        EmbeddingStore.open(store).get(f"{1:064x}")
        assert [file.name for file in store.parent.iterdir()] == ["0001.lmdb"]
    finally:
        store.parent.chmod(0o755)


class Vectors(Dataset):  # type: ignore[type-arg]
    def __init__(self, reader: EmbeddingStore) -> None:
        self.reader, self.parent = reader, os.getpid()

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> np.ndarray:
        assert os.getpid() != self.parent
        return self.reader.get(f"{index:064x}")


@pytest.mark.whole
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_a_store_that_the_parent_has_open(store: Path, start: str) -> None:
    reader = EmbeddingStore.open(store)
    reader.get(f"{0:064x}")
    loader = DataLoader(Vectors(reader), batch_size=5, num_workers=2, multiprocessing_context=start)
    got = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(got, np.stack([array for _, array, _ in vectors(20)]))
    assert np.array_equal(reader.get(f"{3:064x}"), vectors(20)[3][1])


def test_a_vector_takes_two_pages_and_little_more(tmp_path: Path) -> None:
    with EmbeddingWriter(tmp_path / "a.lmdb") as writer:
        writer.put_many(vectors(500))
    assert (tmp_path / "a.lmdb").stat().st_size / 500 < 8192 * 1.05


@pytest.mark.parametrize("size", [5_000, 20_000, 0.5, 0.9])
def test_a_store_that_is_cut_short_is_one_line_and_kills_nobody(store: Path, size: float) -> None:
    os.truncate(store, int(size if size > 1 else store.stat().st_size * size))
    script = f"""
        from pathlib import Path
        from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter
        from warehouse.errors import TimeloomError
        path = Path({str(store)!r})
        for use in (lambda: EmbeddingStore.open(path).keys(), EmbeddingWriter(path).__enter__):
            try:
                use()
            except TimeloomError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [("0001.lmdb" in line, "cut short" in line) for line in done.stdout.splitlines()] == [(True, True)] * 2


def test_a_store_that_ends_inside_the_page_of_its_keys_is_cut_short(tmp_path: Path) -> None:
    """The rest of that page reads as zeros: keys without a letter, which no error told."""
    path = tmp_path / "0001.lmdb"
    with EmbeddingWriter(path) as writer:
        writer.put_many(vectors(2))
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as raw:
        page_bytes = raw.stat()["psize"]
        pages = raw.info()["last_pgno"] + 1
    found = path.read_bytes()
    for page in range(2, pages):
        path.write_bytes(found[: page * page_bytes + page_bytes // 2])
        with pytest.raises(TimeloomError, match="cut short"):
            EmbeddingStore.open(path)


def test_a_file_that_lacks_nothing_but_freed_pages_is_read(tmp_path: Path) -> None:
    """What LMDB does now and then; these puts and deletions make it leave three pages out."""
    path = tmp_path / "0001.lmdb"
    rng = random.Random(2)
    with lmdb.open(str(path), subdir=False, map_size=1 << 30, sync=False) as raw:
        for _ in range(6):
            with raw.begin(write=True) as transaction:
                for _ in range(rng.randint(1, 300)):
                    key = str(rng.randint(0, 400)).encode()
                    if rng.random() < 0.35:
                        transaction.delete(key)
                    else:
                        transaction.put(key, bytes(rng.choice([50, 2048, 3072, 9000])))
        short = (raw.info()["last_pgno"] + 1) * raw.stat()["psize"] > path.stat().st_size
    with environments.reading(path) as transaction:
        assert short and transaction.stat()["entries"] > 100
    close_stores()
