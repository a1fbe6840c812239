"""A store that is written in a scratch folder takes its place whole, survives a kill, and undoes no other writer's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from warehouse.embeddings.scratch import SCRATCH_VARIABLE
from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter, close_stores
from warehouse.errors import TimeloomError

REPOSITORY = Path(__file__).parents[3]
VECTOR = np.arange(4, dtype=np.float32)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv(SCRATCH_VARIABLE, str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "root" / "0000.lmdb"


def put(store: Path, *keys: str) -> None:
    with EmbeddingWriter(store) as writer:
        writer.put_many([(key, VECTOR, 1) for key in keys])


def keys_of(store: Path) -> set[str]:
    close_stores()
    found = set(EmbeddingStore.open(store).keys())
    close_stores()
    return found


def test_the_store_takes_its_place_when_it_is_closed(store: Path, scratch: Path) -> None:
    with EmbeddingWriter(store) as writer:
        writer.put_many([("a", VECTOR, 1)])
        assert not store.exists(), "LMDB writes nothing in the store's own place"
        assert writer.stored_units("a") == 1, "who writes it reads it"
    assert keys_of(store) == {"a"}
    put(store, "b")
    assert keys_of(store) == {"a", "b"}
    assert list(scratch.iterdir()) == []
    assert [path.name for path in store.parent.iterdir()] == ["0000.lmdb"], "no lock file, nothing half written"


def test_a_store_that_did_not_change_stays_the_file_that_it_is(store: Path, scratch: Path) -> None:
    put(store, "a")
    before = store.stat().st_ino
    with EmbeddingWriter(store):
        pass
    assert store.stat().st_ino == before
    assert list(scratch.iterdir()) == []


def test_an_empty_store_is_made_too(store: Path, scratch: Path) -> None:
    with EmbeddingWriter(store):
        pass
    assert keys_of(store) == set()


def killed_while_writing(store: Path, key: str) -> None:
    code = f"""
import os, signal
import numpy as np
from warehouse.embeddings.store import EmbeddingWriter
with EmbeddingWriter({str(store)!r}) as writer:
    writer.put_many([({key!r}, np.zeros(4, np.float32), 1)])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode < 0


def test_what_a_killed_writer_stored_is_gone_on_with(store: Path, scratch: Path) -> None:
    put(store, "a")
    killed_while_writing(store, "b")
    assert keys_of(store) == {"a"}, "a kill leaves what stood"
    with EmbeddingWriter(store) as writer:
        assert writer.stored_units("b") == 1
    assert keys_of(store) == {"a", "b"}
    assert list(scratch.iterdir()) == []


def test_what_a_killed_writer_left_counts_no_more_once_another_has_written(
    store: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "a")
    killed_while_writing(store, "b")
    with monkeypatch.context() as patch:
        patch.delenv(SCRATCH_VARIABLE)  # as on another machine
        put(store, "c")
    with EmbeddingWriter(store) as writer:
        assert writer.stored_units("b") is None
        assert writer.stored_units("c") == 1


def test_a_writer_that_was_overtaken_undoes_nothing(store: Path, scratch: Path, tmp_path: Path) -> None:
    put(store, "a")
    with (
        pytest.raises(TimeloomError, match="was written by another worker meanwhile"),
        EmbeddingWriter(store) as writer,
    ):
        writer.put_many([("b", VECTOR, 1)])
        other = os.environ | {SCRATCH_VARIABLE: ""}
        code = f"""
import numpy as np
from warehouse.embeddings.store import EmbeddingWriter
with EmbeddingWriter({str(store)!r}) as writer:
    writer.put_many([("c", np.zeros(4, np.float32), 1)])
"""
        subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=other)
    assert keys_of(store) == {"a", "c"}


def test_a_scratch_folder_that_is_none_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(store.parent / "absent"))
    with pytest.raises(TimeloomError, match="TIMELOOM_SCRATCH names no folder that can be written"):
        put(store, "a")


def test_what_is_left_of_another_encoder_s_store_is_not_gone_on_with(store: Path, scratch: Path) -> None:
    """A folder that is new may have the number of one that was deleted, and both buckets are not there yet."""
    kept = scratch / "kept"
    with EmbeddingWriter(store.parent.with_name("first") / store.name) as writer:
        writer.put_many([("a", VECTOR, 1)])
        (left,) = scratch.iterdir()
        shutil.copytree(left, kept)
    put(store)
    store.unlink()
    status = store.parent.stat()
    kept.rename(scratch / f"timeloom-{status.st_dev:x}-{status.st_ino:x}-{store.stem}")
    put(store, "b")
    assert keys_of(store) == {"b"}
