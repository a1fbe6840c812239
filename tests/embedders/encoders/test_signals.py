"""Networks of signals: against their published arithmetic, written out here in plain torch, from weights made here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from embedders.encoders.build import EncoderConfig, build_encoder, check_golden
from embedders.encoders.csfm import Csfm
from embedders.encoders.ecg_fm import EcgFm
from embedders.encoders.encoder import Encoder
from embedders.encoders.flops import flops_per_unit
from embedders.encoders.registry import NETWORKS
from embedders.encoders.signals import EcgVit
from embedders.encoders.spec import preprocess_of
from embedders.inputs.ecg import EcgSpec
from tests.support.ecg import LEADS, heart
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file

# In `make test` alone: networks of the published width take seconds each.
pytestmark = pytest.mark.whole

State = dict[str, torch.Tensor]
# Small networks of the published classes; their widths are the published ones, as configurations ask for these.
SMALL: dict[str, dict[str, Any]] = {
    "ecg-vit-s": {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6, "patch_size": 500},
    "ecg-fm": {
        "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12, "ffn_size": 96,
        "conv_layers": [[32, 2, 2]] * 4, "conv_pos": 16, "conv_pos_groups": 16,
    },
    "csfm-tiny": {
        "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 3, "ffn_size": 64, "patch_size": 250,
    },
}  # fmt: skip
CLASSES: dict[str, Any] = {"ecg-vit-s": EcgVit, "ecg-fm": EcgFm, "csfm-tiny": Csfm}


def drawn(name: str, seed: int = 1) -> State:
    """Weights of a small network, far enough from nothing that every one of them counts."""
    shape = preprocess_of(name, "ecg").shape
    generator = torch.Generator().manual_seed(seed)
    shapes = CLASSES[name](SMALL[name], shape).state_dict()
    return {key: 0.2 * torch.randn(value.shape, generator=generator) for key, value in shapes.items()}


def signal(name: str, seconds: float, count: int = 3) -> np.ndarray:
    """(count, 12, n) millivolts as a network's reader gives them."""
    rate = preprocess_of(name, "ecg").rate  # type: ignore[attr-defined]
    return np.stack([np.stack([heart(seconds, rate, seed)[lead] for lead in LEADS]) for seed in range(count)]).astype(
        np.float32
    )


def encoder_of(name: str, folder: Path, state: State | None = None, **settings: Any) -> Encoder:
    weights = folder / f"{len([*folder.iterdir()])}.safetensors"  # a file's hash is computed once in a process
    save_file(drawn(name) if state is None else state, weights)
    config = EncoderConfig(name=name, width=SMALL[name]["hidden_size"], weights=weights, device="cpu", **settings)
    return build_encoder(config, "ecg", SMALL[name])


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Softmax of products over the root of a head's width, head by head."""
    made = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        made.append(torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v)
    return torch.cat(made, dim=-1)


def vit(state: State, leads: torch.Tensor) -> torch.Tensor:
    """(n, 12, samples) to the class token and patches: timm's vision transformer, torch's own layers."""
    sizes = SMALL["ecg-vit-s"]
    width, patch, heads = sizes["hidden_size"], sizes["patch_size"], sizes["num_attention_heads"]
    patches = leads.reshape(len(leads), 12, -1, patch).permute(0, 2, 1, 3).flatten(2)
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(len(tokens), -1, -1), tokens], 1)
    tokens = tokens + state["pos_embed"][:, : tokens.shape[1]]
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True)
    for number in range(sizes["num_hidden_layers"]):
        at = f"blocks.{number}."
        names = {
            "self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias": "attn.qkv.bias",
            "self_attn.out_proj.weight": "attn.proj.weight", "self_attn.out_proj.bias": "attn.proj.bias",
            "linear1.weight": "mlp.fc1.weight", "linear1.bias": "mlp.fc1.bias", "linear2.weight": "mlp.fc2.weight",
            "linear2.bias": "mlp.fc2.bias", "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias",
            "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
        }  # fmt: skip
        layer.load_state_dict({theirs: state[at + ours] for theirs, ours in names.items()})
        tokens = layer.eval()(tokens)
    return functional.layer_norm(tokens, (width,), state["norm.weight"], state["norm.bias"], 1e-6)


def standardised(leads: torch.Tensor) -> torch.Tensor:
    return (leads - leads.mean(2, keepdim=True)) / leads.std(2, keepdim=True, correction=0)


def ecg_fm(state: State, leads: torch.Tensor) -> torch.Tensor:
    """fairseq's wav2vec 2.0 with its convolutions' first group norm, positions by convolution, and post-norm blocks."""
    sizes = SMALL["ecg-fm"]
    width = sizes["hidden_size"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x = leads
    for number, (channels, _, stride) in enumerate(sizes["conv_layers"]):
        at = f"feature_extractor.conv_layers.{number}"
        x = functional.conv1d(x, state[f"{at}.0.weight"], stride=stride)
        if number == 0:
            x = functional.group_norm(x, channels, state[f"{at}.2.weight"], state[f"{at}.2.bias"])
        x = functional.gelu(x)
    x = linear(norm(x.transpose(1, 2), "layer_norm"), "post_extract_proj")
    at = "conv_pos.pos_conv.0"
    direction = state[f"{at}.weight_v"]
    weight = direction / direction.pow(2).sum((0, 1), keepdim=True).sqrt() * state[f"{at}.weight_g"]
    reach, groups = sizes["conv_pos"], sizes["conv_pos_groups"]
    placed = functional.conv1d(x.transpose(1, 2), weight, state[f"{at}.bias"], padding=reach // 2, groups=groups)
    x = norm(x + functional.gelu(placed[..., :-1]).transpose(1, 2), "encoder.layer_norm")
    for number in range(sizes["num_hidden_layers"]):
        at = f"encoder.layers.{number}"
        query, key, value = (linear(x, f"{at}.self_attn.{letter}_proj") for letter in "qkv")
        mixed = attention(query, key, value, sizes["num_attention_heads"])
        x = norm(x + linear(mixed, f"{at}.self_attn.out_proj"), f"{at}.self_attn_layer_norm")
        x = norm(x + linear(functional.gelu(linear(x, f"{at}.fc1")), f"{at}.fc2"), f"{at}.final_layer_norm")
    assert x.shape[-1] == width
    return x


def csfm(state: State, leads: torch.Tensor) -> torch.Tensor:
    """CSFM's class token and patches, lead by lead: every lead's patches with their place and their lead."""
    sizes = SMALL["csfm-tiny"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    patches = norm(leads.reshape(len(leads), 12, -1, sizes["patch_size"]), "ts_to_patch_embedding.1")
    at = "ts_to_patch_embedding"
    x = norm(patches @ state[f"{at}.2.weight"].T + state[f"{at}.2.bias"], f"{at}.3")
    parts = []
    for lead in range(12):
        parts.append(x[:, lead] + state["ts_channel_type_embedding"][:, lead] + state["ts_pos_embedding"][0])
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), *parts], dim=1)
    for number in range(sizes["num_hidden_layers"]):
        at = f"transformer.layers.{number}"
        query, key, value = (norm(x, f"{at}.0.norm") @ state[f"{at}.0.to_qkv.weight"].T).chunk(3, -1)
        mixed = attention(query, key, value, sizes["num_attention_heads"])
        x = x + mixed @ state[f"{at}.0.to_out.0.weight"].T + state[f"{at}.0.to_out.0.bias"]
        inner = norm(x, f"{at}.1.net.0") @ state[f"{at}.1.net.1.weight"].T + state[f"{at}.1.net.1.bias"]
        x = x + functional.gelu(inner) @ state[f"{at}.1.net.4.weight"].T + state[f"{at}.1.net.4.bias"]
    return norm(x, "transformer.norm")


def expected(name: str, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pooled vectors and the sequences that a network publishes."""
    state, raw = drawn(name), torch.from_numpy(leads)
    with torch.no_grad():
        if name == "ecg-vit-s":
            tokens = vit(state, raw)
            return tokens[:, 0].numpy(), tokens[:, 1:].numpy()
        if name == "ecg-fm":
            tokens = ecg_fm(state, standardised(raw))
            return tokens.mean(1).numpy(), tokens.numpy()
        tokens = csfm(state, standardised(raw))
        by_time = [tokens[:, 1 + 10 * lead + place] for place in range(10) for lead in range(12)]
        return tokens[:, 0].numpy(), torch.stack(by_time, dim=1).numpy()


@pytest.mark.parametrize("name", SMALL)
def test_vectors_are_those_of_the_published_arithmetic(name: str, tmp_path: Path) -> None:
    leads = signal(name, preprocess_of(name, "ecg").seconds)  # type: ignore[attr-defined]
    pooled, sequence = expected(name, leads)
    encoder = encoder_of(name, tmp_path)
    vectors = encoder.encode(leads)
    assert np.abs(vectors - pooled).max() < 1e-5 * np.abs(pooled).max()
    assert encoder.spec.weights_sha256 == sha256_file(tmp_path / "0.safetensors")
    tokens = encoder_of(name, tmp_path, output="sequence").encode(leads)
    assert tokens.shape == sequence.shape
    assert np.abs(tokens - sequence).max() < 1e-5 * np.abs(sequence).max()


@pytest.mark.parametrize("name", SMALL)
def test_what_fills_up_a_short_signal_is_attended_by_nobody(name: str, tmp_path: Path) -> None:
    seconds = preprocess_of(name, "ecg").seconds  # type: ignore[attr-defined]
    leads = signal(name, 0.6 * seconds)
    encoder = encoder_of(name, tmp_path, output="sequence")
    counts = encoder.spec.tokens_of(leads)
    whole = encoder.vector_shape[0]
    assert counts is not None and set(counts) == {int(0.6 * whole)}
    short = encoder.encode(leads)[:, : counts[0]]
    assert np.isfinite(short).all()
    _, alone = expected(name, leads) if name == "ecg-vit-s" else (None, short)  # the others mix or norm over time
    assert np.abs(short - alone).max() < 1e-5 * np.abs(alone).max()


@pytest.mark.parametrize("output", ["mean", "sequence"])
@pytest.mark.parametrize("name", SMALL)
def test_golden_vectors_are_recorded_and_the_same_again(name: str, output: str, tmp_path: Path) -> None:
    encoder = encoder_of(name, tmp_path, output=output)
    assert check_golden(encoder, tmp_path).recorded
    again = check_golden(encoder_of(name, tmp_path, output=output), tmp_path)
    assert again.exact and again.batch_invariant
    changed = drawn(name)
    changed[next(iter(changed))] += 0.1
    with pytest.raises(TimeloomError, match="belongs to another encoder"):
        check_golden(encoder_of(name, tmp_path, changed, output=output), tmp_path)


@pytest.mark.parametrize("name", SMALL)
def test_weights_that_do_not_fit_are_named(name: str, tmp_path: Path) -> None:
    state = drawn(name)
    lost = sorted(state)[-1]
    del state[lost]
    with pytest.raises(TimeloomError, match=f"1 missing: {lost}"):
        encoder_of(name, tmp_path, state)
    with pytest.raises(TimeloomError, match="1 unexpected: stranger"):
        encoder_of(name, tmp_path, drawn(name) | {"stranger": torch.zeros(1)})


def test_ecg_fm_takes_checkpoints_of_both_stages_and_both_namings(tmp_path: Path) -> None:
    leads = signal("ecg-fm", 5.0, 1)
    plain = encoder_of("ecg-fm", tmp_path).encode(leads)
    state = drawn("ecg-fm")
    newer = {
        key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }
    pretrained = newer | {
        "mask_emb": torch.ones(768),
        "quantizer.vars": torch.ones(1),
        "final_proj.weight": torch.ones(1),
    }
    tuned = {f"encoder.{key}": value for key, value in state.items()} | {"proj.weight": torch.ones(3, 768)}
    for other in (pretrained, tuned):
        np.testing.assert_array_equal(encoder_of("ecg-fm", tmp_path, other).encode(leads), plain)


def test_csfm_leaves_its_text_and_its_classifier(tmp_path: Path) -> None:
    leads = signal("csfm-tiny", 10.0, 1)
    plain = encoder_of("csfm-tiny", tmp_path).encode(leads)
    beside = {"mlp_head.weight": torch.ones(1, 768), "text_pos_embedding": torch.ones(1, 64, 768)}
    published = {f"encoder.{key}": value for key, value in (drawn("csfm-tiny") | beside).items()}
    np.testing.assert_array_equal(encoder_of("csfm-tiny", tmp_path, published).encode(leads), plain)


def test_published_sizes_and_flops() -> None:
    counts, flops = {}, {}
    for name in ("ecg-vit-b", "ecg-fm", "csfm-base"):
        network, shape = NETWORKS[name], preprocess_of(name, "ecg").shape
        with torch.device("meta"):
            model = network.without_weights(network.architecture, shape)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
        flops[name] = flops_per_unit(name, network.architecture, shape)
    # ECG-FM's card says 90.9 million, half a million of them of its pre-training.
    assert counts == {"ecg-vit-b": 85_595_904, "ecg-fm": 90_373_248, "csfm-base": 85_137_458}
    tokens, width = 101, 768
    a_layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    assert flops["ecg-vit-b"] == 12 * a_layer + 2 * 100 * 50 * 12 * width


def test_the_input_is_of_the_encoders_length_and_says_where_signal_is() -> None:
    leads = torch.from_numpy(signal("ecg-vit-s", 6.0, 2))
    made = EcgSpec().apply(leads)
    assert made.shape == (2, 13, 5000)
    assert torch.equal(made[:, :12, :3000], leads) and not made[:, :, 3000:].any() and (made[:, 12, :3000] == 1).all()
    flat = leads.clone()
    flat[0, 3] = 0.7
    standard = EcgSpec(standardise=True).apply(flat)
    assert standard.isfinite().all() and not standard[0, 3].any()  # 0/0 for a lead without any swing
    kept = standard[:, :12, :3000]
    assert kept[1].mean(dim=1).abs().max() < 1e-4 and (kept[1].std(dim=1, correction=0) - 1).abs().max() < 1e-4
    for wrong in (torch.zeros(1, 8, 5000), torch.zeros(1, 12, 5001), torch.zeros(12, 5000), torch.zeros(1, 12, 0)):
        with pytest.raises(ValueError, match="windows are"):
            EcgSpec().apply(wrong)


def test_an_encoder_of_images_is_refused_in_one_line() -> None:
    with pytest.raises(TimeloomError, match="random-dinov2 takes images, and units of ecg are signals"):
        build_encoder(EncoderConfig(name="random-dinov2", width=8, device="cpu"), "ecg")
