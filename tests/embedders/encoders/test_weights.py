"""Checkpoints under their publishers' names, against their publishers' arithmetic written out here in plain torch."""

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.nn import functional

from embedders.convert_weights import convert
from embedders.encoders import weights
from embedders.encoders.build import EncoderConfig, build_encoder
from embedders.encoders.heads import dinov2
from embedders.encoders.tensor_names import resampled
from embedders.encoders.weights import load_weights
from warehouse.errors import TimeloomError

State = dict[str, torch.Tensor]
WIDTH, HEADS, BLOCKS, PATCH, HIDDEN = 48, 3, 3, 8, 4 * 48
GATED_HIDDEN = (int(HIDDEN * 2 / 3) + 7) // 8 * 8
PLAIN = {
    "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "patch_size": PATCH,
    "image_size": 32,
}  # fmt: skip
GATED = {**PLAIN, "use_swiglu_ffn": True}
KINDS = ["dinov2", "dinov2-gated", "timm", "timm-gated"]
HIDDEN_NAMES = {"dinov2": ("fc1", "fc2"), "dinov2-gated": ("w12", "w3"), "timm": ("fc1", "fc2")}


def names_of(kind: str) -> tuple[str, str]:
    return HIDDEN_NAMES.get(kind, ("fc1", "fc2"))


def published(kind: str, grid: int = 4) -> State:
    """Random weights under the names and in the shapes that `kind` publishes."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int, scale: float = 0.3, centre: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale + centre

    into, out = names_of(kind)
    rows, hidden = (2 * GATED_HIDDEN, GATED_HIDDEN) if kind.endswith("gated") else (HIDDEN, HIDDEN)
    state = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + grid * grid, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": draw(WIDTH, centre=1.0),
        "norm.bias": draw(WIDTH),
    }
    if kind.startswith("dinov2"):
        state["mask_token"] = draw(1, WIDTH)
    for block in range(BLOCKS):
        for name, shape in (
            ("attn.qkv", (3 * WIDTH, WIDTH)),
            ("attn.proj", (WIDTH, WIDTH)),
            (f"mlp.{into}", (rows, WIDTH)),
            (f"mlp.{out}", (WIDTH, hidden)),
        ):
            state[f"blocks.{block}.{name}.weight"] = draw(*shape, scale=0.15)
            state[f"blocks.{block}.{name}.bias"] = draw(shape[0])
        for norm in ("norm1", "norm2"):
            state[f"blocks.{block}.{norm}.weight"] = draw(WIDTH, centre=1.0)
            state[f"blocks.{block}.{norm}.bias"] = draw(WIDTH)
        for scale in ("ls1", "ls2"):
            state[f"blocks.{block}.{scale}.gamma"] = draw(WIDTH)
    return state


def original(state: State, kind: str, images: torch.Tensor) -> torch.Tensor:
    """The published forward pass: pre-norm blocks, packed qkv, LayerScale, GELU or silu(gate) * value, eps 1e-6."""
    into, out = names_of(kind)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    x = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    count = x.shape[1]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + original_positions(state["pos_embed"], count)
    n, tokens, _ = x.shape
    for block in range(BLOCKS):
        prefix = f"blocks.{block}"
        qkv = linear(norm(x, f"{prefix}.norm1"), f"{prefix}.attn.qkv")
        q, k, v = qkv.reshape(n, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = ((q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).reshape(n, tokens, WIDTH)
        x = x + linear(mixed, f"{prefix}.attn.proj") * state[f"{prefix}.ls1.gamma"]
        hidden = linear(norm(x, f"{prefix}.norm2"), f"{prefix}.mlp.{into}")
        if kind.endswith("gated"):
            gate, value = hidden.chunk(2, dim=-1)
            hidden = functional.silu(gate) * value
        else:
            hidden = functional.gelu(hidden)
        x = x + linear(hidden, f"{prefix}.mlp.{out}") * state[f"{prefix}.ls2.gamma"]
    return norm(x, "norm")[:, 0]


def original_positions(positions: torch.Tensor, count: int) -> torch.Tensor:
    """dinov2's interpolate_pos_encoding with its published interpolate_offset of 0.1."""
    if positions.shape[1] - 1 == count:
        return positions
    side, wanted = int(math.sqrt(positions.shape[1] - 1)), int(math.sqrt(count))
    scale = float(wanted + 0.1) / side
    grid = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, mode="bicubic", antialias=False, scale_factor=(scale, scale))
    assert grid.shape[-1] == wanted
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, count, -1).to(positions)], dim=1)


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ours(state: State, kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Class tokens of the transformers model that our loader fills."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "published.safetensors")
    with torch.device("meta"):
        model = dinov2(GATED if kind.endswith("gated") else PLAIN)
    load_weights(model, folder / "published.safetensors")
    with torch.inference_mode():
        tokens: torch.Tensor = model.eval().to(dtype)(pixel_values=IMAGES.to(dtype)).last_hidden_state
    return tokens[:, 0]


def error(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max())


@pytest.mark.whole
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [4, 7])
def test_vectors_are_those_of_the_original_arithmetic(tmp_path: Path, kind: str, grid: int) -> None:
    state = published(kind, grid)
    assert error(ours(state, kind, tmp_path), original(state, kind, IMAGES)) <= 1e-6
    exact = original({name: tensor.double() for name, tensor in state.items()}, kind, IMAGES.double())
    tolerance = 1e-12 if grid == 4 else 1e-6  # resampled positions are float32
    assert error(ours(state, kind, tmp_path, torch.float64), exact) <= tolerance


def halves_swapped(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def thirds_turned(tensor: torch.Tensor) -> torch.Tensor:
    query, key, value = tensor.chunk(3)
    return torch.cat([key, value, query])


@pytest.mark.parametrize(
    ("kind", "names", "change"),
    [
        ("timm-gated", ".mlp.fc1.", halves_swapped),
        ("dinov2-gated", ".mlp.w12.", halves_swapped),
        ("timm", ".attn.qkv.", thirds_turned),
        ("dinov2", ".ls1.gamma", torch.ones_like),
        ("dinov2", ".ls2.gamma", torch.ones_like),
        ("timm", "norm1.bias", torch.zeros_like),
    ],
)
def test_the_comparison_sees_each_mistake(
    tmp_path: Path, kind: str, names: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = published(kind)
    wrong = {name: change(tensor) if names in name else tensor for name, tensor in state.items()}
    assert error(ours(wrong, kind, tmp_path), original(state, kind, IMAGES)) > 1e-3


def test_blocks_in_chunks_load_alike(tmp_path: Path) -> None:
    state = published("dinov2")
    chunked = {name.replace("blocks.", f"blocks.{int(name[7]) // 2}.") if "blocks." in name else name: tensor
               for name, tensor in state.items()}  # fmt: skip
    assert "blocks.1.2.attn.qkv.weight" in chunked
    assert torch.equal(ours(chunked, "dinov2", tmp_path), ours(state, "dinov2", tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.ls1.gamma"), r"1 missing: encoder\.layer\.1\.layer_scale1\.lambda1"),
        (lambda s: s.update(register_tokens=torch.zeros(1, 4, WIDTH)), "register tokens"),
        (lambda s: s.update(reg_token=torch.zeros(1, 4, WIDTH)), "register tokens"),
        (lambda s: s.update({"fc_norm.weight": torch.zeros(WIDTH)}), r"1 unexpected: fc_norm\.weight"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 8, WIDTH)), r"position_embeddings \(1, 8, 48\) instead of"),
        (lambda s: s.update(pos_embed=torch.zeros(17, WIDTH)), r"position_embeddings \(17, 48\) instead of"),
        (lambda s: s.update({"blocks.0.attn.qkv.bias": torch.zeros(7)}), r"unexpected: .*attn\.qkv\.bias"),
        (lambda s: s.update({"blocks.0.attn.qkv.bias": torch.tensor(1.0)}), r"unexpected: .*attn\.qkv\.bias"),
        (
            lambda s: s.update({"layernorm.bias": s["norm.bias"] + 1}),
            r"\(1 given under two names: layernorm\.bias\)",
        ),
        (
            lambda s: s.update({name: (tensor * 10).to(torch.int8) for name, tensor in s.items()}),
            r"of no floating type: \S+ \(int8\)",
        ),
        (
            lambda s: s.update({"norm.bias": s["norm.bias"].to(torch.complex64)}),
            r"1 of no floating type: layernorm\.bias \(complex64\)",
        ),
        (lambda s: s["norm.bias"].__setitem__(3, torch.nan), r"1 not finite: layernorm\.bias"),
        (
            lambda s: s.update({"norm.bias": s["norm.bias"].to(torch.float64) + 1e300}),
            r"1 not finite: layernorm\.bias",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_one_line(tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    state = published("dinov2")
    change(state)
    with pytest.raises(TimeloomError, match=message) as caught:
        ours(state, "dinov2", tmp_path)
    assert "\n" not in str(caught.value) and caught.value.remedy


def test_a_plain_checkpoint_does_not_fit_a_gated_model(tmp_path: Path) -> None:
    with pytest.raises(TimeloomError, match="do not fit"):
        ours(published("dinov2"), "dinov2-gated", tmp_path)


def test_positions_stay_where_the_grid_is_the_same() -> None:
    positions = torch.randn(1, 17, 8)
    assert resampled(positions, 4) is positions
    assert resampled(positions, 6).shape == (1, 37, 8) and torch.equal(resampled(positions, 6)[:, 0], positions[:, 0])


@pytest.mark.whole
def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    architecture = {**PLAIN, "hidden_size": 1024, "num_hidden_layers": 1, "patch_size": 112, "image_size": 224}
    state = dinov2(architecture).state_dict()
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}
                | {"dino_head.weight": torch.zeros(2)}, "iteration": 5}, tmp_path / "pretrain.pth")  # fmt: skip
    config = EncoderConfig(name="dinov2-vitl14", width=1024, weights=tmp_path / "pretrain.pth", device="cpu")
    with pytest.raises(TimeloomError, match=r"pickled.*python -m embedders\.convert_weights pretrain\.pth"):
        build_encoder(config, "ct", architecture)
    target = tmp_path / "converted.safetensors"
    command = [sys.executable, "-m", "embedders.convert_weights", str(tmp_path / "pretrain.pth"), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0 and f"{len(state)} tensors, 1 left out" in done.stdout, done.stderr
    converted = load_file(target)
    assert converted.keys() == state.keys() and all(torch.equal(converted[name], state[name]) for name in state)
    build_encoder(config.model_copy(update={"weights": target}), "ct", architecture)


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Code()), "could run code"),
        (b"", "no weights"),
        (b"garbage", "no weights"),
        (None, "cannot read"),
        ({"epoch": 3}, "no tensors by name"),
    ],
)
def test_what_is_no_weights_is_not_converted(
    tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(TimeloomError, match=message):
        convert(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists() and "run" not in capsys.readouterr().out


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(**changes: Any) -> EncoderConfig:
    values = {
        "name": "dinov2-vitl14",
        "width": 1024,
        "hub_id": "some/model",
        "revision": COMMIT,
        "allow_download": True,
    }
    return EncoderConfig.model_validate(values | changes)


@pytest.mark.parametrize(
    "changes", [{"allow_download": False}, {"revision": None}, {"revision": "main"}, {"hub_id": "../x/y"},
                {"weights": "x.safetensors"}, {"name": "random-dinov2"}]
)  # fmt: skip
def test_the_hub_needs_leave_and_a_fixed_commit(changes: dict[str, Any]) -> None:
    hub()
    with pytest.raises(ValidationError):
        hub(**changes)


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    weights.hub_snapshot.cache_clear()
    with pytest.raises(TimeloomError, match="the hub does not give some/model at 0123456789ab") as caught:
        build_encoder(hub(device="cpu"), "ct")
    assert "\n" not in str(caught.value) and "set `weights`" in str(caught.value)


def test_a_hubs_checkpoint_is_used_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, bool]] = []

    def download(name: str, *, revision: str, allow_patterns: list[str], local_files_only: bool) -> str:
        asked.append((name, revision, local_files_only))
        if local_files_only:
            raise FileNotFoundError
        assert not any("bin" in pattern or "pth" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    weights.hub_snapshot.cache_clear()
    assert hub().checkpoint() == tmp_path and hub().checkpoint() == tmp_path
    assert asked == [("some/model", COMMIT, True), ("some/model", COMMIT, False)]
    weights.hub_snapshot.cache_clear()
