"""Networks of chest x-rays, from weights that the tests save, against the reference arithmetic of transformers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from embedders.encoders.build import EncoderConfig, build_encoder, check_golden, encoder_spec
from embedders.encoders.heads import transformer
from embedders.encoders.registry import NETWORKS
from embedders.inputs.cxr import CxrSpec
from tests.support.images.xrays import chest
from warehouse.errors import TimeloomError

# In `make test` alone: models of transformers take seconds to import and build.
pytestmark = pytest.mark.whole

State = dict[str, torch.Tensor]
# Two blocks of the published widths, of RAD-DINO's many patches one; the rest is as published.
FILMS = np.stack([chest(number, 300, 260) * np.uint16(15) for number in range(2)])


def small(name: str) -> dict[str, Any]:
    return {**NETWORKS[name].architecture, "num_hidden_layers": 1 if name == "rad-dino" else 2}


def filled(model: torch.nn.Module, seed: int = 3) -> State:
    """The model's tensors, drawn anew so that each of them shows in a vector."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + centre)
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def config(name: str, path: Path, **settings: Any) -> EncoderConfig:
    return EncoderConfig(name=name, width=768, weights=path, device="cpu", **settings)


def pixels_of(name: str) -> torch.Tensor:
    spec = replace(CxrSpec(), **NETWORKS[name].inputs)
    return spec.apply(torch.from_numpy(FILMS))


def rad_dino() -> tuple[State, Callable[[torch.Tensor], torch.Tensor]]:
    architecture = {**small("rad-dino"), "attn_implementation": "eager"}
    model = Dinov2Model(Dinov2Config(**architecture)).eval()
    return filled(model), lambda pixels: model(pixel_values=pixels).last_hidden_state


def vit_mae() -> tuple[State, Callable[[torch.Tensor], torch.Tensor]]:
    """The published checkpoint's own class, all of whose patches are kept, in their order."""
    shape = {key: value for key, value in small("vit-mae").items() if key != "model_type"}
    model = ViTMAEModel(ViTMAEConfig(**shape, mask_ratio=0.0, attn_implementation="eager")).eval()
    state = {f"vit.{name}": tensor for name, tensor in filled(model).items()}
    state["decoder.mask_token"] = torch.ones(1, 1, 512)
    state["decoder.decoder_embed.weight"] = torch.ones(512, 768)
    order = torch.arange(196).expand(len(FILMS), -1).float()
    return state, lambda pixels: model(pixel_values=pixels, noise=order).last_hidden_state


def biomedclip() -> tuple[State, Callable[[torch.Tensor], torch.Tensor]]:
    """Under the names of open_clip with a timm tower, beside a text tower and a projection."""
    shape = {key: value for key, value in small("biomedclip").items() if key != "model_type"}
    model = ViTModel(ViTConfig(**shape, attn_implementation="eager"), add_pooling_layer=False).eval()
    state = {f"visual.trunk.{name}": tensor for name, tensor in timm_names(filled(model)).items()}
    state["visual.head.proj.weight"] = torch.ones(512, 768)
    state["text.transformer.embeddings.word_embeddings.weight"] = torch.ones(9, 768)
    state["text.proj.0.weight"] = torch.ones(640, 768)
    state["logit_scale"] = torch.tensor(4.6)
    return state, lambda pixels: model(pixel_values=pixels).last_hidden_state


def timm_names(state: State) -> State:
    """Names of transformers as timm's, with query, key and value packed."""
    plain = {
        "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
    }  # fmt: skip
    named = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            packed = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            name, tensor = name.replace(".attention.q_proj.", ".attn.qkv."), torch.cat(packed)
        for before, after in (
            ("layers.", "blocks."), ("attention.o_proj", "attn.proj"), ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
        ):  # fmt: skip
            name = name.replace(before, after)
        named[plain.get(name, name)] = tensor.contiguous()
    return named


def older_names(state: State) -> State:
    """Names of transformers as they were before version 5, of a plain ViT."""
    named = {}
    for name, tensor in state.items():
        for before, after in (
            ("vit.layers.", "vit.encoder.layer."), ("attention.q_proj", "attention.attention.query"),
            ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
            ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):  # fmt: skip
            name = name.replace(before, after)
        named[name] = tensor
    return named


MAKERS = {"rad-dino": rad_dino, "vit-mae": vit_mae, "biomedclip": biomedclip}


@pytest.mark.parametrize(
    ("name", "count"), [("rad-dino", 86_580_480), ("vit-mae", 85_798_656), ("biomedclip", 85_798_656)]
)
def test_the_networks_have_the_published_sizes(name: str, count: int) -> None:
    with torch.device("meta"):
        model = transformer(NETWORKS[name].architecture)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", MAKERS)
def test_the_golden_vector_is_that_of_the_reference_arithmetic(name: str, tmp_path: Path) -> None:
    state, reference = MAKERS[name]()
    save_file(state, tmp_path / "model.safetensors")
    with torch.inference_mode():
        expected = reference(pixels_of(name))
    pooled = build_encoder(config(name, tmp_path), "cxr", small(name))
    tokens = build_encoder(config(name, tmp_path, output="sequence"), "cxr", small(name))
    number = {"rad-dino": 1 + 37 * 37}.get(name, 197)
    assert tokens.spec.vector_shape == (number, 768) == expected.shape[1:] and pooled.spec.vector_shape == (768,)
    largest = float(expected.abs().max())
    assert np.abs(pooled.encode(FILMS) - expected[:, 0].numpy()).max() < 2e-6 * largest
    rows = tokens.encode(FILMS)
    assert np.abs(rows - expected.numpy()).max() < 2e-6 * largest
    assert pooled.spec.store_name != tokens.spec.store_name and pooled.figures.flops_per_unit > 1e9


def test_the_golden_record_of_tokens_is_short_and_found_again(tmp_path: Path) -> None:
    save_file(vit_mae()[0], tmp_path / "model.safetensors")
    encoder = build_encoder(config("vit-mae", tmp_path, output="sequence"), "cxr", small("vit-mae"))
    assert check_golden(encoder, tmp_path / "store").recorded and check_golden(encoder, tmp_path / "store").exact
    assert len(json.loads((tmp_path / "store" / "encoder.json").read_text())["vectors"][0]) == 768


def test_vit_mae_loads_under_its_older_and_its_authors_names(tmp_path: Path) -> None:
    state, _ = vit_mae()
    authors = timm_names({name.removeprefix("vit."): part for name, part in state.items() if name.startswith("vit.")})
    authors |= {"mask_token": torch.ones(1, 1, 512), "decoder_pos_embed": torch.ones(1, 197, 512),
                "decoder_blocks.0.norm1.weight": torch.ones(512)}  # fmt: skip
    vectors = []
    for number, named in enumerate((state, older_names(state), authors)):
        save_file(named, tmp_path / f"{number}.safetensors")
        encoder = build_encoder(config("vit-mae", tmp_path / f"{number}.safetensors"), "cxr", small("vit-mae"))
        vectors.append(encoder.encode(FILMS))
    assert np.array_equal(vectors[0], vectors[1]) and np.array_equal(vectors[0], vectors[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.trunk.norm.bias"), r"1 missing: layernorm\.bias"),
        (lambda state: state.update({"visual.trunk.head.weight": torch.ones(3)}), r"1 unexpected: head\.weight"),
        (lambda state: state.update({"visual.trunk.norm.bias": torch.ones(7)}), r"another shape: layernorm\.bias"),
        (lambda state: state.update({"visual.trunk.norm.bias": torch.full((768,), torch.nan)}), "not finite"),
        (
            lambda state: state.update({"visual.trunk.blocks.0.ls1.gamma": torch.ones(768)}),
            "1 unexpected: layers.0.ls1",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    state, _ = biomedclip()
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(TimeloomError, match=message) as caught:
        build_encoder(config("biomedclip", tmp_path), "cxr", small("biomedclip"))
    assert "\n" not in str(caught.value)


def test_each_network_has_its_own_input_and_another_store(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    specs = {name: encoder_spec(config(name, tmp_path / "a.safetensors"), "cxr").preprocess for name in MAKERS}
    assert specs["rad-dino"] == CxrSpec(side=518, mean=(0.5307,) * 3, std=(0.2583,) * 3)
    assert specs["vit-mae"] == CxrSpec()
    assert specs["biomedclip"].side == 224 and specs["biomedclip"] != CxrSpec()
    with pytest.raises(ValidationError, match="makes vectors of 768"):
        EncoderConfig(name="rad-dino", width=1024, weights=tmp_path)


@pytest.mark.parametrize("shape", [(300, 260), (260, 300), (224, 224), (2000, 900)])
def test_the_input_is_the_publishers_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    """The shorter side becomes 224 by Pillow's bicubic filter, which is torch's up to its rounding to bytes."""
    grey = (chest(1, *shape) >> 4).astype(np.uint8)
    made = CxrSpec(mean=(0.0,) * 3, std=(1.0,) * 3).apply(torch.from_numpy(grey[None] * np.uint16(257)))
    rows, columns = shape
    size = (224 * columns // min(shape), 224 * rows // min(shape))
    resized = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(np.float32) / 255
    assert made.shape == (1, 3, 224, 224) and torch.equal(made[0, 0], made[0, 2])
    assert np.abs(made[0, 0].numpy() - expected).max() < 2 / 255


def test_padding_shows_all_of_a_film() -> None:
    film = torch.full((1, 400, 200), 65_535, dtype=torch.uint16)
    made = CxrSpec(fit="pad", mean=(0.0,) * 3, std=(1.0,) * 3).apply(film)[0, 0]
    assert float(made[:, :50].max()) < 0.01 and float(made[:, 60:160].min()) > 0.99
    with pytest.raises(ValueError, match="x-rays are"):
        CxrSpec().apply(torch.zeros((1, 3, 224, 224)))
