"""`verify` on a whole release, and on every kind of damage: findings, never a traceback."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tests.support import patients, releases
from validation.measure.measured_release import published_release
from validation.measure.stage import STAGE
from validation.measure.tasks import carry_out, readings
from validation.verify import Finding, verify_release
from warehouse.embeddings.store import EmbeddingWriter, close_stores
from warehouse.errors import TimeloomError
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, content_hash, read_manifest, write_manifest
from warehouse.parquet import write_table
from warehouse.schemas import LEDGER, MEASURES
from warehouse.shards.file import read_shard

# In `make test` alone: each test looks at a whole release.
pytestmark = pytest.mark.whole


@pytest.fixture
def root(tmp_path: Path) -> Path:
    patients.make_root(tmp_path / "root")
    close_stores()
    return tmp_path / "root"


def release(root: Path) -> ReleaseLayout:
    return ReleaseLayout((root / "current").resolve())


def failed(root: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in verify_release(root) if not finding.ok}


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(bytes(data))


def signed_again(root: Path, **stages: int) -> None:
    """Gives the changed tree a manifest that fits, so that only the checks of meaning can see the change.

    Args:
        stages: versions of further stages that made it.
    """
    tree = release(root)
    tree.manifest.unlink()
    manifest = patients.manifest(tree)
    write_manifest(tree.manifest, manifest.model_copy(update={"stages": manifest.stages | stages}))


def store_of(root: Path, key: str) -> Path:
    modality = key.split("-")[0]
    folder = Layout(root).embeddings(modality, releases.STORES[modality])
    item = releases.read_all(release(root), "items").row(by_predicate=pl.col("item_key") == key, named=True)
    bucket = int(bucket_of(np.array([item["subject_id"]]), releases.BUCKETS)[0])
    return folder / f"{bucket:04d}.lmdb"


def test_a_whole_release_has_no_finding(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    findings = verify_release(root, lambda *step: seen.append(step))
    assert all(finding.ok for finding in findings), findings
    assert [finding.check for finding in findings] == [
        "manifest", "files", "unlisted files", "content hash", "measures", "contents", "MEDS schemas", "buckets",
        "annotations", "lags", "ledger", "quarantine", "splits", "shards", "labels", "histories and features",
        "graphs", "triplets", "vectors", "root", "older releases", "lineage", "segments", "stores", "private folder",
        "key",
    ]  # fmt: skip
    assert ("vectors", 3, 3) in seen or ("vectors", 2, 2) in seen


FILES = ["data/0001.parquet", "metadata/codes.parquet", "metadata/dataset.json", "items/0000.parquet",
         "splits/mehrt/ledger.parquet", "timelines/mehrt/0002.parquet", "shards/mehrt/train/0000.parquet",
         "vocabularies/mehrt/vocabulary.parquet", "ledger.parquet", "quarantine.parquet", "lags.parquet"]  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("name", FILES)
def test_damage_to_a_file_is_found_and_named(root: Path, name: str) -> None:
    path = release(root).path / name
    whole = path.read_bytes()
    for harm in (lambda: flip(path), lambda: path.write_bytes(whole[: len(whole) // 2])):
        path.write_bytes(whole)
        harm()
        assert name in failed(root)["files"].detail
    path.unlink()
    assert failed(root)["files"].detail.startswith(f"missing: {name}")


def test_swapped_bucket_files_are_found_by_their_bytes_and_by_their_subjects(root: Path) -> None:
    tree = release(root)
    spare = tree.path / "spare"
    tree.events(0).rename(spare)
    tree.events(1).rename(tree.events(0))
    spare.rename(tree.events(1))
    found = failed(root)
    assert set(found) == {"files", "buckets"}
    signed_again(root)
    assert set(failed(root)) == {"buckets"}


def test_a_file_outside_the_manifest_is_found_but_the_report_may_change(root: Path) -> None:
    tree = release(root)
    (tree.path / "data" / "9999.parquet").write_bytes(b"")
    tree.quality.mkdir(exist_ok=True)
    (tree.quality / "note.txt").write_text("looked at")
    found = failed(root)
    assert set(found) == {"unlisted files"}
    assert found["unlisted files"].detail == "not in the manifest: data/9999.parquet"


def test_a_manifest_whose_entries_were_changed_does_not_add_up(root: Path) -> None:
    tree = release(root)
    manifest = read_manifest(tree.manifest)
    entry = manifest.files["ledger.parquet"]
    files = manifest.files | {"ledger.parquet": FileEntry(sha256="0" * 64, bytes=entry.bytes, rows=entry.rows)}
    write_manifest(tree.manifest, Manifest(**manifest.model_dump() | {"files": files}))
    assert content_hash(files) != manifest.content_hash
    assert set(failed(root)) == {"files", "content hash"}


def test_a_manifest_that_counts_otherwise_than_the_release_holds_is_found(root: Path) -> None:
    tree = release(root)
    manifest = read_manifest(tree.manifest)
    held = published_release(tree, manifest, None).contents
    write_manifest(tree.manifest, manifest.model_copy(update={"contents": tuple(held)}))
    assert failed(root) == {}
    labs = next(entry for entry in held if entry.name == "labs")
    more = labs.model_copy(update={"counts": labs.counts | {"rows": labs.counts["rows"] + 1}})
    counted = tuple(more if entry is labs else entry for entry in held)
    write_manifest(tree.manifest, manifest.model_copy(update={"contents": counted}))
    assert {check: finding.detail for check, finding in failed(root).items()} == {
        "contents": "other counts than in the manifest in table labs"
    }


def test_measures_that_are_not_what_is_measured_are_found(root: Path) -> None:
    tree = release(root)
    manifest = read_manifest(tree.manifest)
    for reading in readings(tree, published_release(tree, manifest, None).facts):
        carry_out(reading.params, tree, tree)
    signed_again(root, measure=STAGE.version)
    assert failed(root) == {}
    path = tree.measures("counts", "0001")
    counts = pl.read_parquet(path)
    write_table(
        path, counts.with_columns(pl.col("count") + (pl.int_range(pl.len()) == 3)), MEASURES["counts"], "counts"
    )
    tree.measures("subjects", "0002").unlink()
    signed_again(root, measure=STAGE.version)
    assert {check: finding.detail for check, finding in failed(root).items()} == {
        "measures": "not what is measured now: measures/counts/0001.parquet, measures/subjects/0002.parquet"
    }
    # Another timeloom counted other things.
    signed_again(root, measure=STAGE.version + 1)
    assert failed(root) == {}
    shutil.rmtree(tree.measured)
    signed_again(root, measure=STAGE.version)
    assert set(failed(root)) == {"measures"}


def test_a_checksum_that_readers_trust_is_checked_too(root: Path) -> None:
    tree = release(root)
    manifest = read_manifest(tree.manifest)
    name = "shards/mehrt/train/0000.parquet"
    assert len(manifest.files[name].xxh3 or "") == 32
    wrong = manifest.files[name].model_copy(update={"xxh3": "0" * 32})
    write_manifest(tree.manifest, manifest.model_copy(update={"files": manifest.files | {name: wrong}}))
    assert {check: finding.detail for check, finding in failed(root).items()} == {"files": f"changed: {name}"}


@pytest.mark.parametrize("text", ["", "{", json.dumps({"format_version": 99})])
def test_a_damaged_manifest_is_a_finding(root: Path, text: str) -> None:
    release(root).manifest.write_text(text)
    assert set(failed(root)) == {"manifest"}


def test_a_manifest_of_an_older_format_is_named_as_such(root: Path) -> None:
    path = release(root).manifest
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(TimeloomError, match=r"^the release \S+ was made by an older timeloom, in format 1; make a .*$"):
        read_manifest(path)
    assert set(failed(root)) == {"manifest"}


def test_a_pointer_to_nowhere_is_a_finding_and_an_empty_root_an_error(root: Path, tmp_path: Path) -> None:
    pointer = root / "current"
    pointer.unlink()
    pointer.symlink_to(Path("releases") / "gone")
    assert set(failed(root)) == {"manifest", "root"}
    with pytest.raises(TimeloomError, match="holds no release"):
        verify_release(tmp_path / "empty")


def test_a_lost_store_is_found(root: Path) -> None:
    store_of(root, "wsi-a").unlink()
    found = failed(root)
    assert set(found) == {"vectors"}
    assert found["vectors"].detail.startswith("1 missing; see wsi/random-wsi-0123/")


def test_a_lost_vector_and_one_of_another_width_are_found(root: Path) -> None:
    path = store_of(root, "ct-a")
    with EmbeddingWriter(path) as writer:
        writer.put_many([("ct-a", np.zeros(512, np.float32), 3)])
    assert failed(root)["vectors"].detail.startswith("1 of another width")
    path.unlink()
    with EmbeddingWriter(path) as writer:
        writer.put_many([("ct-other", np.zeros(1024, np.float32), 3)])
    assert failed(root)["vectors"].detail.startswith("1 missing")


def test_a_flipped_byte_of_a_vector_is_found(root: Path) -> None:
    path = store_of(root, "wsi-a")
    data = path.read_bytes()
    at = data.index(b"TLEV") + 1000
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert failed(root)["vectors"].detail.startswith("1 damaged")


@pytest.mark.whole
@pytest.mark.parametrize("kept", [0, 100, 4096, 8192, 12288])
def test_a_truncated_store_is_found_and_does_not_kill_verify(root: Path, kept: int) -> None:
    path = store_of(root, "wsi-a")
    assert path.stat().st_size > kept
    os.truncate(path, kept)
    assert set(failed(root)) == {"vectors"}


def test_a_ledger_that_does_not_add_up_is_found(root: Path) -> None:
    tree = release(root)
    frame = pl.read_parquet(tree.ledger)
    write_table(tree.ledger, frame.filter(pl.col("outcome") != "quarantined"), LEDGER, "ledger")
    signed_again(root)
    found = failed(root)
    assert set(found) == {"ledger", "quarantine"}
    assert found["ledger"].detail == "rows are missing in labs"


def test_a_quarantine_that_lists_other_rows_is_found(root: Path) -> None:
    patients.write_quarantine(release(root), 2)
    signed_again(root)
    assert {check: finding.detail for check, finding in failed(root).items()} == {
        "quarantine": "not what the ledger counts in labs"
    }


@pytest.mark.whole
@pytest.mark.parametrize("column", ["availability", "value_flag", "conflict"])
def test_an_unknown_mark_is_found(root: Path, column: str) -> None:
    tree = release(root)
    first = pl.int_range(pl.len()) == pl.col("time").is_not_null().arg_max()
    events = releases.read_all(tree, "events")
    marked = pl.when(first).then(pl.lit("odd")).otherwise(pl.col(column)).alias(column)
    releases.write_buckets(tree, events.with_columns(marked), "events")
    signed_again(root)
    assert set(failed(root)) == {"annotations"}


def test_lags_that_changed_since_the_release_before_are_found(root: Path) -> None:
    tree = release(root)
    before = ReleaseLayout(tree.path.with_name("2026-11-20T02-00-00Z"))
    patients.write_lags(before, 120)
    tree.manifest.unlink()
    manifest = patients.manifest(tree)
    write_manifest(tree.manifest, manifest.model_copy(update={"parent": before.path.name}))
    no_files = {"files": {}, "release_id": before.path.name}
    write_manifest(before.manifest, manifest.model_copy(update=no_files))
    assert failed(root) == {}
    patients.write_lags(before, 90)
    assert {check: finding.detail for check, finding in failed(root).items()} == {
        "lags": "2 usual delays that differ from the release before"
    }


def test_a_subject_in_two_splits_is_found(root: Path) -> None:
    tree = release(root)
    ledger = [(subject, patients.split_of(subject)) for subject in range(patients.SUBJECT_COUNT)]
    releases.write_split_ledger(tree, [*ledger, (5, "tuning")])
    signed_again(root)
    assert "splits" in failed(root)


def test_shards_without_a_subject_of_the_timelines_are_found(root: Path) -> None:
    tree = release(root)
    splits = {subject: patients.split_of(subject) for subject in range(patients.SUBJECT_COUNT)}
    patients.write_shards(tree, releases.read_all(tree, "timeline").filter(pl.col("subject_id") != 3), splits)
    signed_again(root)
    found = failed(root)
    assert set(found) == {"shards"}
    assert "tokens that shards and timelines do not share" in found["shards"].detail


def test_an_image_place_of_no_usable_item_is_found(root: Path) -> None:
    tree = release(root)
    releases.change_shard(tree, "train", image_key=pa.array(["ct-nowhere", "wsi-a"]))
    signed_again(root)
    assert failed(root)["shards"].detail == (
        "1 subjects with other tokens than in their timelines; 1 images that are no usable item"
    )


def test_images_of_another_subject_are_found_though_timelines_have_them_too(root: Path) -> None:
    tree = release(root)
    timelines = releases.read_all(tree, "timeline").with_columns(
        pl.col("item_key").replace({"ct-a": "ct-b", "ct-b": "ct-a"})
    )
    releases.write_buckets(tree, timelines, "timeline")
    splits = {subject: patients.split_of(subject) for subject in range(patients.SUBJECT_COUNT)}
    patients.write_shards(tree, timelines, splits)
    signed_again(root)
    found = failed(root)
    assert set(found) == {"shards"}
    assert found["shards"].detail == "2 images of another subject or modality"


def test_shards_with_other_tokens_than_the_timelines_are_found(root: Path) -> None:
    tree = release(root)
    modality = np.array(read_shard(tree.shard(releases.PROFILE, "train", 0))[1].image_modality)
    releases.change_shard(tree, "train", image_modality=modality[::-1])
    ids = np.array(read_shard(tree.shard(releases.PROFILE, "tuning", 0))[1].input_ids)
    ids[0, 0] -= 1
    releases.change_shard(tree, "tuning", input_ids=ids)
    signed_again(root)
    assert failed(root)["shards"].detail == (
        "1 subjects with other tokens than in their timelines; 2 images that are not where their tokens are"
    )


def test_events_that_break_the_meds_schema_are_found(root: Path) -> None:
    path = release(root).events(0)
    pl.read_parquet(path).with_columns(pl.col("numeric_value").cast(pl.Float64)).write_parquet(path)
    signed_again(root)
    found = failed(root)
    assert set(found) == {"MEDS schemas"}
    assert found["MEDS schemas"].detail == "broken in data/0000.parquet"
