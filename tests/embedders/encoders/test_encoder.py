"""Batches: a unit's vector has the same bits at every place, beside any neighbours, in one part or in many."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from embedders.encoders import encoder as encoding
from embedders.encoders.build import EncoderConfig, build_encoder, encoder_spec, get_encoder
from embedders.encoders.encoder import Encoder
from embedders.encoders.flops import flops_per_unit
from embedders.encoders.heads import dinov2
from embedders.encoders.registry import NETWORKS
from embedders.inputs.ct import CtSpec
from warehouse.errors import TimeloomError

# In `make test` alone: real models take seconds each.
pytestmark = pytest.mark.whole

TINY: dict[str, dict[str, Any]] = {
    "dinov2-vitl14": {
        "hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16, "patch_size": 56, "image_size": 224,
        "mlp_ratio": 1,
    },
    "gigapath-tile": {
        "hidden_size": 1536, "num_hidden_layers": 1, "num_attention_heads": 24, "patch_size": 112, "image_size": 224,
        "mlp_ratio": 1, "use_swiglu_ffn": True,
    },
}  # fmt: skip
RNG = np.random.default_rng(11)
SLICES = RNG.integers(-1000, 1000, (9, 40, 52)).astype(np.float32)
TILES = RNG.integers(0, 256, (9, 256, 256, 3), dtype=np.uint8)


def tiny(name: str, modality: str, folder: Path, **settings: Any) -> Encoder:
    torch.manual_seed(3)
    model = dinov2(TINY[name])
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.05)
    save_file(model.state_dict(), folder / f"{name}.safetensors")
    width = TINY[name]["hidden_size"]
    config = EncoderConfig(
        name=name, width=width, weights=folder / f"{name}.safetensors", device="cpu", batch_size=9, **settings
    )
    return build_encoder(config, modality, TINY[name])


@pytest.fixture(scope="module", params=["dinov2-vitl14", "gigapath-tile", "random-dinov2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Encoder, Any]]:
    if request.param == "random-dinov2":
        config = EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=9)
        yield build_encoder(config, "wsi"), TILES
        return
    modality, units = ("ct", SLICES) if request.param == "dinov2-vitl14" else ("wsi", TILES)
    yield tiny(request.param, modality, tmp_path_factory.mktemp("weights")), units


def test_a_vector_does_not_depend_on_its_place_or_its_neighbours(case: tuple[Encoder, Any]) -> None:
    encoder, units = case
    alone = np.concatenate([encoder.submit([unit[None]]).result() for unit in units])
    assert len(np.unique(alone, axis=0)) == len(units)

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 8), min_size=0, max_size=5), min_size=1, max_size=4))
    def holds(parts: list[list[int]]) -> None:
        order = [index for part in parts for index in part][:9]
        if not order:
            return
        cut = np.cumsum([0, *(len(part) for part in parts)])
        chosen = [units[order[start:stop]] for start, stop in pairwise(cut)]
        assert np.array_equal(encoder.submit(chosen).result(), alone[order])

    holds()


def test_this_comparison_sees_vectors_that_depend_on_their_neighbours(case: tuple[Encoder, Any]) -> None:
    encoder, units = case

    class Leaking(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            vectors = images.flatten(1)[:, : encoder.spec.width]
            return vectors + 1e-6 * vectors.mean(dim=0)

    leaking = Encoder(encoder.spec, Leaking(), torch.device("cpu"))
    alone = np.concatenate([leaking.submit([unit[None]]).result() for unit in units])
    assert not np.array_equal(leaking.submit([units]).result(), alone)


def test_parts_of_different_shapes_share_a_batch() -> None:
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    parts = [SLICES[:3], SLICES[3:5, :30, :30], SLICES[5:6, :30, :30], SLICES[6:6], SLICES[6:, ::2]]
    expected = np.concatenate([encoder.encode(np.ascontiguousarray(part)) for part in parts])
    assert np.array_equal(encoder.submit(parts).result(), expected)
    read_only = SLICES[:3].copy()
    read_only.flags.writeable = False
    assert np.array_equal(encoder.submit([read_only]).result(), expected[:3])


def test_large_input_is_preprocessed_in_pieces_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    whole = encoder.encode(SLICES)
    monkeypatch.setattr(encoding, "PREPROCESS_BYTES", {"cpu": 1})
    assert np.array_equal(encoder.encode(SLICES), whole)


def test_a_thin_slice_counts_as_the_square_that_it_becomes(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    together: list[int] = []

    class Counting(CtSpec):
        def apply(self, pixels: torch.Tensor) -> torch.Tensor:
            together.append(len(pixels))
            return super().apply(pixels)

    counting = Encoder(replace(encoder.spec, preprocess=Counting()), nn.Identity(), torch.device("cpu"))
    monkeypatch.setattr(counting, "_model", lambda images: images.flatten(1)[:, :64])
    monkeypatch.setattr(encoding, "PREPROCESS_BYTES", {"cpu": 2 * 256**2 * 4 * 4})
    counting.encode(np.zeros((5, 256, 1), np.float32))
    assert together == [2, 2, 1]


def test_results_may_be_fetched_in_any_order_and_more_than_once() -> None:
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    pending = [encoder.submit([SLICES[index : index + 2]]) for index in (0, 2, 4)]
    backwards = [batch.result() for batch in reversed(pending)][::-1]
    assert np.array_equal(np.concatenate(backwards), encoder.encode(SLICES[:6]))
    assert np.array_equal(pending[0].result(), backwards[0])
    assert all(0 < batch.seconds < 60 for batch in pending)


@pytest.mark.parametrize("units", [0, 10])
def test_a_batch_that_is_empty_or_too_large_is_refused(case: tuple[Encoder, Any], units: int) -> None:
    encoder, all_units = case
    with pytest.raises(ValueError, match=f"1 to 9 units, not {units}"):
        encoder.submit([np.concatenate([all_units, all_units])[:units]])


def test_a_width_that_the_model_does_not_make_is_one_line() -> None:
    spec = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct").spec
    with pytest.raises(TimeloomError, match="vectors of 150528 instead of 64"):
        Encoder(spec, nn.Flatten(), torch.device("cpu")).encode(SLICES)


def test_staged_bytes_come_back_as_the_units_they_were() -> None:
    """The steps that run in pinned memory on a GPU, here in ordinary memory."""
    parts = [SLICES[:2], SLICES[2:3], SLICES[3:4, :7, :9], TILES[:1, ::2], SLICES[4:6, ::2].astype(np.float64)]
    runs = encoding._runs(parts)
    assert [len(run) for run in runs] == [2, 1, 1, 1]
    places, size = encoding._places(runs)
    assert all(place % encoding.ALIGNMENT == 0 for place in places)
    buffer = np.full(size, 7, np.uint8)
    encoding._stage(runs, places, buffer)
    raw = torch.from_numpy(buffer)
    for run, place in zip(runs, places, strict=True):
        assert np.array_equal(encoding._view(raw, run, place).numpy(), np.concatenate(run))


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass


class Event:
    """A stand-in for a CUDA event: waiting for it fails if it was not recorded before."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.recorded = False

    def record(self, stream: Stream) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded

    def elapsed_time(self, end: "Event") -> float:
        assert self.recorded and end.recorded
        return 1500.0


def test_the_path_of_a_gpu_reuses_its_memory_and_mixes_no_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins replace streams and pinned memory; the staging, the slots and the order of steps are real."""
    encoder = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=8), "ct")
    expected = encoder.encode(SLICES)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kind: empty(*size, **kind))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(encoder, "_copying", Stream(), raising=False)
    monkeypatch.setattr(encoder, "_computing", Stream(), raising=False)

    def start(first: int, last: int) -> encoding.Pending:
        return encoder._submit_cuda(encoding._runs([SLICES[first : first + 1], SLICES[first + 1 : last]]), last - first)

    flying = [start(0, 2), start(2, 5)]
    assert np.array_equal(flying[0].result(), expected[:2]) and len(encoder._free) == 1
    flying.append(start(5, 9))  # it reuses the memory of the first
    assert not encoder._free
    assert np.array_equal(flying[0].result(), expected[:2]), "a result outlives its slot"
    assert np.array_equal(flying[1].result(), expected[2:5]) and np.array_equal(flying[2].result(), expected[5:])
    assert all(batch.seconds == 1.5 for batch in flying)
    assert len(encoder._free) == 2 and len({id(slot) for slot in encoder._free}) == 2


def test_bf16_is_autocast_and_near_float32(tmp_path: Path) -> None:
    exact = tiny("dinov2-vitl14", "ct", tmp_path)
    rounded = tiny("dinov2-vitl14", "ct", tmp_path, precision="bf16")
    assert rounded.spec.precision == "bf16" and rounded.spec.store_name != exact.spec.store_name
    images = exact.spec.preprocess.apply(torch.from_numpy(SLICES[:4]))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = exact._model(images).float()  # weights cast anew, as autocast does it
    assert torch.equal(rounded.forward(images), expected)
    ours, theirs = rounded.encode(SLICES[:4]), exact.encode(SLICES[:4])
    cosine = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert not np.array_equal(ours, theirs) and cosine.min() > 0.999


def test_without_a_compiler_the_encoder_says_so_and_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    plain = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    wanted = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", compile=True), "ct")
    assert not wanted.compiled and len(caplog.messages) == 1 and "running without it" in caplog.messages[0]
    assert np.array_equal(wanted.encode(SLICES), plain.encode(SLICES))
    assert wanted.spec.store_name != plain.spec.store_name


def test_what_is_compiled_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []

    def compiled(model: nn.Module, *, dynamic: bool) -> Any:
        seen.append(dynamic)
        return lambda images: model(images) * 1.0001

    monkeypatch.setattr(torch, "compile", compiled)
    plain = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    other = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", compile=True), "ct")
    assert seen == [False] and other.compiled and not caplog.messages
    assert not np.array_equal(other.encode(SLICES), plain.encode(SLICES))
    assert np.allclose(other.encode(SLICES), plain.encode(SLICES) * np.float32(1.0001), rtol=1e-6)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_what_is_compiled_to_other_vectors_is_not_used(
    factor: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, *, dynamic: lambda images: model(images) * factor)
    plain = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    wanted = build_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu", compile=True), "ct")
    assert not wanted.compiled and len(caplog.messages) == 1 and "makes other vectors" in caplog.messages[0]
    assert np.array_equal(wanted.encode(SLICES), plain.encode(SLICES))


@pytest.mark.parametrize(
    ("device", "compile_", "resolved"),
    [("cpu", "auto", False), ("cuda", "auto", True), ("cuda", False, False), ("cpu", True, True)],
)
def test_compilation_is_on_on_a_gpu_unless_a_site_says_otherwise(device: Any, compile_: Any, resolved: bool) -> None:
    spec = encoder_spec(EncoderConfig(name="random-dinov2", width=64, device=device, compile=compile_), "ct")
    settled = encoder_spec(EncoderConfig(name="random-dinov2", width=64, device=device, compile=resolved), "ct")
    assert spec.compile is resolved and spec.store_name == settled.store_name


@pytest.mark.parametrize(
    ("name", "side", "gigaflops"),
    [("gigapath-tile", 224, 456), ("dinov2-vitl14", 224, 162), ("dinov2-vitl14", 518, 1014)],
)
def test_flops_are_those_of_the_published_models(name: str, side: int, gigaflops: int) -> None:
    assert round(flops_per_unit(name, NETWORKS[name].architecture, (3, side, side)) / 1e9) == gigaflops


def test_counted_flops_are_those_of_the_formula() -> None:
    shape = NETWORKS["random-dinov2"].architecture
    d, tokens, layers = shape["hidden_size"], 14 * 14 + 1, shape["num_hidden_layers"]
    products = 4 * tokens * d * d + 8 * tokens * d * d + 2 * tokens * tokens * d
    assert flops_per_unit("random-dinov2", shape, (3, 224, 224)) == 2 * (
        layers * products + (tokens - 1) * d * 3 * 16 * 16
    )


def test_figures_are_measured_here() -> None:
    encoder = get_encoder(EncoderConfig(name="random-dinov2", width=64, device="cpu"), "ct")
    figures = encoder.figures
    assert figures.flops_per_unit == flops_per_unit(
        "random-dinov2", NETWORKS["random-dinov2"].architecture, (3, 224, 224)
    )
    assert 1e8 < figures.peak_flops < 1e14 and figures.peak_flops == encoder.figures.peak_flops
    assert figures.device and figures.precision == "float32" and not figures.compiled
