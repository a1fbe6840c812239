"""BERT of a checkpoint's own size: transformers' arithmetic, its published names, and what is no such checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedders.encoders.build import build_encoder, encoder_spec
from embedders.encoders.spec import EncoderConfig
from extractors.note.read import NO_TOKEN
from extractors.note.vocabulary import Marks
from warehouse.errors import TimeloomError

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 120,
    "max_position_embeddings": 40, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip


def checkpoint(folder: Path, names: str = "now", **config: Any) -> tuple[Path, torch.nn.Module]:
    """A folder with random weights under names of transformers: now, of a pre-training checkpoint, or of old ones."""
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    model = BertModel(BertConfig(**{**SIZES, **config})).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in state.values():
        tensor.normal_(0.0, 0.2)
    model.load_state_dict(state)
    if names != "now":
        state = {f"bert.{name}": tensor for name, tensor in state.items()}
        state |= {"cls.predictions.bias": torch.zeros(120), "bert.embeddings.position_ids": torch.arange(40)[None]}
    if names == "old":
        state = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in state.items()
        }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES, **config}), encoding="utf-8")
    words = [*Marks(), *(f"word{number}" for number in range(115))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return folder, model


def config_of(folder: Path, name: str = "bert", **settings: Any) -> EncoderConfig:
    return EncoderConfig(**{"name": name, "width": 32, "weights": folder, "device": "cpu", **settings})


def windows() -> np.ndarray:
    units = np.random.default_rng(2).integers(5, 120, (5, 40)).astype(np.int32)
    for row, size in enumerate((40, 3, 17, 1, 39)):
        units[row, size:] = NO_TOKEN
    return units


def reference(model: torch.nn.Module, units: np.ndarray) -> list[np.ndarray]:
    """Each window alone and without padding, as transformers computes it."""
    found = []
    for unit in units:
        ids = torch.from_numpy(unit[unit != NO_TOKEN].astype(np.int64))[None]
        with torch.inference_mode():
            found.append(model(input_ids=ids).last_hidden_state[0].numpy())
    return found


@pytest.mark.parametrize("names", ["now", "pre-training", "old"])
def test_vectors_are_those_of_transformers(tmp_path: Path, names: str) -> None:
    folder, model = checkpoint(tmp_path / "model", names)
    units = windows()
    tokens = reference(model, units)
    expected = {"bert": [each[0] for each in tokens], "bert-mean": [each.mean(axis=0) for each in tokens]}
    for name, vectors in expected.items():
        found = build_encoder(config_of(folder, name), "note").encode(units)
        assert found.dtype == np.float32 and np.abs(found - np.stack(vectors)).max() < 1e-5


def test_a_sequence_has_every_token_and_no_padding(tmp_path: Path) -> None:
    folder, model = checkpoint(tmp_path / "model")
    units = windows()
    encoder = build_encoder(config_of(folder, output="sequence"), "note")
    counts = encoder.spec.tokens_of(units)
    assert counts is not None and counts.tolist() == [40, 3, 17, 1, 39] and encoder.vector_shape == (40, 32)
    found = encoder.encode(units)
    for vectors, count, expected in zip(found, counts, reference(model, units), strict=True):
        assert np.abs(vectors[:count] - expected).max() < 1e-5


def test_shorter_windows_have_the_same_bits(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "model")
    encoder = build_encoder(config_of(folder), "note")
    units = windows()[1:4]
    assert np.array_equal(encoder.encode(units), encoder.encode(units[:, :17]))
    assert not np.array_equal(encoder.encode(units[:1]), encoder.encode(np.where(units[:1] == NO_TOKEN, 0, units[:1])))


def test_what_a_window_is_filled_up_with_changes_nothing(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "model")
    encoder = build_encoder(config_of(folder), "note")
    prepared = encoder.spec.preprocess.apply(torch.from_numpy(windows()))
    other = prepared.clone()
    other[:, 0][other[:, 1] == 0] = 77
    assert torch.allclose(encoder.forward(prepared), encoder.forward(other), atol=1e-6)


def test_the_store_knows_weights_sizes_and_pool(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "model")
    deeper, _ = checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    specs = [
        encoder_spec(config_of(where, name, output=output), "note")
        for where, name, output in (
            (folder, "bert", "mean"), (folder, "bert-mean", "mean"), (folder, "bert", "sequence"),
            (deeper, "bert", "mean"),
        )
    ]  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    specs.append(encoder_spec(config_of(folder), "note"))
    assert len({spec.store_name for spec in specs}) == 5, "the last reads other tokens"
    assert specs[0].architecture["pool"] == "class token" and specs[1].architecture["pool"] == "mean"
    assert specs[0].preprocess.shape == (2, 40) and specs[3].architecture["num_hidden_layers"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 768}, "makes vectors of 32, not of 768"),
        ({"config.json": None}, "have no config.json"),
        ({"config.json": "["}, "have no config.json"),
        ({"config.json": {"model_type": "roberta"}}, "are of a roberta"),
        ({"config.json": {"position_embedding_type": "relative_key"}}, "a BERT with relative_key positions"),
        ({"config.json": {"num_hidden_layers": 3}}, r"16 missing: encoder\.layer\.2"),
        ({"config.json": {"vocab_size": 121}}, r"of another shape: embeddings\.word_embeddings\.weight \(120, 32\)"),
        ({"model.safetensors": None}, "is missing|not safetensors"),
        ({"model.safetensors": "pytorch_model.bin"}, "are pickled, not safetensors"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder, _ = checkpoint(tmp_path / "model")
    settings = {key: value for key, value in change.items() if "." not in key}
    for name, content in ((key, value) for key, value in change.items() if "." in key):
        if isinstance(content, dict):
            (folder / name).write_text(json.dumps({"model_type": "bert", **SIZES, **content}), encoding="utf-8")
        elif content is None:
            (folder / name).unlink()
        elif name.endswith(".json"):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            (folder / name).rename(folder / content)
    with pytest.raises(TimeloomError, match=said):
        build_encoder(config_of(folder, **settings), "note")


def test_flops_are_counted_of_the_checkpoint_s_sizes(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path / "model")
    encoder = build_encoder(config_of(folder), "note")
    linear = 40 * (4 * 32 * 32 + 2 * 32 * 64)
    attention = 2 * 40 * 40 * 32
    assert encoder.flops_per_unit == 2 * 2 * (linear + attention)


def test_the_random_stand_in_tells_texts_apart_and_is_the_same_in_each_process() -> None:
    config = EncoderConfig(name="random-bert", width=48, device="cpu")
    units = windows()
    first, second = (build_encoder(config, "note").encode(units) for _ in range(2))
    assert first.shape == (5, 48) and np.array_equal(first, second)
    changed = units.copy()
    changed[0, 9] = 5 + changed[0, 9] % 100
    other = build_encoder(config, "note").encode(changed)
    assert not np.allclose(other[0], first[0]) and np.array_equal(other[1:], first[1:])
