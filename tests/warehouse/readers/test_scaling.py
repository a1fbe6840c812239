"""The accounts of a scaling study, against a model that is built."""

import pytest
import torch

from warehouse.readers.scaling import Parameters, flops, parameters


@pytest.mark.parametrize(("width", "layers", "vocabulary", "tied"), [(64, 2, 500, True), (128, 3, 77, False)])
def test_parameters_are_those_of_a_gpt(width: int, layers: int, vocabulary: int, tied: bool) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=width, n_layer=layers, n_head=4, vocab_size=vocabulary, n_positions=16, tie_word_embeddings=tied
    )
    model = GPT2LMHeadModel(config)
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2 and "wpe" not in name}
    embedding = sum(weight.numel() for name, weight in matrices.items() if "wte" in name or "lm_head" in name)
    total = sum(weight.numel() for weight in matrices.values())
    assert parameters(width, layers, vocabulary, tied) == Parameters(total - embedding, embedding)
    assert parameters(width, layers, vocabulary, tied).total == total


def test_compute_is_six_n_d_of_a_linear_layer() -> None:
    """Counted by torch on one matrix: 2 N D forward, 4 N D backward."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.Linear(32, 48, bias=False)
    tokens = torch.randn(10, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(tokens).sum().backward()
    assert counter.get_total_flops() == flops(32 * 48, 10)
