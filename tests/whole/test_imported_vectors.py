"""A hospital's slides with vectors of TRIDENT beside them, and CT of which it has vectors of CLAM's layout alone."""

# In `make test` alone: whole nights and a repair.

import json
import shutil
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from extractors.vectors.settings import ImportedConfig
from flows.commands.repair import repair
from flows.runs.paths import check_paths
from flows.runs.settings import RunSettings
from pipelines.config import parse_config
from tests.support.nights.damage import flip
from tests.support.nights.site import Site, site_of_tables
from tests.support.vectors import Array, clam, drawn, grid, trident
from validation.verify import verify_release
from warehouse import Release
from warehouse.embeddings.store import EmbeddingStore, close_stores
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.publish import current_release

pytestmark = pytest.mark.whole
WIDTH, OTHERS, BUCKETS = 24, 16, 4
NAMES = {"wsi": "uni2-h", "ct": "merlin"}
CUT, LOCKED, AWAY = 2, 4, 5  # what is wrong with some slides' vectors; slides 0 and 1 are themselves not usable


def slides_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "slides").glob("*.svs"))


def features_of(number: int) -> Array:
    return drawn(40 + number, WIDTH, seed=number)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Site:
    """A site after its first night."""
    folder = tmp_path_factory.mktemp("imported")
    site = site_of_tables(folder, export)
    shutil.copytree(export / "slides", folder / "slides")
    signal = pl.read_csv(export / "truth" / "signal.csv", infer_schema=False)
    vectors = folder / "features" / "uni"
    for number, name in enumerate(slides_of(folder)):
        path = vectors / name.replace(".svs", ".h5")
        if number == CUT:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x89HDF\r\n\x1a\n")
        elif number != AWAY:
            trident(path, features_of(number))
        if number == LOCKED:
            Path(f"{path}.lock").touch()
    trident(vectors / "of-nobody.h5", features_of(99))
    links = []
    for number, (patient, time) in enumerate(
        signal.filter(pl.col("image_kind") == "ct").select("patient_id", "image_time").iter_rows()
    ):
        clam(folder / "features" / "ct" / f"scan.{number:02d}.h5", drawn(9, OTHERS, seed=500 + number, dtype="float32"))
        links.append({"match": f"scan.{number:02d}.h5", "subject_id": patient, "time": time})
    links.append({**links[-1], "match": "scan.99.h5"})
    pl.DataFrame(links).write_csv(folder / "ct.csv")
    columns = {"match": "path", "subject_id": "patient_id", "time": "collection_time"}
    usual = {"format": "hdf5", "width": WIDTH, "dtype": "float16", "name": "uni2-h"}
    site.config |= {
        "buckets": BUCKETS,
        "profiles": {"mehrt": {"encoders": {"wsi": "uni2-h"}}},
        "modalities": {
            "wsi": {
                "path": "slides",
                "crosswalk": {"file": str(export / "slides" / "manifest.csv"), "match": "path", "columns": columns},
                "encoders": [
                    {"output": "sequence", "imported": {**usual, "path": "features/uni"}},
                    {"name": "random-dinov2", "width": 32},
                ],
            },
            "ct": {
                "crosswalk": {"file": "ct.csv"},
                "encoder": {
                    "imported": {
                        **usual, "path": "features/ct", "name": "merlin", "width": OTHERS, "dtype": "float32"
                    }
                },
            },
        },
    }  # fmt: skip
    site.night()
    return site


def places_of(site: Site, modality: str) -> dict[str, str]:
    """By item, the file that its vectors lie in, as the private folder has it."""
    segments = (site.layout.private / "items").glob(f"vectors-{modality}-*.parquet")
    newest = max(segments, key=lambda path: path.stat().st_mtime_ns)
    return {key: json.loads(place)[0] for key, place in pl.read_parquet(newest).iter_rows()}


def number_of(site: Site, path: str) -> int:
    return slides_of(site.folder).index(path.replace(".h5", ".svs"))


def items_of(site: Site, modality: str) -> pl.DataFrame:
    items = Release.open(site.layout.root).items().filter(pl.col("modality") == modality).collect()
    store = site.manifest.encoder(modality, NAMES[modality]).store
    return items.filter(pl.col("store").is_null() | (pl.col("store") == store))


def test_every_item_has_its_verdict(first: Site) -> None:
    found = Counter(items_of(first, "wsi")["verdict"])
    expected = {
        "failed_no_mpp": 1, "failed_unreadable": 2, "failed_unfinished": 1, "failed_no_vectors": 1,
        "refused_no_item": 1, "ok": 2,
    }  # fmt: skip
    assert found == expected
    ct = items_of(first, "ct")
    assert Counter(ct["verdict"]) == {"ok": len(ct) - 1, "failed_missing_file": 1}
    imported, made = (first.manifest.encoder("wsi", name) for name in ("uni2-h", "random-dinov2"))
    assert imported.verdicts == {"failed_no_vectors": 1, "failed_unfinished": 1, "failed_unreadable": 1, "ok": 2}
    assert made.verdicts == {"ok": 5}


def test_the_vectors_are_those_of_the_files(first: Site) -> None:
    release = Release.open(first.layout.root)
    usable = items_of(first, "wsi").filter(pl.col("verdict") == "ok")
    places = places_of(first, "wsi")
    for key, units in usable.select("item_key", "units_encoded").iter_rows():
        number = number_of(first, places[key])
        assert np.array_equal(release.vector("wsi", key, "uni2-h"), features_of(number)) and units == 40 + number
    for key in items_of(first, "ct").filter(pl.col("verdict") == "ok")["item_key"]:
        number = int(places_of(first, "ct")[key].split(".")[1])
        features = drawn(9, OTHERS, seed=500 + number, dtype="float32").astype(np.float64)
        assert np.array_equal(release.vector("ct", key), features.mean(axis=0).astype(np.float32))


def test_coordinates_are_their_places(first: Site) -> None:
    entry = first.manifest.encoder("wsi", "uni2-h")
    usable = items_of(first, "wsi").filter(pl.col("verdict") == "ok")
    buckets = bucket_of(usable["subject_id"].to_numpy(), BUCKETS)
    for key, bucket in zip(usable["item_key"], buckets, strict=True):
        store = EmbeddingStore.open(first.layout.embedding_bucket("wsi", entry.store, int(bucket)))
        assert np.array_equal(store.places(key), grid(40 + number_of(first, places_of(first, "wsi")[key])))


def test_batches_carry_them(first: Site) -> None:
    release = Release.open(first.layout.root)
    places, seen = places_of(first, "wsi"), set()
    for split in ("train", "tuning", "held_out"):
        for batch in release.shards("mehrt", split=split, vectors="sequences").batches(4):
            values, valid = batch.padded_units("wsi")
            for row, key in enumerate(batch.item_keys["wsi"]):
                features = features_of(number_of(first, places[key])).astype(np.float32)
                assert torch.equal(values[row][valid[row]], torch.from_numpy(features))
                assert torch.allclose(batch.item_vectors["wsi"][row], torch.from_numpy(features).mean(0), atol=1e-6)
                seen.add(key)
            assert release.visible_items(batch, "wsi", 2).shape[:2] == batch.input_ids.shape
    assert seen == set(items_of(first, "wsi").filter(pl.col("verdict") == "ok")["item_key"])


def test_the_release_says_who_made_them_and_is_whole(first: Site) -> None:
    entry = first.manifest.encoder("wsi", "uni2-h")
    assert entry.label == "uni2-h, imported" and entry.dim == WIDTH and entry.weights_sha256
    record = first.layout.embeddings("wsi", entry.store) / "encoder.json"
    assert '"imported"' in record.read_text() and "features/uni" not in record.read_text()
    assert [finding for finding in verify_release(first.layout.root) if not finding.ok] == []
    release = current_release(first.layout)
    assert release is not None and "uni2-h, imported" in release.report.read_text(encoding="utf-8")


def test_no_name_of_a_file_is_in_the_root(first: Site) -> None:
    names = [name.removesuffix(".svs").encode() for name in slides_of(first.folder)] + [b"of-nobody", b"scan.0"]
    for path in first.layout.root.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            if path.suffix == ".parquet":
                text += str(pl.read_parquet(path).to_dicts()).encode()
            assert not any(name in text for name in names), path.name


@pytest.fixture
def site(first: Site, tmp_path: Path) -> Site:
    """A copy of the site that a test may change."""
    shutil.copytree(first.folder, tmp_path / "site", symlinks=True)
    return Site(tmp_path / "site", {**first.config})


def test_a_changed_file_makes_its_bucket_anew_and_no_other(site: Site) -> None:
    places = places_of(site, "wsi")
    usable = items_of(site, "wsi").filter(pl.col("verdict") == "ok").sort("item_key")
    subject, key = usable.select("subject_id", "item_key").row(0)
    before = site.manifest
    assert site.night().release == before.release_id
    features = drawn(7, WIDTH, seed=1234)
    trident(site.folder / "features" / "uni" / places[key], features)
    site.night()
    after = site.manifest
    assert after.release_id != before.release_id
    assert after.encoder("wsi", "uni2-h").weights_sha256 != before.encoder("wsi", "uni2-h").weights_sha256
    embedded = {
        name: (entry.fingerprint, before.tasks[name].fingerprint)
        for name, entry in after.tasks.items()
        if name.startswith("embed/")
    }
    changed = {name for name, (new, old) in embedded.items() if new != old}
    assert changed == {f"embed/{int(bucket_of(np.array([subject]), BUCKETS)[0]):04d}"}
    release = Release.open(site.layout.root)
    assert np.array_equal(release.vector("wsi", key, "uni2-h"), features)
    other = usable["item_key"][1]
    assert np.array_equal(release.vector("wsi", other, "uni2-h"), features_of(number_of(site, places[other])))


def test_a_damaged_store_is_healed_from_the_files(site: Site) -> None:
    store = site.layout.embeddings("wsi", site.manifest.encoder("wsi", "uni2-h").store)
    held = {path: len(EmbeddingStore.open(path)) for path in sorted(store.glob("*.lmdb"))}
    close_stores()
    flipped, cut = sorted(held, key=lambda path: held[path])[-2:]
    flip(flipped)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    assert [finding for finding in verify_release(site.layout.root) if not finding.ok]
    close_stores()
    path = site.folder / "run.yaml"
    path.write_text(yaml.safe_dump(site.config), encoding="utf-8")
    done = repair(RunSettings(path, site.layout.root, "local", workers=1))
    close_stores()
    assert done.left == [] and done.lost == []
    assert [finding for finding in verify_release(site.layout.root) if not finding.ok] == []
    test_the_vectors_are_those_of_the_files(site)


def test_another_width_is_one_line_before_any_work(site: Site) -> None:
    config = site.config["modalities"]["wsi"]["encoders"][0]["imported"]
    changed: dict[str, Any] = {**site.config, "modalities": {"wsi": {**site.config["modalities"]["wsi"]}}}
    changed["modalities"]["wsi"]["encoders"] = [{"imported": {**config, "width": 1536}}]
    with pytest.raises(TimeloomError, match=r"modalities\.wsi\.encoder\.imported: the vectors' width is 24, and 1536"):
        check_paths(parse_config(changed, site.folder, "run.yaml"), site.layout)
    assert ImportedConfig.model_validate({**config, "path": site.folder}).width == WIDTH


def test_times_are_the_crosswalk_s(first: Site) -> None:
    """Under one key every date of a subject moves by whole weeks."""
    links = pl.read_csv(first.folder / "ct.csv", infer_schema=False)
    ct = items_of(first, "ct").filter(pl.col("verdict") == "ok")
    times = dict(links.select("match", "time").iter_rows())
    places = places_of(first, "ct")
    for key, time in ct.select("item_key", "time").iter_rows():
        moved = time - datetime.fromisoformat(times[places[key]])
        assert moved % timedelta(weeks=1) == timedelta(0)
