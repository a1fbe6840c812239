"""Encoders: the real architectures, strict weights, the seeded stand-in, and preprocessing."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from embedders.encoders.build import EncoderConfig, build_encoder, encoder_spec, get_encoder
from embedders.encoders.heads import dinov2
from embedders.encoders.registry import NETWORKS
from embedders.encoders.weights import load_weights, weights_sha256
from embedders.inputs.common import spec_hash
from embedders.inputs.ct import CtSpec
from embedders.inputs.wsi import TileSpec
from extractors.wsi.tissue import MASK
from tests.support.images.phantoms import disc, stained
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file

# In `make test` alone: real models take seconds each.
pytestmark = pytest.mark.whole

TINY = {
    "hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 56, "image_size": 224,
    "mlp_ratio": 1,
}  # fmt: skip
TINY_GATED = {**TINY, "hidden_size": 1536, "use_swiglu_ffn": True, "patch_size": 112}
CT = np.stack([disc(64, 40.0), disc(64, -600.0)])


def random_weights(architecture: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = dinov2(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    return random_weights(TINY)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> Path:
    save_file(tiny_state, tmp_path / "vitl.safetensors")
    return tmp_path / "vitl.safetensors"


def vitl(weights: Path) -> EncoderConfig:
    return EncoderConfig(name="dinov2-vitl14", width=1024, weights=weights, device="cpu")


def random_config(width: int = 1024, seed: int = 0) -> EncoderConfig:
    return EncoderConfig(name="random-dinov2", width=width, seed=seed, device="cpu")


@pytest.mark.parametrize(("name", "count"), [("dinov2-vitl14", 304_368_640), ("gigapath-tile", 1_134_955_520)])
def test_real_architectures_have_the_published_sizes(name: Any, count: int) -> None:
    with torch.device("meta"):
        model = dinov2(NETWORKS[name].architecture)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.config._attn_implementation == "sdpa"


def test_pretrained_vectors_are_the_class_token_after_the_last_norm(
    checkpoint: Path, tiny_state: dict[str, torch.Tensor]
) -> None:
    encoder = build_encoder(vitl(checkpoint), "ct", TINY)
    reference = dinov2(TINY).eval()
    reference.load_state_dict(tiny_state)
    with torch.inference_mode():
        pixels = CtSpec().apply(torch.from_numpy(CT))
        expected = reference(pixel_values=pixels).last_hidden_state[:, 0]
    vectors = encoder.encode(CT)
    assert vectors.shape == (2, 1024) and vectors.dtype == np.float32
    assert np.array_equal(vectors, expected.numpy())
    assert encoder.spec.weights_sha256 == sha256_file(checkpoint) and sha256_file(checkpoint)[:12] in encoder.spec.label


def test_the_gated_tile_encoder_loads_and_encodes(tmp_path: Path) -> None:
    state = random_weights(TINY_GATED)
    del state["embeddings.mask_token"]  # GigaPath's checkpoint has none, and nothing uses it
    save_file(state, tmp_path / "tile.safetensors")
    config = EncoderConfig(name="gigapath-tile", width=1536, weights=tmp_path / "tile.safetensors", device="cpu")
    vectors = build_encoder(config, "wsi", TINY_GATED).encode(stained(256)[None])
    assert vectors.shape == (1, 1536) and np.isfinite(vectors).all()


@pytest.mark.parametrize("gated", [False, True])
def test_published_names_of_older_versions_are_understood(tmp_path: Path, gated: bool) -> None:
    architecture = TINY_GATED if gated else TINY
    state = random_weights(architecture)
    old: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f".attention.{short}_proj.", f".attention.attention.{long}.")
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        name = name.replace(".mlp.down_proj.", ".mlp.weights_out.")
        if ".mlp.gate_proj." in name:
            up = state[name.replace("gate_proj", "up_proj")]
            old[name.replace("gate_proj", "weights_in")] = torch.cat([tensor, up])
        elif ".mlp.up_proj." not in name:
            old[f"dinov2.{name}"] = tensor
    save_file(old, tmp_path / "old.safetensors")
    model = dinov2(architecture)
    load_weights(model, tmp_path / "old.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_folders_whole_or_sharded_load_alike(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> None:
    names = sorted(tiny_state)
    (tmp_path / "whole").mkdir()
    (tmp_path / "shards").mkdir()
    save_file(tiny_state, tmp_path / "whole" / "model.safetensors")
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for part, members in parts.items():
        save_file({name: tiny_state[name] for name in members}, tmp_path / "shards" / part)
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    vectors = [build_encoder(vitl(tmp_path / folder), "ct", TINY).encode(CT) for folder in ("whole", "shards")]
    assert np.array_equal(*vectors)
    (tmp_path / "shards" / "b.safetensors").unlink()
    weights_sha256.cache_clear()
    with pytest.raises(TimeloomError, match=r"lack b\.safetensors"):
        build_encoder(vitl(tmp_path / "shards"), "ct", TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layernorm.weight"), r"1 missing: layernorm\.weight\)"),
        (lambda s: [s.pop(name) for name in list(s) if ".layer.0." in name], r"18 missing: .*, \.\.\.\)"),
        (lambda s: s.update({"head.weight": torch.zeros(3)}), r"1 unexpected: head\.weight\)"),
        (
            lambda s: s.update({"layernorm.bias": torch.zeros(7)}),
            r"1 of another shape: layernorm\.bias \(7,\) instead of \(1024,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, tiny_state: dict[str, torch.Tensor], change: Any, message: str
) -> None:
    state = dict(tiny_state)
    change(state)
    save_file(state, tmp_path / "wrong.safetensors")
    with pytest.raises(TimeloomError, match=message) as caught:
        build_encoder(vitl(tmp_path / "wrong.safetensors"), "ct", TINY)
    assert "\n" not in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pt", b"pickle", "not safetensors"),
        ("absent.safetensors", None, "missing"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "no readable safetensors"),
    ],
)
def test_files_that_are_no_weights_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TimeloomError, match=message):
        build_encoder(vitl(tmp_path / name), "ct", TINY)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "dinov2-vitl14", "width": 1024},
        {"name": "dinov2-vitl14", "width": 768, "weights": "x.safetensors"},
        {"name": "random-dinov2", "width": 1024, "weights": "x.safetensors"},
        {"name": "random-dinov2", "width": 0},
        {"name": "random-dinov2", "width": 8, "sede": 1},
        {"name": "resnet", "width": 8},
    ],
)
def test_configurations_that_cannot_be_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EncoderConfig.model_validate(values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_asking_for_cuda_where_there_is_none_is_one_line() -> None:
    with pytest.raises(TimeloomError, match="cuda"):
        build_encoder(EncoderConfig(name="random-dinov2", width=8, device="cuda"), "ct")


def test_the_stand_in_says_what_it_is() -> None:
    spec = encoder_spec(random_config(seed=3), "ct")
    assert spec.label == "random-dinov2-1024-seed3, for demonstration only" and spec.weights_sha256 is None
    assert spec.store_name.startswith("random-dinov2-") and len(spec.store_name.rpartition("-")[2]) == 12


def test_the_store_name_follows_everything_that_makes_a_vector(checkpoint: Path, tmp_path: Path) -> None:
    save_file(random_weights(TINY, seed=1), tmp_path / "other.safetensors")
    names = [
        encoder_spec(random_config(), "ct").store_name,
        encoder_spec(random_config(seed=1), "ct").store_name,
        encoder_spec(random_config(width=512), "ct").store_name,
        encoder_spec(random_config(), "wsi").store_name,
        encoder_spec(vitl(checkpoint), "ct", TINY).store_name,
        encoder_spec(vitl(tmp_path / "other.safetensors"), "ct", TINY).store_name,
    ]
    assert len(set(names)) == len(names)
    (tmp_path / "moved").mkdir()
    copy = checkpoint.rename(tmp_path / "moved" / "renamed.safetensors")
    assert encoder_spec(vitl(copy), "ct", TINY).store_name == names[4]
    on_gpu = EncoderConfig(name="random-dinov2", width=1024, device="auto")
    assert encoder_spec(on_gpu, "ct").store_name == names[0]
    for change in ({"side": 518}, {"windows": ((0.0, 1.0),) * 3}, {"air_hu": -1000.0}):
        assert spec_hash(dataclasses.replace(CtSpec(), **change)) != spec_hash(CtSpec())
    assert TileSpec().mask == MASK and spec_hash(dataclasses.replace(TileSpec(), mask="next")) != spec_hash(TileSpec())


def test_hashes_and_stores_are_those_of_earlier_versions() -> None:
    """A class may get another name; the contents of a hash must not change, or every store is filled again."""
    assert spec_hash(CtSpec()) == "a832eda9f5a8d555620aef1a90b98ceaeddad62c341d1c2bcc3b8af2105d417b"
    # Of the first mask of tissue by saturation and ink; that of earlier versions took black and ink for tissue.
    assert spec_hash(TileSpec()) == "eb258aaa2fb743fdf08ff39e0f300b1b40875ef8d6d5d1378ae6ba3aa7766e59"
    demo = EncoderConfig(name="random-dinov2", width=1024)
    assert encoder_spec(demo, "ct").store_name == "random-dinov2-03c5b76366a3"
    demo = EncoderConfig(name="random-dinov2", width=1536)
    assert encoder_spec(demo, "wsi").store_name == "random-dinov2-2ab8c0cb46fc"

    @dataclasses.dataclass(frozen=True)
    class Renamed(CtSpec):
        pass

    assert spec_hash(Renamed()) == spec_hash(CtSpec())


def test_an_unknown_modality_is_one_line() -> None:
    with pytest.raises(TimeloomError, match="no encoder for modality mri"):
        encoder_spec(random_config(), "mri")


CHILD = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from embedders.encoders.build import EncoderConfig, get_encoder
config = EncoderConfig(name="random-dinov2", width=1024, seed=5, device="cpu")
pixels = np.linspace(-1000, 900, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
sys.stdout.write(get_encoder(config, "ct").encode(pixels).tobytes().hex())
"""


def test_the_same_seed_gives_the_same_bits_in_each_process() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    pixels = np.linspace(-1000, 900, 2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        same_seed, other_seed = (build_encoder(random_config(seed=seed), "ct").encode(pixels) for seed in (5, 6))
    finally:
        torch.set_num_threads(threads)
    assert child.stdout == same_seed.tobytes().hex() and not np.array_equal(same_seed, other_seed)


def nearest_centre_accuracy(vectors: np.ndarray, classes: np.ndarray) -> float:
    fitted = np.arange(len(classes)) % 2 == 0
    centres = np.stack([vectors[fitted & (classes == value)].mean(axis=0) for value in np.unique(classes)])
    distance = np.linalg.norm(vectors[~fitted][:, None] - centres, axis=2)
    return float((distance.argmin(axis=1) == classes[~fitted]).mean())


@pytest.mark.parametrize("difference", ["brightness", "texture"])
def test_the_stand_in_separates_simple_classes_of_ct(difference: str) -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 8)
    images = [
        disc(96, 60.0 * value, 0.0) if difference == "brightness" else disc(96, 40.0, 60.0 * value) for value in classes
    ]
    noisy = np.stack(images) + rng.normal(0, 15, (24, 96, 96)).astype(np.float32)
    vectors = get_encoder(random_config(), "ct").encode(noisy.astype(np.float32))
    order = rng.permutation(24)
    assert nearest_centre_accuracy(vectors[order], classes[order]) == 1.0
    assert nearest_centre_accuracy(vectors[order], rng.permutation(classes)) < 0.8  # the check itself can fail


def test_the_stand_in_separates_stains_of_slides() -> None:
    colours = ((224, 130, 170), (120, 80, 165), (165, 110, 60))
    classes = np.tile(np.repeat(np.arange(3), 2), 3)
    tiles = np.stack([stained(512, colours[value], seed)[:256, :256] for seed, value in enumerate(classes)])
    vectors = get_encoder(random_config(1536), "wsi").encode(tiles)
    assert vectors.shape == (18, 1536) and nearest_centre_accuracy(vectors, classes) == 1.0


def test_ct_windows_become_channels() -> None:
    spec = CtSpec()
    flat = np.full((1, 50, 50), 40.0, np.float32)
    image = spec.apply(torch.from_numpy(flat))
    assert image.shape == (1, 3, 224, 224)
    values = image[0, :, 100, 100] * torch.tensor(spec.std) + torch.tensor(spec.mean)
    expected = [(40 - (centre - width / 2)) / width for centre, width in spec.windows]
    assert values.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_slice_that_is_not_square_keeps_its_shape() -> None:
    wide = np.full((1, 20, 80), 240.0, np.float32)
    spec = CtSpec()
    grey = spec.apply(torch.from_numpy(wide))[0, 0] * spec.std[0] + spec.mean[0]
    assert grey[112].min() > 0.99 and grey[:80].max() < 0.01 and grey[-80:].max() < 0.01


def test_tiles_are_cropped_in_the_centre_and_normalised() -> None:
    tile = np.zeros((1, 256, 256, 3), np.uint8)
    tile[0, 16, 16] = (255, 128, 0)
    image = TileSpec().apply(torch.from_numpy(tile))
    spec = TileSpec()
    expected = [(value / 255 - m) / s for value, m, s in zip((255, 128, 0), spec.mean, spec.std, strict=True)]
    assert image.shape == (1, 3, 224, 224) and image[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="256 x 256"):
        TileSpec().apply(torch.zeros((1, 224, 224, 3), dtype=torch.uint8))


def test_encoders_are_built_once_per_process() -> None:
    assert get_encoder(random_config(seed=8), "ct") is get_encoder(random_config(seed=8), "ct")


def test_the_documented_example_runs() -> None:
    root = Path(__file__).parents[3]
    (code,) = re.findall(r"^```python\n(.*?)^```", (root / "docs/encoders.md").read_text("utf-8"), flags=re.M | re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "0.08 GFLOP a slice" in done.stdout, done.stderr


def test_help_stays_instant() -> None:
    code = "import sys, embedders.running.runner; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
