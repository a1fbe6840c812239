"""Vectors copied from where they were found before are those that a search would give, whatever happened since."""

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.releases import DIMS
from tests.support.tokens.markov import fabricate, markov_timelines, vector_of
from warehouse import Release
from warehouse.embeddings import addresses, environments, lookup
from warehouse.embeddings.addresses import ArrayAddresses, no_marks
from warehouse.embeddings.lookup import Stores, read_vectors
from warehouse.embeddings.store import EmbeddingStore, EmbeddingWriter, StoreDamagedError, close_stores
from warehouse.errors import TimeloomError
from warehouse.readers.open_shards import OpenShards

WIDTH = 1024
Arrays = dict[str, npt.NDArray[np.floating]]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_stores()


def drawn(count: int, seed: int = 0, dtype: str = "f4", width: int = WIDTH) -> Arrays:
    random = np.random.default_rng(seed)
    return {f"{seed:02d}{number:062x}": random.normal(size=width).astype(dtype) for number in range(count)}


def write(path: Path, arrays: Arrays) -> None:
    with EmbeddingWriter(path) as writer:
        writer.put_many([(key, array, 1) for key, array in arrays.items()])


class Items:
    """Items of some stores with their marks; counts what is searched for."""

    def __init__(self, stores: dict[Path, Arrays]) -> None:
        self.expected = {key: (path, array) for path, arrays in stores.items() for key, array in arrays.items()}
        self.keys: list[str] = np.random.default_rng(3).permutation(sorted(self.expected)).tolist()
        self.marks, self.searched = no_marks(len(self.keys)), 0

    def read(self, which: npt.NDArray[np.int64] | None = None, width: int = WIDTH) -> npt.NDArray[np.float32]:
        which = np.arange(len(self.keys)) if which is None else which
        keys = [self.keys[item] for item in which]
        self.searched = 0

        def stores(places: list[int]) -> Stores:
            self.searched += len(places)
            by_store: dict[Path, list[int]] = {}
            for place in places:
                by_store.setdefault(self.expected[keys[place]][0], []).append(place)
            return [(EmbeddingStore(path), places) for path, places in by_store.items()]

        return read_vectors(keys, width, ArrayAddresses(self.marks, which), stores)

    def wanted(self, width: int = WIDTH) -> npt.NDArray[np.float32]:
        rows = [self.expected[key][1].reshape(-1, width).mean(axis=0, dtype=np.float32) for key in self.keys]
        return np.array(rows, np.float32).reshape(-1, width)


@pytest.fixture
def items(tmp_path: Path) -> Items:
    stores = {tmp_path / f"{bucket:04d}.lmdb": drawn(20, bucket) for bucket in range(3)}
    for path, arrays in stores.items():
        write(path, arrays)
    return Items(stores)


@pytest.mark.parametrize(
    ("kinds", "searched_again"),
    [(["f4"], 0), (["f2"], 0), (["f4", "f2"], 0), (["f4", "sequence"], 12), (["f4", "small"], 12), ([], 0)],
)
def test_vectors_of_several_stores_come_in_the_order_asked_for(
    tmp_path: Path, kinds: list[str], searched_again: int
) -> None:
    width = 64 if "small" in kinds else WIDTH  # a small value lies on a page with others, and may move
    random, stores = np.random.default_rng(4), {}
    for bucket in range(3 if kinds else 0):
        arrays: Arrays = {}
        for kind in kinds * 4:
            shape = (5, width) if kind == "sequence" else (width,)
            dtype = "f2" if kind == "f2" else "f4"
            arrays[f"{random.integers(1 << 60):064x}"] = random.normal(size=shape).astype(dtype)
        stores[tmp_path / f"{bucket:04d}.lmdb"] = arrays
        write(tmp_path / f"{bucket:04d}.lmdb", arrays)
    items = Items(stores)
    again = len(items.keys) if "small" in kinds else searched_again
    for searched in (len(items.keys), again, again):
        found = items.read(width=width)
        assert found.dtype == np.float32 and found.flags.c_contiguous and found.flags.writeable
        assert np.array_equal(found, items.wanted(width)) and items.searched == searched


def test_what_was_found_before_and_what_was_not_come_together(items: Items) -> None:
    random, seen = np.random.default_rng(5), set[int]()
    for _ in range(12):
        which = random.choice(len(items.keys), 9)  # some twice
        assert np.array_equal(items.read(which), items.wanted()[which])
        assert items.searched == sum(item not in seen for item in which.tolist())
        seen |= set(which.tolist())


def test_vectors_of_another_width_and_absent_ones_are_named(items: Items) -> None:
    with pytest.raises(TimeloomError, match="not \\(9,\\)"):
        items.read(width=9)
    items.expected["absent"] = items.expected[items.keys[0]]
    items.keys[0] = "absent"
    with pytest.raises(TimeloomError, match="lacks an item"):
        items.read()
    assert not items.marks.any()


def test_a_flipped_bit_is_found_when_a_value_is_first_read(items: Items) -> None:
    path, array = items.expected[items.keys[5]]
    raw = bytearray(path.read_bytes())
    raw[raw.find(array.tobytes()) + 4000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreDamagedError, match="a checksum differs"):
        items.read()
    assert not items.marks[5].any()


def test_closing_stores_makes_every_mark_void(items: Items) -> None:
    items.read()
    close_stores()
    assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)
    assert np.array_equal(items.read(), items.wanted()) and items.searched == 0


def test_a_writer_of_this_process_voids_marks_as_it_takes_the_map_over(items: Items) -> None:
    items.read()
    with EmbeddingWriter(items.expected[items.keys[0]][0]) as writer:
        assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)
        writer.put_many([("new", np.ones(WIDTH, np.float32), 1)])
        assert np.array_equal(items.read(), items.wanted()) and items.searched == 0
    assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)


def run(script: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)], check=True)


def grow(path: Path) -> None:
    """Another process adds two hundred items."""
    run(
        """
        import sys, numpy as np
        from warehouse.embeddings.store import EmbeddingWriter
        with EmbeddingWriter(sys.argv[1]) as writer:
            for batch in range(4):
                writer.put_many([(f"new-{batch}-{i}", np.full(1024, i, np.float32), 1) for i in range(50)])
        """,
        path,
    )


def test_items_that_another_process_adds_void_nothing(items: Items) -> None:
    items.read()
    for path in {path for path, _ in items.expected.values()}:
        grow(path)
    assert np.array_equal(items.read(), items.wanted()) and items.searched == 0


def test_a_map_that_has_become_too_small_voids_marks(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "READER_ROOM_BYTES", 1 << 20)
    items.read()
    path = items.expected[items.keys[0]][0]
    grow(path)
    before = environments.generation()
    assert EmbeddingStore(path).get("new-0-7")[0] == 7 and environments.generation() == before + 1
    assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)


def test_a_map_that_becomes_too_small_within_a_batch_voids_what_was_found_before(
    items: Items, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for one item opens the store anew, after others of the batch were found in the map it had."""
    monkeypatch.setattr(environments, "READER_ROOM_BYTES", 1 << 20)
    half = np.arange(len(items.keys)) % 2 == 0
    items.read(np.flatnonzero(half))
    for path in {path for path, _ in items.expected.values()}:
        grow(path)
    assert np.array_equal(items.read(), items.wanted()) and items.searched > len(items.keys)
    assert np.array_equal(items.read(), items.wanted()) and items.searched == 0


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(4))
def test_a_vector_whose_pages_another_item_has_now_is_searched_for(tmp_path: Path, seed: int) -> None:
    """Another process replaces vectors by shorter and longer ones: each row is the vector of then or of now, whole."""
    path = tmp_path / "0001.lmdb"
    write(path, drawn(40))
    items = Items({path: drawn(40)})
    before, changed = items.read(), 0
    for night in range(5):
        run(
            """
            import sys, numpy as np
            from warehouse.embeddings.store import EmbeddingWriter
            random = np.random.default_rng(int(sys.argv[2]))
            keys = sys.argv[3:]
            with EmbeddingWriter(sys.argv[1]) as writer:
                for _ in range(3):
                    chosen = random.choice(keys, 6, replace=False)
                    arrays = [random.normal(size=1024).astype(random.choice(["f4", "f2"])) for _ in chosen]
                    other = [random.normal(size=int(random.integers(1, 5000))).astype("f4") for _ in chosen]
                    writer.put_many(
                        [(key, array, 1) for key, array in zip(chosen, arrays)]
                        + [(f"new-{random.integers(1 << 40)}", array, 1) for array in other]
                    )
            """,
            path,
            100 * seed + night,
            *items.keys,
        )
        after = items.read()
        changed += items.searched
        current = np.array([EmbeddingStore(path).get(key).astype(np.float32) for key in items.keys])
        now, then = (after == current).all(axis=1), (after == before).all(axis=1)
        assert (now | then).all()
        before = after
    assert changed  # pages were reused, or this shows nothing


def test_a_forked_process_searches_anew_and_leaves_its_parents_marks(items: Items) -> None:
    items.read()
    child = os.fork()
    if child == 0:
        try:
            same = np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)
            same = same and np.array_equal(items.read(), items.wanted()) and items.searched == 0
        except BaseException:
            same = False
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(items.read(), items.wanted()) and items.searched == 0


def test_stores_may_be_closed_while_other_threads_read(items: Items) -> None:
    wanted, wrong = items.wanted(), []

    def reader(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(150):
            which = random.choice(len(items.keys), 20)
            if not np.array_equal(items.read(which), wanted[which]):
                wrong.append(seed)

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with environments.staying_open():  # not within a search, which would lose its transaction
            close_stores()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mark_that_does_not_fit_is_none(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = addresses.new_marks(8191, np.array([[2, (1 << 48) - 1, -5]]))
    assert addresses.forms_of(fitting, 8191) == 2 and addresses.forms_of(fitting, 8190) == 0
    assert addresses.addresses_of(fitting) == (1 << 48) - 1 and fitting[0, 1] == -5
    assert addresses.address_limit(8191) == 1 << 48 and addresses.address_limit(8192) == 0
    monkeypatch.setattr(environments, "_generation", 9000)
    for _ in range(2):
        assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)


def test_a_store_that_is_exchanged_is_read_as_it_was_until_it_is_opened_again(items: Items) -> None:
    path = items.expected[items.keys[0]][0]
    fresh = {key: array + 1 for key, array in drawn(20, int(path.stem)).items()}
    write(path.with_name("fresh"), fresh)
    items.read()
    path.with_name("fresh").replace(path)
    assert np.array_equal(items.read(), items.wanted()) and items.searched == 0
    close_stores()
    items.expected |= {key: (path, array) for key, array in fresh.items()}
    assert np.array_equal(items.read(), items.wanted()) and items.searched == len(items.keys)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    # Seven packs a row group, so that a batch's items are of several.
    lines = markov_timelines(90, seed=3)
    return Release.open(fabricate(tmp_path_factory.mktemp("marks") / "root", lines, row_group_rows=7))


@pytest.mark.parametrize(
    ("options", "small_bytes", "again"),
    [({}, None, False), ({"items_per_segment": 3}, None, False), ({}, 20_000, True)],
)
def test_an_epoch_searches_for_each_item_once_while_its_row_group_is_held(
    release: Release, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], small_bytes: int | None, again: bool
) -> None:
    searched: list[str] = []
    original = lookup._search

    def counting(keys: list[str], width: int, stores: Stores, *others: object) -> None:
        parts = list(stores)
        searched.extend(keys[place] for _, places in parts for place in places)
        original(keys, width, parts, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(lookup, "_search", counting)
    dataset = release.shards("mehrt", split="train", seed=7, **options)
    if small_bytes:
        dataset.shelf = OpenShards(release, "mehrt", "train", "default", None, small_bytes=small_bytes)
    for epoch in range(3):
        searched.clear()
        keys: list[str] = []
        for batch in dataset.batches(4):
            for modality, width in DIMS.items():
                item_keys = batch.item_keys[modality]
                wanted = np.array([vector_of(modality, key) for key in item_keys], np.float32).reshape(-1, width)
                assert np.array_equal(batch.item_vectors[modality], wanted)
                keys += item_keys
        assert len(set(keys)) > 100
        assert bool(searched) == (again or epoch == 0)
        assert epoch or set(searched) == set(keys)
