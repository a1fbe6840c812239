"""Trains a two-layer Llama on a release's shards, images included, and compares it with a unigram model.

    python docs/examples/train_llama.py ROOT [--profile mehrt] [--steps 300] [--images real] [--shuffle-within]

The recipe is MEHRT's: an image's place in the sequence holds W·vector, one trainable W per modality; the loss is on
structured tokens only; packed subjects do not see each other. The controls: `--images none` leaves a token that says no
more than that there was an image, `--images permuted` gives every image the vector of another subject's, and
`--shuffle-within` permutes the tokens of every sequence, so that order carries nothing. The last line printed is JSON;
`after_image_nll` is over the targets that stand right behind an image, and `after_image_error` its standard error.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from warehouse import Batch, Release, ShardDataset, TimeloomError

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


def vectors_of(*splits: ShardDataset) -> dict[str, dict[str, tuple[int, Tensor]]]:
    """Modality to item key to (subject, vector (d,)) of every image of the splits."""
    found: dict[str, dict[str, tuple[int, Tensor]]] = {}
    for split in splits:
        for batch in split.batches(PACKS_A_BATCH):
            for modality, place in batch.item_positions.items():
                first = batch.segments_per_pack.cumsum(0) - batch.segments_per_pack
                segment = batch.segment_ids[place[:, 0], place[:, 1]] + first[place[:, 0]]
                subjects = batch.subject_ids[segment].tolist()
                subject_vectors = zip(subjects, batch.item_vectors[modality], strict=True)
                found.setdefault(modality, {}).update(zip(batch.item_keys[modality], subject_vectors, strict=True))
    return found


def permute(images: dict[str, dict[str, tuple[int, Tensor]]], seed: int) -> dict[str, dict[str, Tensor]]:
    """Modality to item key to the vector of another subject's image, of all images once."""
    permuted_vectors: dict[str, dict[str, Tensor]] = {}
    for modality, of in images.items():
        keys = sorted(of)
        order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
        # A subject's images stand together, and everyone is moved on by more than one subject has.
        order.sort(key=lambda index: of[keys[index]][0])
        most = max(Counter(subject for subject, _ in of.values()).values(), default=0)
        moved = order[most:] + order[:most]
        permuted_vectors[modality] = {
            keys[place]: of[keys[moved_place]][1] for place, moved_place in zip(order, moved, strict=True)
        }
    return permuted_vectors


def cut(
    batch: Batch, shuffle: torch.Generator | None = None, swapped: dict[str, dict[str, Tensor]] | None = None
) -> Rows:
    """Cuts packs into rows of 256 tokens, none lost; a row's first token has no target, as nothing precedes it.

    Args:
        swapped: modality to item key to the vector that stands in for the item's own.
    """
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
        vectors = batch.item_vectors[modality]
        if swapped is not None and len(vectors):
            vectors = torch.stack([swapped[modality][key] for key in batch.item_keys[modality]])
        images[modality] = (torch.stack([index[row], place[:, 1] % width], 1), vectors)
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

    def __init__(self, vocabulary: int, dims: dict[str, int], width: int = 128, blind: bool = False) -> None:
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
        self.blind = blind
        self.projections = nn.ModuleDict({modality: nn.Linear(dim, width) for modality, dim in dims.items()})

    def forward(self, rows: Rows) -> Tensor:
        """Negative log-likelihood in nats of each target, in the order of `rows.labels[:, 1:] != -100`."""
        embedded = self.llama.get_input_embeddings()(rows.ids)
        for modality, (place, vectors) in () if self.blind else rows.images.items():
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
        return nn.functional.cross_entropy(logits, rows.labels[:, 1:][wanted], reduction="none")


def after_image(rows: Rows) -> Tensor:
    """Whether each target, in the order of the model's losses, stands right behind an image: (targets,) bool."""
    behind = torch.zeros_like(rows.ids, dtype=torch.bool)
    for place, _ in rows.images.values():
        behind[place[:, 0], place[:, 1]] = True
    return behind[:, :-1][rows.labels[:, 1:] != -100]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a two-layer Llama on a timeloom release.")
    parser.add_argument("root")
    parser.add_argument("--profile", default="mehrt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", choices=("real", "none", "permuted"), default="real", help="see above")
    parser.add_argument("--validate", nargs="+", default=["tuning"], help="the splits that are measured")
    parser.add_argument("--shuffle-within", action="store_true", help="control: permute the tokens of each sequence")
    options = parser.parse_args(arguments)
    try:
        result = train(options)
    except TimeloomError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


def train(options: argparse.Namespace) -> dict[str, float | None]:
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    release = Release.open(options.root)
    shards = release.shards(options.profile, split="train", seed=options.seed)
    measured = [release.shards(options.profile, split=split, seed=None) for split in options.validate]
    shuffle = torch.Generator().manual_seed(options.seed) if options.shuffle_within else None

    vocabulary = release.manifest.profiles[options.profile].vocabulary_size
    dims = shards.dims
    swapped = None
    if options.images == "permuted":
        every = (release.shards(options.profile, split=split, seed=None) for split in ("train", *options.validate))
        swapped = permute(vectors_of(*every), options.seed)
    model = Model(vocabulary, dims, blind=options.images == "none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=options.steps, pct_start=0.1)

    # Add-one smoothing; the unigram model sees the targets of exactly one epoch.
    counts = torch.ones(vocabulary, dtype=torch.float64)
    step = 0
    while step < options.steps:
        first_epoch = shards.epoch == 0
        for batch in shards.batches(PACKS_A_BATCH):
            rows = cut(batch, shuffle, swapped)
            if first_epoch:
                counts += torch.bincount(rows.labels[rows.labels >= 0], minlength=vocabulary)
            for which in torch.split(torch.randperm(len(rows.ids)), ROWS_A_STEP):
                chosen = choose(rows, which)
                targets = int((chosen.labels[:, 1:] >= 0).sum())
                if step == options.steps or not targets:
                    continue
                loss = model(chosen).sum() / targets
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
    losses, baseline, behind = [torch.empty(0)], 0.0, [torch.empty(0, dtype=torch.bool)]
    with torch.no_grad():
        for batch in (batch for split in measured for batch in split.batches(PACKS_A_BATCH)):
            rows = cut(batch, shuffle, swapped)
            for which in torch.split(torch.arange(len(rows.ids)), ROWS_A_STEP):
                chosen = choose(rows, which)
                losses.append(model(chosen))
                behind.append(after_image(chosen))
                baseline += float(unigram[chosen.labels[chosen.labels >= 0]].sum())
    nll, near = torch.cat(losses), torch.cat(behind)
    if not len(nll):
        raise TimeloomError("the measured splits have no target tokens", remedy="use a release with more subjects")
    return {
        "val_nll": float(nll.mean()),
        "unigram_nll": baseline / len(nll),
        "after_image_nll": float(nll[near].mean()) if near.any() else None,
        "after_image_error": float(nll[near].std() / near.sum() ** 0.5) if near.sum() > 1 else None,
        "after_image_targets": int(near.sum()),
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
