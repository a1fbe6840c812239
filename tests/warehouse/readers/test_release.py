"""Bad input: one line that names the file and the remedy, before any training step uses it."""

import numpy as np
import pytest

from tests.support.releases import STORES
from tests.support.tokens.markov import FIRST_CODE, packs_of, train, vector_of
from warehouse import Release
from warehouse.embeddings.store import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError
from warehouse.manifest import read_manifest, write_manifest


def raises_one_line(match):
    return pytest.raises(TimeloomError, match=r"(?s)\A" + r"(?!.*\n)" + f".*{match}.*")


def test_a_flipped_bit_is_found_before_a_batch_uses_it(copy):
    path = copy / "releases" / "one" / "shards" / "mehrt" / "train" / "0001.parquet"
    raw = bytearray(path.read_bytes())
    place = raw.find(np.array([FIRST_CODE + 1], "<u2").tobytes(), 2000)
    raw[place] ^= 1
    path.write_bytes(raw)
    given = []
    with raises_one_line(r"shards/mehrt/train/0001\.parquet is corrupt.*timeloom repair"):
        given.extend(batch for batch in train(Release.open(copy)).batches(1))
    assert all(pack >> 32 == 0 for batch in given for pack in batch.pack_ids.tolist())


def test_a_truncated_or_missing_shard_is_found_at_once(copy):
    path = copy / "releases" / "one" / "shards" / "mehrt" / "train" / "0001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with raises_one_line(r"train/0001\.parquet is truncated"):
        train(Release.open(copy))
    path.unlink()
    with raises_one_line(r"train/0001\.parquet is missing"):
        train(Release.open(copy))
    assert len(Release.open(copy).shards("mehrt", split="tuning"))


def test_a_missing_key_in_lmdb_is_named_by_its_store(copy):
    from warehouse.embeddings.store import EmbeddingWriter

    for path in copy.glob(f"embeddings/ct/{STORES['ct']}/*.lmdb"):
        keys = EmbeddingStore.open(path).keys()
        close_stores()
        path.unlink()
        with EmbeddingWriter(path) as writer:
            writer.put_many([(key, vector_of("ct", key), 1) for key in keys[1:]])
    with raises_one_line(r"embedding store ct/random-ct-0123/000\d\.lmdb lacks an item"):
        list(train(Release.open(copy), vectors=True))
    with raises_one_line("below 1"):
        train(Release.open(copy)).batches(0)


def change_manifest(copy, **changes):
    path = copy / "releases" / "one" / "manifest.json"
    write_manifest(path, read_manifest(path).model_copy(update=changes))


@pytest.mark.parametrize("group", [0, 1])
def test_a_manifest_that_lacks_one_of_a_plans_shards_is_refused(copy, group):
    name = f"shards/mehrt/train/000{group}.parquet"
    files = Release.open(copy).manifest.files
    change_manifest(copy, files={path: entry for path, entry in files.items() if path != name})
    with raises_one_line(f"the manifest lacks {name}"):
        train(Release.open(copy))
    assert Release.open(copy).shards("mehrt", split="tuning") is not None


def test_shards_of_another_vocabulary_or_encoder_are_refused(copy):
    manifest = Release.open(copy).manifest
    entry = manifest.profiles["mehrt"]
    change_manifest(copy, profiles={"mehrt": entry.model_copy(update={"vocabulary_hash": "0" * 64})})
    with raises_one_line(r"vocabularies/mehrt/vocabulary\.parquet is not the vocabulary that the manifest names"):
        next(iter(train(Release.open(copy)).batches(2)))
    other = manifest.encoder("ct").model_copy(update={"store": "another"})
    change_manifest(copy, profiles=manifest.profiles, encoders={**manifest.encoders, "ct": (other,)})
    with raises_one_line("names a ct store that the manifest does not"):
        next(iter(train(Release.open(copy)).batches(2)))


def test_a_changed_vocabulary_file_is_refused(copy):
    path = copy / "releases" / "one" / "vocabularies" / "mehrt" / "vocabulary.parquet"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    with raises_one_line(r"vocabulary\.parquet is corrupt"):
        next(iter(train(Release.open(copy)).batches(2)))


def test_unknown_names_are_answered_with_the_known_ones(release, tmp_path, root):
    with raises_one_line("no profile ethos.*mehrt"):
        release.shards("ethos", split="train")
    with raises_one_line("no split called val.*tuning"):
        release.shards("mehrt", split="val")
    with raises_one_line("no loss called all.*multimodal"):
        release.shards("mehrt", split="train", loss="all")
    with raises_one_line("rank 2 is not below world size 2"):
        release.shards("mehrt", split="train", rank=2, world_size=2)
    with raises_one_line("no published release"):
        Release.open(tmp_path)
    with raises_one_line("no release 1999"):
        Release.open(root, release="1999")


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("fields", ["ids", "segments", "full"])
@pytest.mark.parametrize("place", ["ids", "segments", "footer"])
def test_no_batch_uses_a_file_with_a_flipped_bit(copy, fields, place):
    """Whatever is read of a shard, and wherever the bit is: the whole file is checked before its first use."""
    for path in sorted(copy.glob("releases/one/shards/mehrt/train/*.parquet")):
        size = path.stat().st_size
        flip(path, {"ids": size // 8, "segments": size * 5 // 8, "footer": size - 40}[place])
    with raises_one_line(r"shards/mehrt/train/000\d\.parquet is corrupt: its checksum differs.*timeloom repair"):
        next(iter(train(Release.open(copy), fields=fields).batches(4, prefetch=0)))


def test_a_checksum_is_compared_once_and_only_of_files_that_are_used(copy, monkeypatch):
    from warehouse import manifest

    hashed = []
    usual = manifest.xxh3_file
    monkeypatch.setattr(manifest, "xxh3_file", lambda path: hashed.append(path.name) or usual(path))
    release = Release.open(copy)
    for name in ("tuning", "train"):
        release.shards("mehrt", split=name)
    assert hashed == []
    dataset = train(release)
    list(dataset.batches(4))
    list(dataset.batches(4))
    list(train(release).batches(4))
    list(train(Release.open(copy)).batches(4))  # the process knows them, whoever opens the release again
    assert sorted(hashed) == ["0000.parquet", "0001.parquet", "vocabulary.parquet"]


def test_a_shard_of_another_vocabulary_plan_or_length_is_refused(copy):
    from dataclasses import replace

    from warehouse.files import hash_file
    from warehouse.shards.file import read_shard, write_shard

    path = copy / "releases" / "one" / "shards" / "mehrt" / "train" / "0000.parquet"
    header, packs = read_shard(path)
    for changed, match in (
        (replace(header, vocabulary_hash="0" * 64), "was written with another vocabulary"),
        (replace(header, plan="other"), "is of another profile, split, plan or context"),
        (replace(header, split="tuning"), "is of another profile, split, plan or context"),
    ):
        write_shard(path, packs, changed)
        strong, fast = hash_file(path)
        manifest = read_manifest(copy / "releases" / "one" / "manifest.json")
        name = "shards/mehrt/train/0000.parquet"
        entry = manifest.files[name].model_copy(update={"sha256": strong, "xxh3": fast, "bytes": path.stat().st_size})
        change_manifest(copy, files={**manifest.files, name: entry})
        with raises_one_line(rf"train/0000\.parquet {match}"):
            list(train(Release.open(copy)).batches(4))
    write_shard(path, packs, header)
    strong, fast = hash_file(path)
    entry = entry.model_copy(update={"sha256": strong, "xxh3": fast, "bytes": path.stat().st_size})
    change_manifest(copy, files={**manifest.files, name: entry})
    assert list(train(Release.open(copy)).batches(4))
    change_manifest(copy, files={**manifest.files, name: entry.model_copy(update={"rows": entry.rows + 1})})
    with raises_one_line(r"train/0000\.parquet has another number of packs than the manifest says"):
        list(train(Release.open(copy)).batches(4))


def test_a_missing_store_is_named_before_its_batch(copy):
    for path in copy.glob("embeddings/wsi/*/*.lmdb"):
        path.unlink()
    with raises_one_line(r"embedding store wsi/random-wsi-0123/000\d\.lmdb is missing.*timeloom run"):
        list(train(Release.open(copy), vectors=True).batches(4))
    assert list(train(Release.open(copy), vectors=False).batches(4))


def test_a_changed_vector_is_found(copy):
    for path in copy.glob("embeddings/ct/*/*.lmdb"):
        raw = bytearray(path.read_bytes())
        place = raw.rfind(b"TLEV")
        while place > 0:
            raw[place + 600] ^= 1
            place = raw.rfind(b"TLEV", 0, place)
        path.write_bytes(raw)
    with raises_one_line(r"embedding store ct/random-ct-0123/000\d\.lmdb is damaged \(a checksum differs\)"):
        list(train(Release.open(copy), vectors=True).batches(4))


@pytest.mark.parametrize(("rank", "world"), [(0, 0), (-1, 2), (2, 2), (0, -1)])
def test_a_rank_outside_its_world_gets_one_line(release, rank, world):
    with raises_one_line(f"rank {rank} is not below world size {world}.*any world size will do"):
        train(release, rank=rank, world_size=world)


@pytest.mark.parametrize("world", [3, 5, 7])
def test_a_world_size_that_does_not_divide_loses_and_repeats_nothing(release, world):
    ranks = [list(train(release, rank=rank, world_size=world).batches(3)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = sorted(pack for batches in ranks for packs in packs_of(batches) for pack in packs)
    assert seen == sorted(train(release).shelf.pack_ids.tolist())


def test_options_that_there_are_not_get_one_line(release):
    for options, match in (
        ({"plan": "other"}, "no plan other"),
        ({"budget": 0}, "no budget 0"),
        ({"fields": "some"}, "no fields called some"),
        ({"vectors": "mean"}, "neither pooled nor sequences"),
        ({"items_per_segment": 0}, "items_per_segment is below 1"),
        ({"loss": "mine"}, "no loss called mine"),
        ({"loss": ["a"]}, "neither a name nor token types"),
        ({"loss": 5}, "neither a name nor token types"),
        ({"seed": 1.5}, "seed is no whole number"),
        ({"stage": "a"}, "stage is no whole number"),
        ({"rank": "0"}, "rank 0 is not below"),
    ):
        with raises_one_line(match):
            train(release, **options)


@pytest.mark.parametrize(
    "change", [{"epoch": "x"}, {"consumed": None}, {"epoch": -5}, {"consumed": 10**9}, {"epoch": 1.0}]
)
def test_a_damaged_state_is_refused(release, change):
    dataset = train(release)
    with raises_one_line("state is damaged"):
        dataset.load_state_dict({**dataset.state_dict(), **change})
    with raises_one_line("state is damaged"):
        dataset.load_state_dict(None)
    with raises_one_line("seed is no whole number"):
        dataset.load_state_dict({**dataset.state_dict(), "seed": "a"})
    for size in ("2", 2.5):
        with raises_one_line("whole numbers"):
            dataset.batches(size)


@pytest.mark.parametrize("read", [Release.events, Release.items], ids=["events", "items"])
@pytest.mark.parametrize("again", [False, True], ids=["before the first reading", "after it"])
def test_a_flipped_byte_of_events_and_items_is_refused(copy, read, again):
    """Page checksums are not looked at by polars: of sixty flips a half gave other values."""
    release = Release.open(copy)
    before = read(release).collect() if again else None
    path = release.files.events(0) if read is Release.events else release.files.items(0)
    whole = path.read_bytes()
    for place in range(4, len(whole), len(whole) // 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with raises_one_line(rf"{path.parent.name}/0000\.parquet is corrupt: its checksum differs.*timeloom repair"):
            read(Release.open(copy))
    path.write_bytes(whole)
    assert before is None or read(Release.open(copy)).collect().equals(before)
