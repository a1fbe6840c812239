"""Several encoders of one modality in one release: a profile's tokens carry one, and readers may ask for another."""

import json

import numpy as np
import pytest

from tests.support.releases import DIMS, STORES
from tests.support.tokens.markov import ENCODERS, fabricate, fails, train, vector_in
from warehouse import Mixture, Release
from warehouse.errors import TimeloomError
from warehouse.manifest import EncoderEntry, Manifest, read_manifest
from warehouse.readers.open_shards import OpenShards

SECOND = EncoderEntry(label="second, for demonstration only", store="second-ct-0123", dim=32)
BOTH = {**ENCODERS, "ct": (*ENCODERS["ct"], SECOND)}
FIRST = BOTH["ct"][0].name


@pytest.fixture(scope="module")
def release(tmp_path_factory, lines):
    return Release.open(fabricate(tmp_path_factory.mktemp("encoders") / "root", lines, row_group_rows=7, encoders=BOTH))


def images_of(release, **options):
    """Key to place, vector and modality, over an epoch; and every batch's ids."""
    found, ids = {}, []
    for batch in train(release, vectors=True, **options).batches(16):
        ids.append(batch.input_ids.tolist())
        for modality, keys in batch.item_keys.items():
            places, vectors = batch.item_positions[modality].tolist(), batch.item_vectors[modality]
            assert len(places) == len(keys) == len(vectors) == len(batch.item_time_us[modality])
            found |= {key: (place, vector) for key, place, vector in zip(keys, places, vectors, strict=True)}
    return found, ids


@pytest.mark.parametrize("plain", [False, True])
def test_a_reader_takes_the_profile_s_encoder_unless_told_another(release, lines, plain, monkeypatch):
    if plain:
        monkeypatch.setenv("TIMELOOM_PLAIN_READS", "1")
    first, ids = images_of(release)
    second, other_ids = images_of(release, encoders={"ct": SECOND.name})
    assert ids == other_ids, "the tokens are the same"
    images = {key: modality for line in lines if line.split == "train" for _, modality, key in line.images}
    lacking = {key for key, modality in images.items() if modality == "ct" and fails(SECOND, key)}
    assert first.keys() == images.keys()
    assert second.keys() == images.keys() - lacking and lacking, "an item without a vector is none of the batch's"
    for key, (place, vector) in second.items():
        entry = SECOND if images[key] == "ct" else BOTH["wsi"][0]
        np.testing.assert_array_equal(vector.numpy(), vector_in(entry, images[key], key))
        assert place == first[key][0]
    # A second time through, vectors are copied from where they were found.
    again, _ = images_of(release, encoders={"ct": SECOND.name})
    assert all((again[key][1] == second[key][1]).all() for key in second)


def test_items_by_time_are_those_of_the_encoder_asked_for(release):
    shards = train(release, vectors=True, items_per_segment=3, encoders={"ct": SECOND.name})
    seen = 0
    for batch in shards.batches(16):
        for key, vector in zip(batch.item_keys["ct"], batch.item_vectors["ct"], strict=True):
            assert not fails(SECOND, key)
            np.testing.assert_array_equal(vector.numpy(), vector_in(SECOND, "ct", key))
            seen += 1
    assert seen and shards.dims == {"ct": 32, "wsi": DIMS["wsi"]}


def test_one_item_s_vector_of_either(release, lines):
    key = next(key for line in lines for _, modality, key in line.images if modality == "ct" and not fails(SECOND, key))
    for entry in BOTH["ct"]:
        found = release.vector("ct", key, encoder=entry.name)
        np.testing.assert_array_equal(found, vector_in(entry, "ct", key))
    with pytest.raises(TimeloomError, match=rf"several ct encoders.*{FIRST}, {SECOND.name}"):
        release.vector("ct", key)
    failed = next(key for line in lines for _, modality, key in line.images if modality == "ct" and fails(SECOND, key))
    with pytest.raises(TimeloomError, match="no ct vector under this key"):
        release.vector("ct", failed, encoder=SECOND.name)


def test_items_have_a_row_an_encoder_and_one_of_a_profile(release, lines):
    images = [modality for line in lines for _, modality, _ in line.images]
    rows = release.items().collect()
    assert rows.height == len(images) + images.count("ct")
    of_profile = release.items("mehrt").collect()
    assert of_profile["item_key"].is_unique().all() and of_profile.height == len(images)
    assert set(of_profile["store"]) == set(STORES.values())


def test_unknown_encoders_are_answered_with_the_known_ones(release):
    with pytest.raises(TimeloomError, match=rf"no ct encoder third.*{FIRST}, {SECOND.name}"):
        train(release, encoders={"ct": "third"})
    with pytest.raises(TimeloomError, match=r"no vectors of ecg.*ct, wsi"):
        train(release, encoders={"ecg": "third"})
    with pytest.raises(TimeloomError, match="no profile ethos"):
        release.items("ethos")
    usual, other = train(release), train(release, encoders={"ct": SECOND.name})
    with pytest.raises(TimeloomError, match="members of a mixture differ in encoders"):
        Mixture([(usual, 1), (other, 1)])


def test_a_manifest_of_one_encoder_a_modality_is_read(release, tmp_path):
    """As older releases have it: an entry where there is a list now, without names, stores of profiles and verdicts."""
    plain = json.loads(release.manifest.model_dump_json())
    plain["encoders"] = {
        name: {key: entries[0][key] for key in ("label", "store", "dim", "weights_sha256")}
        for name, entries in plain["encoders"].items()
    }
    for profile in plain["profiles"].values():
        del profile["stores"]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(plain | {"format_version": 2}), encoding="utf-8")
    read = read_manifest(path)
    assert isinstance(read, Manifest)
    assert {name: [entry.store for entry in entries] for name, entries in read.encoders.items()} == {
        name: [store] for name, store in STORES.items()
    }
    assert read.encoder("ct").name == "random-ct"
    assert read.encoders_of("mehrt")["ct"].store == STORES["ct"]


def test_shards_are_held_against_the_profile_s_store(release):
    """Whatever vectors a reader asks for, a shard must name the encoder that its profile names."""
    entry = release.manifest.profiles["mehrt"]
    changed = entry.model_copy(update={"stores": {**entry.stores, "ct": SECOND.store}})
    other = Release(release.layout, release.files, release.manifest.model_copy(update={"profiles": {"mehrt": changed}}))
    shelf = OpenShards(other, "mehrt", "train", "default", None)
    with pytest.raises(TimeloomError, match="names a ct store that the manifest does not"):
        shelf.places(np.arange(2))
