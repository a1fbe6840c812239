"""Encoders of a modality that come and go from night to night: each fills its own store once, and no other."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedders.running import store_bucket
from extractors.items import VerdictError
from tests.support.images.phantoms import write_series
from tests.support.nights.site import site_of_tables
from validation.verify import verify_release
from warehouse import Release
from warehouse.embeddings.store import close_stores

# In `make test` alone: a whole night for each encoder that comes or goes.
pytestmark = pytest.mark.whole

PATIENTS = ["P000001", "P000002", "P000003", "P000004"]
FIRST, SMALL, THIRD = (
    {"name": "random-dinov2", "width": width, **alias}
    for width, alias in ((64, {}), (32, {"alias": "small"}), (16, {"alias": "third"}))
)


def files_of(root: Path, *patterns: str) -> dict[str, str]:
    """By name, what is in files."""
    paths = sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}


class Nights:
    """A site whose nights differ in the encoders of CT, and in those that profiles name."""

    def __init__(self, folder: Path, export: Path) -> None:
        self.site = site_of_tables(folder, export)
        for number, patient in enumerate(PATIENTS):
            write_series(folder / "ct" / str(number), PatientID=patient, SeriesInstanceUID=f"2.25.{number + 77}")
        self.root = self.site.layout.root

    def night(self, *encoders: dict[str, object], mehrt: str, small: str = "small") -> Release:
        self.site.config["modalities"] = {"ct": {"path": "ct", "encoders": list(encoders)}}
        self.site.config["profiles"] = {
            "mehrt": {"encoders": {"ct": mehrt}},
            "by-small": {"rules": "mehrt", "encoders": {"ct": small}},
        }
        self.outcome = self.site.night()
        assert [finding for finding in verify_release(self.root) if not finding.ok] == []
        return Release.open(self.root)

    def stores(self) -> dict[str, str]:
        close_stores()
        return files_of(self.root, "embeddings/*/*/*.lmdb")

    def tasks(self, *stages: str) -> dict[str, str]:
        """The tasks of some stages in the current release, by what they are known by."""
        found = self.site.manifest.tasks.items()
        return {key: entry.fingerprint for key, entry in found if key.split("/")[0] in stages}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Iterator[Nights]:
    yield Nights(tmp_path_factory.mktemp("encoders"), export)
    close_stores()


@pytest.fixture(scope="module")
def first(nights: Nights) -> Release:
    return nights.night(FIRST, SMALL, mehrt="random-dinov2")


def vectors(release: Release, profile: str, **options: object) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "tuning", "held_out"):
        for batch in release.shards(profile, split=split, seed=None, **options).batches(4):
            found |= dict(zip(batch.item_keys["ct"], batch.item_vectors["ct"].numpy(), strict=True))
    return found


def test_two_profiles_have_equal_tokens_and_vectors_of_their_own(first: Release) -> None:
    timelines = [files_of(first.path / "timelines" / name, "*.parquet") for name in ("mehrt", "by-small")]
    assert timelines[0] == timelines[1] and timelines[0]
    of_first, of_small = vectors(first, "mehrt"), vectors(first, "by-small")
    assert of_first.keys() == of_small.keys() and len(of_first) == len(PATIENTS)
    for key in of_first:
        assert (of_first[key].shape, of_small[key].shape) == ((64,), (32,))
        np.testing.assert_array_equal(of_small[key], first.vector("ct", key, encoder="small").astype(np.float32))
    asked = vectors(first, "mehrt", encoders={"ct": "small"})
    assert all((asked[key] == of_small[key]).all() for key in of_small)


def test_the_manifest_the_items_and_the_report_name_both(first: Release) -> None:
    entries = first.manifest.encoders["ct"]
    assert [(entry.name, entry.dim, entry.verdicts) for entry in entries] == [
        ("random-dinov2", 64, {"ok": 4}),
        ("small", 32, {"ok": 4}),
    ]
    assert first.manifest.verdicts == {"ct": {"ok": 4}}, "an item is counted once"
    items = first.items().collect()
    assert items.height == 2 * len(PATIENTS)
    assert items.group_by("item_key").agg(pl.col("store").n_unique())["store"].to_list() == [2] * 4
    rows = pl.read_parquet(first.path / "quality" / "by_encoder.parquet")
    assert rows.select("usable", "failed", "failed_here_alone").rows() == [(4, 0, 0)] * 2
    page = (first.path / "quality" / "report.html").read_text(encoding="utf-8")
    assert "CT vectors (random-dinov2)" in page and "CT vectors (small)" in page
    events = first.events().filter(pl.col("item_key").is_not_null()).collect()
    assert events["item_key"].n_unique() == events.height == 4, "an item is one event"


def test_an_encoder_that_comes_fills_its_own_store_alone(
    nights: Nights, first: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = nights.stores()
    kept = ("data/*", "timelines/*/*", "shards/*/*/*", "codes/*", "subjects/*", "splits/*/*", "vocabularies/*/*")
    files = files_of(first.path, *kept)
    segments = {path.name: path.stat().st_mtime_ns for path in nights.site.layout.segments.iterdir()}
    tasks = nights.tasks("align", "count", "tokenize", "pack")
    quarantined = nights.outcome.quarantined
    usual, refused = store_bucket.rounded, []

    def fails_once(array: np.ndarray, dtype: str) -> tuple[np.ndarray, float]:
        """The third encoder gives what is no number for the first image."""
        if not refused:
            refused.append(array.shape)
            raise VerdictError("failed_not_finite")
        return usual(array, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(store_bucket, "rounded", fails_once)
        release = nights.night(FIRST, SMALL, THIRD, mehrt="random-dinov2")
    assert refused == [(16,)], "only the new encoder ran"
    after = nights.stores()
    assert {name: after[name] for name in before} == before
    assert {Path(name).parent.name for name in after.keys() - before.keys()} == {
        release.manifest.encoder("ct", "third").store
    }
    assert {path.name: path.stat().st_mtime_ns for path in nights.site.layout.segments.iterdir()} == segments
    assert files_of(release.path, *kept) == files
    assert nights.tasks("align", "count", "tokenize", "pack") == tasks and tasks
    # What failed under the third is usable under the others: both are said, and counted.
    assert release.manifest.verdicts == {"ct": {"ok": 4}}
    assert release.manifest.encoder("ct", "third").verdicts == {"failed_not_finite": 1, "ok": 3}
    assert nights.outcome.quarantined == quarantined + 1 and nights.outcome.exit_code == 2
    failed = release.items().filter(pl.col("verdict") == "failed_not_finite").collect()
    assert failed["encoder"].to_list() == [release.manifest.encoder("ct", "third").label]
    assert len(vectors(release, "mehrt")) == 4
    assert len(vectors(release, "mehrt", encoders={"ct": "third"})) == 3


def test_a_profile_that_names_another_encoder_has_its_items(nights: Nights, first: Release) -> None:
    """The third encoder lacks an image: profiles that name it have a token fewer, and no other is touched.

    That night finds the store of another encoder gone, too, and makes it anew.
    """
    before = files_of(Release.open(nights.root).path, "timelines/mehrt/*", "shards/mehrt/*/*")
    stores, tasks = nights.stores(), nights.tasks("align", "tokenize")
    folder = first.manifest.encoder("ct", "small").store
    lost = [name for name in stores if f"/{folder}/" in name]
    for name in lost:
        (nights.root / name).unlink()
    wrong = [finding for finding in verify_release(nights.root) if not finding.ok]
    assert [finding.check for finding in wrong] == ["vectors"] and f"ct/{folder}/" in wrong[0].detail
    release = nights.night(FIRST, SMALL, THIRD, mehrt="random-dinov2", small="third")
    after = nights.stores()
    assert after.keys() == stores.keys() and lost
    assert all(after[name] == stores[name] for name in stores if name not in lost)
    assert files_of(release.path, "timelines/mehrt/*", "shards/mehrt/*/*") == before
    found = vectors(release, "by-small")
    assert len(found) == 3 and {vector.shape for vector in found.values()} == {(16,)}
    changed = [key for key, known in nights.tasks("align", "tokenize").items() if known != tasks[key]]
    assert len(changed) == 1 and changed[0].startswith("tokenize/by-small"), "the bucket with that image alone"


def test_encoders_that_go_leave_what_others_made(nights: Nights, first: Release) -> None:
    """The first one goes, and so does the third: what small made stands, to the byte."""
    stores, data, tasks = nights.stores(), files_of(first.path, "data/*", "timelines/by-small/*"), nights.tasks("align")
    release = nights.night(SMALL, mehrt="small")
    assert nights.stores() == stores, "stores are not deleted: older releases read them"
    assert files_of(release.path, "data/*", "timelines/by-small/*") == data
    assert nights.tasks("align") == tasks
    assert [entry.name for entry in release.manifest.encoders["ct"]] == ["small"]
    rows, items = release.items().collect(), first.items("by-small").collect()
    assert rows.equals(items), "with one encoder a row an image"
    assert "by_encoder" not in {path.stem for path in (release.path / "quality").iterdir() if path.suffix == ".png"}
    # The short form of one is the same run.
    nights.site.config["modalities"] = {"ct": {"path": "ct", "encoder": SMALL}}
    assert not nights.site.night().published
