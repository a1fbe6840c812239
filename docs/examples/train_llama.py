"""Trains a two-layer Llama on a release's shards, images included, and compares it with a unigram model.

    python docs/examples/train_llama.py ROOT [--profile mehrt] [--steps 300] [--shuffle-within]

The recipe is MEHRT's: an image's place in the sequence holds W·vector, one trainable W per modality; the loss is on
structured tokens only; packed subjects do not see each other. `--shuffle-within` permutes the tokens of every
sequence: a control in which order carries nothing. The last line printed is JSON.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from warehouse import Release
from warehouse.batches import Batch
from warehouse.errors import TimeloomError

ROW_TOKENS = 256
ROWS_A_STEP = 8
PACKS_A_BATCH = 16


@dataclass
class Rows:
    """R rows of at most 256 tokens, cut from a batch; `images` is modality to (places (n, 2), vectors (n, d))."""

    ids: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    images: dict[str, tuple[Tensor, Tensor]]


def permuted(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ids, labels and image places with the tokens of each segment in random order, segments where they were."""
    rows, length = batch.input_ids.shape
    segment = torch.where(batch.segment_ids < 0, length, batch.segment_ids).double()
    # Sorting by segment + noise in [0, 1) shuffles within segments; padding sorts behind them all.
    order = (segment + torch.rand(rows, length, generator=generator, dtype=torch.float64)).argsort(1)
    arrived = order.argsort(1)
    ids, targets = batch.input_ids.gather(1, order), batch.loss_mask.gather(1, order)
    # The first of a segment in the new order has nothing before it.
    targets &= batch.position_ids > 0
    places = {
        modality: torch.stack([place[:, 0], arrived[place[:, 0], place[:, 1]]], 1)
        for modality, place in batch.item_positions.items()
    }
    return ids, torch.where(targets, ids, -100), places


def cut(batch: Batch, shuffle: torch.Generator | None = None) -> Rows:
    """Cuts packs into rows of 256 tokens, none lost; a row's first token has no target, as nothing precedes it."""
    ids, labels, places = batch.input_ids, batch.labels, dict(batch.item_positions)
    if shuffle is not None:
        ids, labels, places = permuted(batch, shuffle)
    length = ids.shape[1]
    width = min(ROW_TOKENS, length)
    pad = -length % width
    parts = (length + pad) // width

    def rows(values: Tensor, fill: int) -> Tensor:
        return nn.functional.pad(values, (0, pad), value=fill).reshape(-1, width)

    segments = rows(batch.segment_ids, -1)
    used = (segments >= 0).any(1)
    index = used.cumsum(0) - 1
    labels = rows(labels, -100)[used]
    labels[:, 0] = -100
    images = {}
    for modality, place in places.items():
        row = place[:, 0] * parts + place[:, 1] // width
        images[modality] = (torch.stack([index[row], place[:, 1] % width], 1), batch.item_vectors[modality])
    return Rows(rows(ids, 0)[used], labels, segments[used], rows(batch.position_ids, 0)[used], images)


def choose(rows: Rows, which: Tensor) -> Rows:
    """The rows `which` (r,), with their images."""
    new = torch.full((len(rows.ids),), -1)
    new[which] = torch.arange(len(which))
    images = {}
    for modality, (place, vectors) in rows.images.items():
        kept = new[place[:, 0]] >= 0
        images[modality] = (torch.stack([new[place[kept, 0]], place[kept, 1]], 1), vectors[kept])
    return Rows(rows.ids[which], rows.labels[which], rows.segments[which], rows.positions[which], images)


class Model(nn.Module):
    """A small Llama whose image tokens are projections of the encoders' vectors."""

    def __init__(self, vocabulary: int, dims: dict[str, int], width: int = 128) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            attention_dropout=0.1,
            max_position_embeddings=1 << 17,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
        self.llama = LlamaForCausalLM(config)
        self.projections = nn.ModuleDict({modality: nn.Linear(dim, width) for modality, dim in dims.items()})

    def forward(self, rows: Rows) -> Tensor:
        """Summed negative log-likelihood of the targets, in nats."""
        embedded = self.llama.get_input_embeddings()(rows.ids)
        for modality, (place, vectors) in rows.images.items():
            unit = nn.functional.normalize(vectors, dim=-1)
            embedded = embedded.index_put((place[:, 0], place[:, 1]), self.projections[modality](unit))
        same = rows.segments[:, None, :, None] == rows.segments[:, None, None, :]
        mask = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        hidden = self.llama.model(
            inputs_embeds=embedded, attention_mask=bias, position_ids=rows.positions
        ).last_hidden_state
        # Only places that predict a target need logits.
        wanted = rows.labels[:, 1:] != -100
        logits = self.llama.lm_head(hidden[:, :-1][wanted])
        return nn.functional.cross_entropy(logits, rows.labels[:, 1:][wanted], reduction="sum")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a two-layer Llama on a timeloom release.")
    parser.add_argument("root")
    parser.add_argument("--profile", default="mehrt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shuffle-within", action="store_true", help="control: permute the tokens of each sequence")
    options = parser.parse_args(arguments)
    try:
        result = train(options)
    except TimeloomError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def train(options: argparse.Namespace) -> dict[str, float]:
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    release = Release.open(options.root)
    shards = release.shards(options.profile, split="train", seed=options.seed)
    tuning = release.shards(options.profile, split="tuning", seed=None)
    shuffle = torch.Generator().manual_seed(options.seed) if options.shuffle_within else None

    vocabulary = release.manifest.profiles[options.profile].vocabulary_size
    dims = {modality: release.manifest.encoders[modality].dim for modality in shards.stores}
    model = Model(vocabulary, dims)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=options.steps, pct_start=0.1)

    # Add-one smoothing; the unigram model sees the targets of exactly one epoch.
    counts = torch.ones(vocabulary, dtype=torch.float64)
    step = 0
    while step < options.steps:
        first_epoch = shards.epoch == 0
        for batch in shards.batches(PACKS_A_BATCH):
            rows = cut(batch, shuffle)
            if first_epoch:
                counts += torch.bincount(rows.labels[rows.labels >= 0], minlength=vocabulary)
            for which in torch.split(torch.randperm(len(rows.ids)), ROWS_A_STEP):
                chosen = choose(rows, which)
                targets = int((chosen.labels[:, 1:] >= 0).sum())
                if step == options.steps or not targets:
                    continue
                loss = model(chosen) / targets
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                step += 1
                if step % 50 == 0:
                    print(f"step {step}: loss {loss.item():.3f}", flush=True)
        if not step:
            raise TimeloomError("the train split has no target tokens", remedy="use a release with more subjects")

    model.eval()
    unigram = -(counts / counts.sum()).log()
    nll, baseline, targets = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in tuning.batches(PACKS_A_BATCH):
            rows = cut(batch, shuffle)
            for which in torch.split(torch.arange(len(rows.ids)), ROWS_A_STEP):
                chosen = choose(rows, which)
                wanted = chosen.labels[chosen.labels >= 0]
                nll += float(model(chosen))
                baseline += float(unigram[wanted].sum())
                targets += len(wanted)
    if not targets:
        raise TimeloomError("the tuning split has no target tokens", remedy="use a release with more subjects")
    return {
        "val_nll": nll / targets,
        "unigram_nll": baseline / targets,
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
