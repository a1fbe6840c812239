"""Attention over packs: what a packed batch computes is what each segment alone computes."""

from itertools import pairwise

import pytest
import torch

from tests.support.tokens.markov import CONTEXT, fabricate, markov_timelines, train
from warehouse import Release
from warehouse.readers.attention import block_diagonal, flex_mask, varlen


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return Release.open(fabricate(tmp_path_factory.mktemp("attention") / "root", markov_timelines(60, seed=3), CONTEXT))


@pytest.mark.whole
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_of_a_packed_batch_equal_those_of_the_segments_alone(release, attention):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        attn_implementation=attention,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    batch = next(iter(train(release).batches(24)))
    assert batch.n_segments > len(batch)
    with torch.no_grad():
        packed = model(**batch).logits
        leaking = model(
            batch.input_ids, position_ids=batch.position_ids, attention_mask=(batch.segment_ids >= 0)
        ).logits
        worst, leak = 0.0, 0.0
        for row in range(len(batch)):
            for segment in range(int(batch.segments_per_pack[row])):
                where = batch.segment_ids[row] == segment
                alone = model(batch.input_ids[row, where][None]).logits[0]
                worst = max(worst, float((packed[row, where] - alone).abs().max()))
                leak = max(leak, float((leaking[row, where] - alone).abs().max()))
    assert worst < 1e-5
    assert leak > 1e-3
    assert torch.isfinite(packed).all()


class Tiny(torch.nn.Module):
    """One layer of plain torch whose attention is given."""

    def __init__(self, vocabulary=64, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = torch.nn.Embedding(vocabulary, width)
        self.place = torch.nn.Embedding(CONTEXT, width)
        self.into = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, vocabulary)

    def forward(self, ids, positions, attend):
        hidden = self.embed(ids) + self.place(positions)
        query, key, value = self.into(hidden).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return self.out(hidden + attend(query, key, value).flatten(-2))


def alone(query, key, value):
    heads_first = (tensor.transpose(0, 1) for tensor in (query, key, value))
    scores = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
    return scores.transpose(0, 1)


@pytest.mark.whole
def test_dense_varlen_and_flex_attention_are_each_segment_s_own(release):
    torch.manual_seed(0)
    model, batch = Tiny().eval(), next(iter(train(release, fields="segments").batches(24)))
    real, bounds = batch.real, batch.cu_seqlens.tolist()

    def dense(query, key, value):
        rows = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return block_diagonal(*rows, batch).transpose(1, 2)

    def flat(query, key, value):
        return varlen(query, key, value, batch.cu_seqlens)

    def flex(query, key, value):
        from torch.nn.attention.flex_attention import flex_attention

        rows = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return flex_attention(*rows, block_mask=flex_mask(batch)).transpose(1, 2)

    with torch.no_grad():
        ids, positions = batch.input_ids[real], batch.position_ids[real]
        parts = [model(ids[first:last], positions[first:last], alone) for first, last in pairwise(bounds)]
        expected = torch.cat(parts)
        results = {
            "dense": model(batch.input_ids, batch.position_ids, dense)[real],
            "varlen": model(ids, positions, flat),
            "flex": model(batch.input_ids, batch.position_ids, flex)[real],
        }
        leaking = model(ids, positions, alone)
    for name, logits in results.items():
        assert float((logits - expected).abs().max()) < 1e-5, name
    assert float((leaking - expected).abs().max()) > 1e-2


def test_transformers_find_the_segments_of_a_flat_batch(release):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    batch = next(iter(train(release).batches(24)))
    flat = batch.flat()
    with torch.no_grad():
        packed = model(**batch)
        row = model(**{name: flat[name] for name in ("input_ids", "labels", "position_ids", "use_cache")})
    assert float((packed.logits[batch.real] - row.logits[0]).abs().max()) < 1e-5
    assert abs(float(packed.loss - row.loss)) < 1e-4
