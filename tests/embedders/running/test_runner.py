"""The runner: means are right, items do not disturb each other, and every way of working gives the same bits."""

import errno
import random
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedders.decoding.pool import InProcess
from embedders.encoders.build import Encoder, EncoderConfig, get_encoder
from embedders.running import runner
from embedders.running.rates import RunFigures
from embedders.running.runner import EmbeddedItem, ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.spans import BLOCK, SPAN, Span
from embedders.running.store_bucket import Bucket, outcomes, read_verdicts, verdicts_path
from extractors.ct.index import index_ct
from extractors.ct.settings import CT
from extractors.items import FoundItem
from extractors.modalities import EXTRACTORS
from extractors.wsi.index import index_slides
from tests.support.images import unit_readers
from tests.support.images.phantoms import disc, stained, write_series, write_tiff
from warehouse.embeddings.store import EmbeddingStore, close_stores, content_hash
from warehouse.errors import TimeloomError

# In `make test` alone: each test starts decoders and an encoder.
pytestmark = pytest.mark.whole

SMALL = EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=12)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return get_encoder(SMALL, "ct")


@pytest.fixture(autouse=True)
def made_up_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "ct", unit_readers.EXTRACTOR)


def embed(
    items: Sequence[ItemToEmbed], encoder: Encoder, store: Path, how: RunnerSettings | None = None
) -> tuple[list[EmbeddedItem], RunFigures]:
    results, figures = embed_buckets([Bucket(store, encoder.spec, items, lambda: encoder)], how or RunnerSettings())
    close_stores()
    return results[store], figures


def mean_of(item: ItemToEmbed, encoder: Encoder, units: np.ndarray) -> np.ndarray:
    """The mean, computed again from single units in float64."""
    number = int(item.paths[0])
    vectors = [encoder.encode(unit_readers.pixels(number, np.array([unit])))[0] for unit in units]
    return np.stack(vectors).astype(np.float64).mean(axis=0)


def test_the_stored_vector_is_the_mean_over_units(tmp_path: Path, encoder: Encoder) -> None:
    items = [unit_readers.item(tmp_path / "x", number, 5 + 9 * number) for number in range(4)]
    results, figures = embed(items, encoder, tmp_path / "s.lmdb")
    assert results == [
        EmbeddedItem(item.item_key, "ok", item.units_expected, item.units_expected, 0, 64) for item in items
    ]
    worst = 0.0
    for item in items:
        expected = mean_of(item, encoder, np.arange(item.units_expected))
        stored = EmbeddingStore.open(tmp_path / "s.lmdb").get(item.item_key)
        assert stored.dtype == np.float16
        assert np.array_equal(stored, expected.astype(np.float32).astype(np.float16))
        worst = max(worst, float(np.linalg.norm(stored - expected) / np.linalg.norm(expected)))
    assert 0 < figures.rounding_error < 2**-11
    assert figures.rounding_error == pytest.approx(worst, rel=1e-3)
    assert (figures.items, figures.units) == (4, sum(item.units_expected for item in items))


def test_torch_has_one_thread_while_it_encodes(tmp_path: Path, encoder: Encoder) -> None:
    """Workers are as many as cores: threads of torch beside them only wait for one another."""
    item, seen, before = unit_readers.item(tmp_path / "x", 1, 5), list[int](), torch.get_num_threads()

    def built() -> Encoder:
        seen.append(torch.get_num_threads())
        return encoder

    torch.set_num_threads(2)
    try:
        embed_buckets([Bucket(tmp_path / "s.lmdb", encoder.spec, [item], built)], RunnerSettings())
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
        close_stores()


def test_float32_is_stored_as_it_is(tmp_path: Path) -> None:
    exact = get_encoder(SMALL.model_copy(update={"store_dtype": "float32"}), "ct")
    item = unit_readers.item(tmp_path / "x", 3, 21)
    _, figures = embed([item], exact, tmp_path / "s.lmdb")
    stored = EmbeddingStore.open(tmp_path / "s.lmdb").get(item.item_key)
    assert figures.rounding_error == 0 and stored.dtype == np.float32
    assert np.abs(stored - mean_of(item, exact, np.arange(21))).max() <= 1e-7 * np.abs(stored).max()


def test_a_sequence_holds_every_unit_and_its_place(tmp_path: Path) -> None:
    encoder = get_encoder(SMALL.model_copy(update={"output": "sequence"}), "ct")
    item = unit_readers.item(tmp_path / "x", 2, 40, bad=[3, 17])
    results, figures = embed([item], encoder, tmp_path / "s.lmdb")
    kept = np.setdiff1d(np.arange(40), [3, 17])
    assert results == [EmbeddedItem(item.item_key, "ok", 40, 38, 2, 64)]
    store = EmbeddingStore.open(tmp_path / "s.lmdb")
    expected = encoder.encode(unit_readers.pixels(2, kept))
    assert np.array_equal(store.get(item.item_key), expected.astype(np.float16))
    assert store.places(item.item_key).tolist() == [[unit * 10, unit * 10 + 1] for unit in kept]
    assert store.keys() == [item.item_key] and figures.rounding_error > 0


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[ItemToEmbed]:
    """Short items, one item that is cut into spans, and some items that lose units or fail."""
    folder = tmp_path_factory.mktemp("many")
    sizes = [3, 1, 40, SPAN + 2 * BLOCK + 5, 17, 16, 33, 20]
    faults: dict[int, dict[str, object]] = {
        2: {"bad": [0, 39]},
        4: {"raise": 16},
        6: {"nan": 20},
        7: {"bad": [1, 2, 3]},
    }
    return [unit_readers.item(folder, number, size, **faults.get(number, {})) for number, size in enumerate(sizes)]


EXPECTED = ["ok", "ok", "ok", "ok", "failed_unreadable", "ok", "failed_not_finite", "failed_unreadable"]


@pytest.fixture(scope="module")
def undisturbed(
    many: list[ItemToEmbed], encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[EmbeddedItem], str]:
    path = tmp_path_factory.mktemp("whole") / "s.lmdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXTRACTORS, "ct", unit_readers.EXTRACTOR)
        results, _ = embed(many, encoder, path)
    assert [result.verdict for result in results] == EXPECTED
    return results, content_hash(path)


@pytest.mark.parametrize(("decoders", "memory_mb"), [(1, 1), (2, 1), (3, 64)])
def test_the_bits_do_not_depend_on_the_number_of_decoders(
    decoders: int, memory_mb: int, many: list[ItemToEmbed], undisturbed: tuple[list[EmbeddedItem], str],
    encoder: Encoder, tmp_path: Path,
) -> None:  # fmt: skip
    results, _ = embed(many, encoder, tmp_path / "s.lmdb", RunnerSettings(decoders, memory_mb))
    assert results == undisturbed[0]
    assert content_hash(tmp_path / "s.lmdb") == undisturbed[1]


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), cut=st.integers(0, 8), checkpoint=st.sampled_from([1, 40, 10_000]))
def test_the_bits_do_not_depend_on_order_mixing_and_checkpoints(
    order: list[int], cut: int, checkpoint: int, many: list[ItemToEmbed], undisturbed: tuple[list[EmbeddedItem], str],
    encoder: Encoder, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """The items are embedded in two runs, each in any order."""
    path = tmp_path_factory.mktemp("mixed") / "s.lmdb"
    found: list[EmbeddedItem] = []
    for part in (order[:cut], order[cut:]):
        found += embed([many[index] for index in part], encoder, path, RunnerSettings(checkpoint_units=checkpoint))[0]
    assert sorted(found, key=lambda embedded: embedded.item_key) == undisturbed[0]
    assert content_hash(path) == undisturbed[1]


def test_batches_mix_the_units_of_items(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []
    original = Encoder.submit
    monkeypatch.setattr(
        Encoder, "submit", lambda self, parts: sizes.append([len(part) for part in parts]) or original(self, parts)
    )
    embed([unit_readers.item(tmp_path / "x", number, 5) for number in range(5)], encoder, tmp_path / "s.lmdb")
    assert sizes == [[5, 5, 2], [3, 5, 4], [1]]


def test_one_corrupt_item_among_a_hundred(tmp_path: Path, encoder: Encoder) -> None:
    items = [
        unit_readers.item(tmp_path / "x", number, 2, **({"raise": 1} if number == 41 else {})) for number in range(100)
    ]
    results, figures = embed(items, encoder, tmp_path / "s.lmdb", RunnerSettings(decoders=1))
    assert [result.verdict for result in results] == ["ok"] * 41 + ["failed_unreadable"] + ["ok"] * 58
    assert results[41] == EmbeddedItem(items[41].item_key, "failed_unreadable", 2, 0, 2, None)
    assert EmbeddingStore.open(tmp_path / "s.lmdb").keys() == sorted({i.item_key for i in items} - {items[41].item_key})
    assert figures.errors == {"KeyError": 1}, "the type, never the words"


@pytest.mark.parametrize("fault", [{"raise": 20}, {"stop": 3}, {"verdict_at": 3, "verdict": "failed_unreadable"}])
def test_whatever_a_reader_raises_is_that_items_verdict(
    fault: dict[str, object], tmp_path: Path, encoder: Encoder
) -> None:
    items = [unit_readers.item(tmp_path / "x", 0, 30, **fault), unit_readers.item(tmp_path / "x", 1, 3)]
    results, _ = embed(items, encoder, tmp_path / "s.lmdb")
    assert [result.verdict for result in results] == ["failed_unreadable", "ok"]


def test_a_verdict_is_remembered_until_the_file_changes(tmp_path: Path, encoder: Encoder) -> None:
    item = unit_readers.item(tmp_path / "x", 0, 3, **{"raise": 1, "log": str(tmp_path / "log")})
    first, _ = embed([item], encoder, tmp_path / "s.lmdb")
    assert read_verdicts(tmp_path / "s.lmdb")[item.item_key]["verdict"] == "failed_unreadable"
    assert embed([item], encoder, tmp_path / "s.lmdb")[0] == first
    assert len((tmp_path / "log").read_text().splitlines()) == 1, "it was not read again"
    (tmp_path / "x" / "0").write_text("00")
    embed([item], encoder, tmp_path / "s.lmdb")
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    verdicts_path(tmp_path / "s.lmdb").unlink()
    embed([item], encoder, tmp_path / "s.lmdb")
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_file_that_changed_while_it_was_read_is_tried_again(tmp_path: Path, encoder: Encoder) -> None:
    fault = {"verdict_at": 1, "verdict": "failed_changed", "log": str(tmp_path / "log")}
    item = unit_readers.item(tmp_path / "x", 0, 3, **fault)
    for times in (1, 2):
        assert embed([item], encoder, tmp_path / "s.lmdb")[0][0].verdict == "failed_changed"
        assert len((tmp_path / "log").read_text().splitlines()) == times
        # The night that finds it reports it, and publishes the other items.
        known = outcomes(tmp_path / "s.lmdb", {item.item_key: item.units_expected}, encoder.spec.width)
        assert [entry.verdict for entry in known.values()] == ["failed_changed"]


@pytest.mark.parametrize("decoders", [0, 1])
@pytest.mark.parametrize("when", ["before the run", "while it runs"])
def test_a_file_that_went_costs_its_item_alone(decoders: int, when: str, tmp_path: Path, encoder: Encoder) -> None:
    gone = {"unlink_at": 1} if when == "while it runs" else {}
    items = [unit_readers.item(tmp_path / "x", number, 3, **(gone if number == 1 else {})) for number in range(3)]
    if not gone:
        (tmp_path / "x" / "1").unlink()
    results, _ = embed(items, encoder, tmp_path / "s.lmdb", RunnerSettings(decoders))
    assert [result.verdict for result in results] == ["ok", "failed_changed", "ok"]
    known = outcomes(tmp_path / "s.lmdb", {item.item_key: 3 for item in items}, encoder.spec.width)
    assert sorted(entry.verdict for entry in known.values()) == ["failed_changed", "ok", "ok"]
    back = unit_readers.item(tmp_path / "x", 1, 3)  # the file is there again, so the verdict does not stay
    assert embed([items[0], back, items[2]], encoder, tmp_path / "s.lmdb")[0][1].verdict == "ok"


def test_a_verdict_of_old_does_not_ask_for_its_files(tmp_path: Path, encoder: Encoder) -> None:
    item = unit_readers.item(tmp_path / "x", 0, 3, **{"raise": 1})
    other = unit_readers.item(tmp_path / "x", 1, 3)
    assert embed([item, other], encoder, tmp_path / "s.lmdb")[0][0].verdict == "failed_unreadable"
    (tmp_path / "x" / "0").unlink()
    assert embed([item, other], encoder, tmp_path / "s.lmdb")[0][0].verdict == "failed_changed"


@pytest.mark.parametrize("decoders", [0, 1])
@pytest.mark.parametrize("how", ["no root", "an empty root", "an error of the disk"])
def test_a_disk_that_is_away_is_no_verdict(
    decoders: int, how: str, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a night would publish a release without images. A disk that is not mounted leaves an empty folder."""
    items = [unit_readers.item(tmp_path / "x", number, 3) for number in range(2)]
    if how == "an error of the disk":
        original = Path.stat

        def stat(self: Path, **options: Any) -> Any:
            if self == tmp_path / "x" / "1":
                raise OSError(errno.EIO, "input/output error")
            return original(self, **options)

        monkeypatch.setattr(Path, "stat", stat)
    else:
        shutil.rmtree(tmp_path / "x")
        if how == "an empty root":
            (tmp_path / "x").mkdir()
    with pytest.raises(TimeloomError, match="cannot be opened now"):
        embed(items, encoder, tmp_path / "s.lmdb", RunnerSettings(decoders))
    assert not read_verdicts(tmp_path / "s.lmdb")


@pytest.mark.parametrize("decoders", [0, 1])
def test_a_lack_of_memory_is_no_verdict(decoders: int, tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(MemoryError):
        embed(
            [unit_readers.item(tmp_path / "x", 0, 3, memory=1)], encoder, tmp_path / "s.lmdb", RunnerSettings(decoders)
        )
    assert not read_verdicts(tmp_path / "s.lmdb")


def test_a_vector_that_float16_cannot_hold_is_refused(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Span.add
    monkeypatch.setattr(
        Span,
        "add",
        lambda self, upto, indices, vectors, *more: original(self, upto, indices, vectors * np.float32(1e6), *more),
    )
    results, _ = embed([unit_readers.item(tmp_path / "x", 0, 3)], encoder, tmp_path / "s.lmdb")
    assert results[0].verdict == "failed_not_finite"


def test_too_many_failed_units_refuse_the_item(tmp_path: Path, encoder: Encoder) -> None:
    """The limit is a tenth of the units, or the one that the geometry gives."""
    cases = [([0, 1], {}, "ok"), ([0, 1, 2], {}, "failed_unreadable"), ([0, 1, 2], {"max_failed_tiles": 0.2}, "ok")]
    items = [unit_readers.item(tmp_path / "x", n, 20, bad=bad, **more) for n, (bad, more, _) in enumerate(cases)]
    results, _ = embed(items, encoder, tmp_path / "s.lmdb")
    assert [result.verdict for result in results] == [verdict for *_, verdict in cases]
    assert (results[0].units_encoded, results[0].units_failed) == (18, 2)
    expected = mean_of(items[0], encoder, np.arange(2, 20)).astype(np.float16)
    assert np.array_equal(EmbeddingStore.open(tmp_path / "s.lmdb").get(items[0].item_key), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=0, max_size=6), st.randoms())
def test_a_spans_sum_does_not_depend_on_how_its_units_arrive(cuts: list[int], dice: random.Random) -> None:
    vectors = np.random.default_rng(dice.randrange(99)).normal(size=(40, 3)).astype(np.float32)
    whole, pieces = (Span(0, 40, 3, keep=False, may_fail=4.0, too_many="failed_unreadable") for _ in range(2))
    places = np.zeros((40, 1), np.int32)
    whole.add(40, np.arange(40), vectors, places)
    edges = [0, *sorted(cuts), 40]
    for start, stop in pairwise(edges):
        pieces.add(stop, np.arange(start, stop), vectors[start:stop], places[start:stop])
    assert pieces.finished and whole.finished
    assert np.array_equal(pieces.total, whole.total) and pieces.encoded == 40


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path, encoder: Encoder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    try:
        bucket = Bucket(tmp_path / "s.lmdb", encoder.spec, [unit_readers.item(tmp_path / "x", 0, 3)], lambda: encoder)
        embed_buckets([bucket], RunnerSettings(), progress=lambda result: seen.append(torch.get_num_threads()))
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_figures_say_how_the_run_was(tmp_path: Path, encoder: Encoder) -> None:
    items = [unit_readers.item(tmp_path / "x", number, 60, pause=0.05) for number in range(2)]
    _, figures = embed(items, encoder, tmp_path / "s.lmdb")
    counts = figures.counts()
    assert (counts["items"], counts["units"], counts["encoders"][0]["units"]) == (2, 120, 120)
    assert counts["decode_seconds"] > 0.35, "eight blocks with a pause each"
    assert 0 < counts["device_idle_share"] < 1 and 0 < counts["flop_fraction"] < 1
    _, again = embed(items, encoder, tmp_path / "s.lmdb")
    assert (again.items, again.units, again.counts()["device_idle_share"]) == (0, 0, None), "nothing was done"


def test_a_peak_is_measured_when_no_decoder_is_at_work(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Watched(InProcess):
        def close(self) -> None:
            order.append("closed")

    monkeypatch.setattr(runner, "InProcess", Watched)
    monkeypatch.setattr("embedders.encoders.encoder.peak_flops", lambda *given: order.append("peak") or 1e12)
    _, figures = embed([unit_readers.item(tmp_path / "x", 0, 8)], encoder, tmp_path / "s.lmdb")
    assert order[:2] == ["closed", "peak"] and order.count("peak") == 1
    assert [load.peak_flops for load in figures.loads.values()] == [1e12]


@pytest.mark.parametrize("measured", [1.0, 1e15])
def test_no_share_of_the_limit_is_above_what_the_device_was_busy(
    tmp_path: Path, encoder: Encoder, measured: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peak that was measured beside other processes is too low; the run itself has shown more."""
    monkeypatch.setattr("embedders.encoders.encoder.peak_flops", lambda *given: measured)
    _, figures = embed([unit_readers.item(tmp_path / "x", 0, 60)], encoder, tmp_path / "s.lmdb")
    busy = figures.busy_seconds / figures.seconds
    expected = busy if measured == 1.0 else 60 * encoder.flops_per_unit / measured / figures.seconds
    assert figures.flop_fraction == pytest.approx(expected) and 0 < expected <= 1


def test_a_long_run_says_how_far_it_is_and_names_nobody(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = [unit_readers.item(tmp_path / "x", number, 20) for number in (700, 800, 900)]
    with caplog.at_level("INFO", logger="embedders.running.runner"):
        embed(items, encoder, tmp_path / "soon.lmdb")
        assert not caplog.messages
        monkeypatch.setattr(runner, "TELLING_SECONDS", 0.0)
        embed(items, encoder, tmp_path / "later.lmdb")
    assert caplog.messages[-1] == "60 units of this run are encoded, 3 items done"
    said = {int(number) for line in caplog.messages for number in re.findall(r"\d+", line)}
    assert max(said) == 60, "no item's name"


# Real readers.


def to_embed(found: FoundItem, root: Path) -> ItemToEmbed:
    assert found.verdict == "ok" and found.units_expected is not None
    return ItemToEmbed(found.identity, found.modality, root, found.paths, found.geometry, found.units_expected)


@pytest.fixture
def real_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "ct", CT)


@pytest.mark.usefixtures("real_readers")
def test_shuffled_file_names_give_the_same_vector(tmp_path: Path, encoder: Encoder) -> None:
    names = random.Random(4).sample(range(100), 6)
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", names=lambda index: f"{names[index]:03d}.dcm")
    hashes = []
    for folder in ("a", "b"):
        embed([to_embed(index_ct(tmp_path / folder)[0], tmp_path / folder)], encoder, tmp_path / f"{folder}.lmdb")
        hashes.append(content_hash(tmp_path / f"{folder}.lmdb"))
    assert hashes[0] == hashes[1]


@pytest.mark.usefixtures("real_readers")
def test_slides_and_volumes_share_a_run(tmp_path: Path, encoder: Encoder) -> None:
    write_tiff(tmp_path / "wsi" / "a.svs", stained(), 0.5)
    row = {"path": "a.svs", "raw_subject": "S", "time": datetime(2020, 1, 1), "available_time": None, "mpp": None}
    slide = to_embed(index_slides(tmp_path / "wsi", pl.DataFrame([row]))[0], tmp_path / "wsi")
    write_series(tmp_path / "ct", 7, image=lambda index: disc(48, 20.0 * index))
    volume = to_embed(index_ct(tmp_path / "ct")[0], tmp_path / "ct")
    tiles = get_encoder(SMALL.model_copy(update={"width": 96}), "wsi")
    stores = [tmp_path / "ct.lmdb", tmp_path / "wsi.lmdb"]
    buckets = [
        Bucket(stores[0], encoder.spec, [volume], lambda: encoder),
        Bucket(stores[1], tiles.spec, [slide], lambda: tiles),
    ]
    results, figures = embed_buckets(buckets, RunnerSettings(decoders=1))
    assert [(result.verdict, result.units_encoded, result.dim) for store in stores for result in results[store]] == [
        ("ok", 7, 64), ("ok", 4, 96),
    ]  # fmt: skip
    assert {load.modality: load.units for load in figures.loads.values()} == {"ct": 7, "wsi": 4}


@pytest.mark.usefixtures("real_readers")
def test_real_volumes_are_embedded(real_data: Path, tmp_path: Path, encoder: Encoder) -> None:
    root = real_data / "ct-ibsi-sts"
    items = [to_embed(found, root) for found in index_ct(root) if found.verdict == "ok"]
    results, _ = embed(items, encoder, tmp_path / "s.lmdb")
    assert sorted(result.units_encoded for result in results) == sorted(item.units_expected for item in items)
    store = EmbeddingStore.open(tmp_path / "s.lmdb")
    vectors = np.stack([store.get(item.item_key) for item in items])
    assert np.isfinite(vectors).all() and len(np.unique(vectors, axis=0)) == len(items)


def test_a_damaged_vector_is_made_again(tmp_path: Path, encoder: Encoder) -> None:
    items = [unit_readers.item(tmp_path / "x", number, 4) for number in range(2)]
    embed(items, encoder, tmp_path / "s.lmdb")
    before = content_hash(tmp_path / "s.lmdb")
    vector = EmbeddingStore.open(tmp_path / "s.lmdb").get(items[0].item_key)
    close_stores()
    content = bytearray((tmp_path / "s.lmdb").read_bytes())
    content[content.find(vector.tobytes()[:64]) + 5] ^= 4
    (tmp_path / "s.lmdb").write_bytes(content)
    with pytest.raises(TimeloomError):
        EmbeddingStore.open(tmp_path / "s.lmdb").verify()
    embed(items, encoder, tmp_path / "s.lmdb")
    assert content_hash(tmp_path / "s.lmdb") == before
