"""Attention over packs: what a packed batch computes is what each segment alone computes."""

import pytest
import torch
from releases import fabricate, markov_timelines

from warehouse import Release

CONTEXT = 64


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return Release.open(fabricate(tmp_path_factory.mktemp("attention") / "root", markov_timelines(60, seed=3), CONTEXT))


def train(release, **options):
    return release.shards("mehrt", split="train", **{"seed": 7, "vectors": False, **options})


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
