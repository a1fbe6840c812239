"""Imported vectors in stores: equal bit for bit, made again where their file changed, and nowhere else."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedders.encoders.golden import RECORD, record_import
from embedders.encoders.spec import EncoderConfig, store_spec
from embedders.running import importing
from embedders.running.importing import ImportBucket, ImportFigures, ItemToImport, import_buckets, outcomes
from embedders.running.spans import EmbeddedItem
from tests.support.vectors import declared, drawn, found, grid, trident, trident_slide
from warehouse.embeddings.store import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError


def encoder(path: Path, **keys: Any) -> EncoderConfig:
    beside = {name: keys.pop(name) for name in ("output", "store_dtype") if name in keys}
    return EncoderConfig.model_validate({"imported": declared(path, **keys).model_dump(), **beside})


def items_of(config: EncoderConfig) -> list[ItemToImport]:
    assert config.imported is not None
    return [
        ItemToImport(
            f"key-{name}", item.geometry.get("digest", ""), item.verdict, 7, item.paths[0], item.geometry["member"]
        )
        for name, item in found(config.imported).items()
    ]


def take(
    config: EncoderConfig, store: Path, items: Sequence[ItemToImport] | None = None
) -> tuple[ImportFigures, dict[str, EmbeddedItem]]:
    """Imports a folder into one bucket: what was done, and every outcome."""
    assert config.imported is not None
    wanted = items_of(config) if items is None else items
    figures = import_buckets([ImportBucket(store, wanted)], config.imported, store_spec(config, "wsi"))
    return figures, outcomes(store, wanted, config.width)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "vectors"
    for number, name in enumerate(("a", "b", "c")):
        trident(folder / f"{name}.h5", drawn(700 + number, 8, seed=number))
    return folder


def test_means_are_of_all_units_and_do_not_overflow(tmp_path: Path) -> None:
    features = np.full((3000, 8), 40, np.float16)  # their sum in float16 is infinite
    features[:, 0] = drawn(3000, seed=3)
    trident(tmp_path / "vectors" / "a.h5", features)
    _, known = take(encoder(tmp_path / "vectors", store_dtype="float32"), tmp_path / "0000.lmdb")
    assert known["key-a"] == EmbeddedItem("key-a", "ok", 3000, 3000, 0, 8)
    stored = EmbeddingStore.open(tmp_path / "0000.lmdb").get("key-a")
    assert stored.dtype == np.float32 and np.array_equal(stored, features.astype(np.float64).mean(axis=0).astype("f4"))


@pytest.mark.parametrize("shape", ["units", "item"])
def test_what_is_stored_is_what_was_imported(tmp_path: Path, shape: str) -> None:
    features = drawn(900, 8)
    folder, store = tmp_path / "vectors", tmp_path / "0000.lmdb"
    if shape == "units":
        trident(folder / "a.h5", features)
        take(encoder(folder, output="sequence"), store)
        assert np.array_equal(EmbeddingStore.open(store).places("key-a"), grid(900))
    else:
        trident_slide(folder / "a.h5", features[0])
        take(encoder(folder, shape="item"), store)
    stored = EmbeddingStore.open(store).get("key-a")
    assert stored.dtype == np.float16 and np.array_equal(stored, features if shape == "units" else features[0])
    assert EmbeddingStore.open(store).keys() == ["key-a"] and EmbeddingStore.open(store).verify() == 1


def test_only_what_changed_is_made_again(files: Path, tmp_path: Path) -> None:
    config, store = encoder(files), tmp_path / "0000.lmdb"
    assert take(config, store)[0].items == 3
    before = {name: EmbeddingStore.open(store).get(f"key-{name}") for name in "abc"}
    assert take(config, store)[0].items == 0
    trident(files / "b.h5", drawn(10, 8, seed=9))
    changed = items_of(config)
    assert len(outcomes(store, changed, 8)) == 2
    figures, known = take(config, store)
    assert (figures.items, figures.units) == (1, 10) and known["key-b"].units_encoded == 10
    after = {name: EmbeddingStore.open(store).get(f"key-{name}") for name in "abc"}
    assert [np.array_equal(before[name], after[name]) for name in "abc"] == [True, False, True]


def test_a_verdict_holds_until_the_vectors_change(files: Path, tmp_path: Path) -> None:
    config, store = encoder(files), tmp_path / "0000.lmdb"
    trident(files / "b.h5", drawn(10, 9))
    _, known = take(config, store)
    assert known["key-b"] == EmbeddedItem("key-b", "failed_vector_width", 7, 0, 7, None)
    assert take(config, store)[0].items == 0
    trident(files / "b.h5", drawn(10, 8))
    assert take(config, store)[1]["key-b"].verdict == "ok"
    trident(files / "b.h5", drawn(10, 9))  # the old vector is not this item's any more
    assert take(config, store)[1]["key-b"].verdict == "failed_vector_width"


def test_files_that_changed_since_they_were_found_are_tried_again(files: Path, tmp_path: Path) -> None:
    config, store = encoder(files), tmp_path / "0000.lmdb"
    wanted = items_of(config)
    trident(files / "a.h5", drawn(700, 8, seed=77))
    (files / "b.h5").unlink()
    figures, known = take(config, store, wanted)
    assert {key: item.verdict for key, item in known.items()} == {
        "key-a": "failed_changed", "key-b": "failed_changed", "key-c": "ok"
    }  # fmt: skip
    assert figures.errors == {"FileNotFoundError": 1}
    assert take(config, store, wanted)[0].items == 2


def test_two_items_may_have_the_vectors_of_one_file(files: Path, tmp_path: Path) -> None:
    """Copies of one image that stand under two ids of a patient: each finds them, also in another bucket."""
    config = encoder(files)
    assert config.imported is not None
    wanted = items_of(config)
    copies = [replace(item, item_key=f"{item.item_key}-again") for item in wanted]
    stores = [tmp_path / "0000.lmdb", tmp_path / "0001.lmdb"]
    buckets = [ImportBucket(stores[0], [*wanted, copies[0]]), ImportBucket(stores[1], copies[1:])]
    figures = import_buckets(buckets, config.imported, store_spec(config, "wsi"))
    known = [outcome for bucket in buckets for outcome in outcomes(bucket.store, bucket.items, 8).values()]
    assert figures.items == len(known) == 6 and {outcome.verdict for outcome in known} == {"ok"}
    first, again = EmbeddingStore.open(stores[0]), EmbeddingStore.open(stores[1])
    assert np.array_equal(first.get("key-b"), again.get("key-b-again"))


def test_values_that_the_store_s_type_does_not_hold(tmp_path: Path) -> None:
    trident(tmp_path / "vectors" / "a.h5", np.full((2, 8), 1e6, np.float32))
    config = encoder(tmp_path / "vectors", dtype="float32")
    assert config.store_dtype == "float32" and take(config, tmp_path / "0.lmdb")[1]["key-a"].verdict == "ok"
    half = encoder(tmp_path / "vectors", dtype="float32", store_dtype="float16")
    assert take(half, tmp_path / "1.lmdb")[1]["key-a"].verdict == "failed_not_finite"


def test_a_damaged_vector_is_healed_from_the_files(files: Path, tmp_path: Path) -> None:
    config, store = encoder(files, output="sequence"), tmp_path / "0000.lmdb"
    take(config, store)
    whole = EmbeddingStore.open(store).get("key-a")
    close_stores()
    at = store.read_bytes().index(whole.tobytes()[:64])
    with store.open("r+b") as file:
        file.seek(at)
        file.write(b"\0\0")
    with pytest.raises(TimeloomError):
        EmbeddingStore.open(store).get("key-a")
    close_stores()
    assert take(config, store)[0].items == 1
    assert np.array_equal(EmbeddingStore.open(store).get("key-a"), whole)


def test_more_buckets_than_are_filled_together(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "AT_ONCE", 2)
    monkeypatch.setattr(importing, "COMMIT_BYTES", 1)
    config = encoder(files)
    assert config.imported is not None
    buckets = [ImportBucket(tmp_path / f"{place}.lmdb", [item]) for place, item in enumerate(items_of(config))]
    assert import_buckets(buckets, config.imported, store_spec(config, "wsi")).items == 3
    assert [len(EmbeddingStore.open(bucket.store)) for bucket in buckets] == [1, 1, 1]


def test_the_store_s_name_is_that_of_what_is_declared(files: Path, tmp_path: Path) -> None:
    def name(**keys: Any) -> str:
        return store_spec(encoder(files, **keys), "wsi").store_name

    assert name().startswith("uni2-h-") and name(match="path") == name(coords=None) == name()
    others = [
        {"version": "2"}, {"dtype": "float32"}, {"shape": "item"}, {"output": "sequence"}, {"width": 9},
        {"store_dtype": "float32"}, {"features": "tokens"},
    ]  # fmt: skip
    assert len({name(), *(name(**keys) for keys in others)}) == len(others) + 1
    moved = encoder(tmp_path)
    assert store_spec(moved, "wsi") == store_spec(encoder(files), "wsi")


def test_the_record_of_a_store_is_written_once_and_compared(files: Path, tmp_path: Path) -> None:
    spec = store_spec(encoder(files), "wsi")
    record_import(spec, {"format": "hdf5"}, tmp_path)
    written = (tmp_path / RECORD).read_bytes()
    record_import(spec, {"format": "hdf5"}, tmp_path)
    assert (tmp_path / RECORD).read_bytes() == written and str(files).encode() not in written
    with pytest.raises(TimeloomError, match="belongs to another encoder, uni2-h, imported"):
        record_import(store_spec(encoder(files, version="2"), "wsi"), {}, tmp_path)


def test_a_night_of_imported_vectors_alone_does_without_torch() -> None:
    code = (
        "import sys\n"
        "from embedders.running.runner import RunnerSettings, embed_buckets\n"
        "outcomes, figures = embed_buckets([], RunnerSettings(decoders=0))\n"
        "assert not outcomes and figures.counts()['items'] == 0\n"
        "assert 'torch' not in sys.modules, 'it takes seconds to import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_known_of_many_items_is_read_once(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, store = encoder(files), tmp_path / "store.lmdb"
    take(config, store)
    asked: list[int] = []
    keys = EmbeddingStore.keys

    def counted(self: EmbeddingStore) -> list[str]:
        asked.append(1)
        return keys(self)

    monkeypatch.setattr(EmbeddingStore, "keys", counted)
    items = items_of(config)
    assert len(items) > 1
    assert len(outcomes(store, items, store_spec(config, "wsi").width)) == len(items)
    assert len(asked) == 1, "each look at all keys costs what there are items"
