"""Batches: packs gathered from mapped shards, collated into tensors, and the masks that training needs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from warehouse.errors import TimeloomError
from warehouse.shards import NO_TIME, Packs
from warehouse.tokens import MODALITIES, PAD, UNK, TokenType

Ints = npt.NDArray[np.int64]

# Token types that are targets of the loss. `mehrt` is REQUIREMENTS M-14 with demographics as 3.6 has them; `multimodal`
# keeps demographics as context only and predicts intervals, as ETHOS does.
LOSS_TARGETS: dict[str, tuple[TokenType, ...]] = {
    "mehrt": (TokenType.STRUCTURED, TokenType.DEMOGRAPHIC),
    "multimodal": (TokenType.STRUCTURED, TokenType.INTERVAL),
}
MODEL_INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """B packs of L tokens holding S segments; a segment is a run of one subject's timeline.

    Attributes:
        input_ids: (B, L) int64; PAD behind the last segment.
        labels: (B, L) int64, input_ids where loss_mask, else -100; unshifted, as transformers wants them.
        segment_ids: (B, L) int32, 0-based in the pack, -1 at padding.
        position_ids: (B, L) int64, restarting at 0 in every segment; 0 at padding.
        token_type: (B, L) uint8, warehouse.tokens.TokenType; 0 at padding.
        time_us: (B, L) int64, microseconds since 1970; warehouse.shards.NO_TIME for static tokens and padding.
        loss_mask: (B, L) bool, True where the token is a target.
        cu_seqlens: (S + 1,) int32, segment boundaries in the sequence of the batch's tokens without padding.
        max_seqlen: tokens in the longest segment.
        subject_ids: (S,) int64, whose timeline each segment is from.
        segment_offset: (S,) int64, tokens of that timeline before the segment.
        segments_per_pack: (B,) int64, sums to S.
        pack_ids: (B,) int64.
        item_positions: modality to (n, 2) int64, (row, position) of each image token.
        item_vectors: modality to (n, d) float32, the encoder's vector of each; un-projected, un-normalised.
        item_keys: modality to the n item keys.
        epoch, consumed: where the epoch stands, over all ranks, once this batch is used.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    segment_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type: torch.Tensor
    time_us: torch.Tensor
    loss_mask: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    subject_ids: torch.Tensor
    segment_offset: torch.Tensor
    segments_per_pack: torch.Tensor
    pack_ids: torch.Tensor
    item_positions: dict[str, torch.Tensor]
    item_vectors: dict[str, torch.Tensor]
    item_keys: dict[str, list[str]]
    epoch: int = 0
    consumed: int = 0

    def __repr__(self) -> str:
        # Sizes only: what is printed or logged shows nothing of a patient.
        items = ", ".join(f"{len(keys)} {modality}" for modality, keys in self.item_keys.items())
        return f"Batch({tuple(self.input_ids.shape)} tokens, {self.n_segments} segments, items: {items or 'none'})"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_segments(self) -> int:
        """S."""
        return len(self.subject_ids)

    def keys(self) -> tuple[str, ...]:
        """What a transformers model takes, so that `model(**batch)` works."""
        return MODEL_INPUTS

    def __iter__(self) -> Iterator[str]:
        return iter(MODEL_INPUTS)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in MODEL_INPUTS:
            raise KeyError(name)
        value = self.attention_bias() if name == "attention_mask" else getattr(self, name)
        assert isinstance(value, torch.Tensor)
        return value

    def block_mask(self) -> torch.Tensor:
        """(B, 1, L, L) bool: query position attends to key position, causal and inside its own segment.

        Padding attends to padding, so that no row is empty and no softmax divides by zero.
        """
        same = self.segment_ids[:, None, :, None] == self.segment_ids[:, None, None, :]
        return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()

    def attention_bias(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(B, 1, L, L) of `dtype`, the model's: 0 where `block_mask` is True, else the least finite number.

        It is added to attention scores, so it serves transformers' `eager` and `sdpa` attention alike; a
        two-dimensional mask would let packed subjects see each other.
        """
        mask = self.block_mask()
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with every tensor on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with every tensor in pinned memory; a DataLoader with `pin_memory=True` calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        def moved(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return function(value)
            if isinstance(value, dict):
                return {name: moved(entry) for name, entry in value.items()}
            return value

        return replace(self, **{field.name: moved(getattr(self, field.name)) for field in fields(self)})


def ragged(starts: Ints, counts: Ints) -> Ints:
    """Flat indices of runs: starts[0], …, starts[0] + counts[0] - 1, starts[1], …; (sum of counts,)."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def gather(blocks: Sequence[tuple[Packs, Ints]], context: int) -> Packs:
    """Copies rows out of mapped packs: (packs, rows) one after the other become one Packs of as many rows.

    Ids are widened to int64 on the way; the rows' segments and images follow them.
    """
    total = sum(len(rows) for _, rows in blocks)
    ids = np.empty((total, context), dtype=np.int64)
    types = np.empty((total, context), dtype=np.uint8)
    times = np.empty((total, context), dtype=np.int64)
    parts: list[Packs] = []
    at = 0
    for packs, rows in blocks:
        here = slice(at, at + len(rows))
        ids[here], types[here], times[here] = packs.input_ids[rows], packs.token_type[rows], packs.time_us[rows]
        at += len(rows)
        first_segment = np.cumsum(packs.segments_per_pack, dtype=np.int64) - packs.segments_per_pack
        first_image = np.cumsum(packs.images_per_pack, dtype=np.int64) - packs.images_per_pack
        segments = ragged(first_segment[rows], packs.segments_per_pack[rows].astype(np.int64))
        images = ragged(first_image[rows], packs.images_per_pack[rows].astype(np.int64))
        parts.append(
            replace(
                packs,
                pack_id=packs.pack_id[rows],
                length=packs.length[rows],
                segments_per_pack=packs.segments_per_pack[rows],
                segment_length=packs.segment_length[segments],
                segment_subject=packs.segment_subject[segments],
                segment_offset=packs.segment_offset[segments],
                images_per_pack=packs.images_per_pack[rows],
                image_position=packs.image_position[images],
                image_key=[packs.image_key[image] for image in images],
                image_modality=packs.image_modality[images],
            )
        )

    def joined(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in parts)]).astype(dtype)

    return Packs(
        pack_id=joined("pack_id", np.int64),
        length=joined("length", np.int32),
        input_ids=ids,
        token_type=types,
        time_us=times,
        segments_per_pack=joined("segments_per_pack", np.int32),
        segment_length=joined("segment_length", np.int32),
        segment_subject=joined("segment_subject", np.int64),
        segment_offset=joined("segment_offset", np.int32),
        images_per_pack=joined("images_per_pack", np.int32),
        image_position=joined("image_position", np.int32),
        image_key=[key for part in parts for key in part.image_key],
        image_modality=joined("image_modality", np.uint8),
    )


def loss_targets(loss: str) -> npt.NDArray[np.bool_]:
    """(256,) bool by token type.

    Raises:
        TimeloomError: no such loss.
    """
    if loss not in LOSS_TARGETS:
        raise TimeloomError(f"there is no loss called {loss}", remedy=f"choose one of {', '.join(LOSS_TARGETS)}")
    table = np.zeros(256, dtype=np.bool_)
    table[list(LOSS_TARGETS[loss])] = True
    return table


def collate(packs: Packs, loss: str, vectors: Mapping[str, npt.NDArray[np.float32]]) -> Batch:
    """Packs of int64 ids become a Batch; `vectors` has one row per image of each modality, in the packs' order.

    Raises:
        TimeloomError: no such loss.
    """
    rows, context = packs.input_ids.shape
    lengths = packs.segment_length.astype(np.int64)
    per_pack = packs.segments_per_pack.astype(np.int64)
    first = np.cumsum(per_pack) - per_pack
    local = np.arange(len(lengths), dtype=np.int64) - np.repeat(first, per_pack)
    tokens = ragged(np.arange(rows, dtype=np.int64) * context, packs.length.astype(np.int64))

    segment_ids = np.full(rows * context, -1, dtype=np.int32)
    segment_ids[tokens] = np.repeat(local, lengths)
    position_ids = np.zeros(rows * context, dtype=np.int64)
    position_ids[tokens] = ragged(np.zeros_like(lengths), lengths)
    segment_ids, position_ids = segment_ids.reshape(rows, context), position_ids.reshape(rows, context)
    padding = segment_ids < 0
    ids = np.where(padding, PAD, packs.input_ids)
    types = np.where(padding, np.uint8(TokenType.SPECIAL), packs.token_type)
    times = np.where(padding, NO_TIME, packs.time_us)
    # The first token of a segment has nothing before it to be predicted from.
    loss_mask = loss_targets(loss)[types] & (ids > UNK) & (position_ids > 0)

    image_row = np.repeat(np.arange(rows, dtype=np.int64), packs.images_per_pack)
    places = np.stack([image_row, packs.image_position.astype(np.int64)], axis=1)
    chosen = {name: np.flatnonzero(packs.image_modality == MODALITIES.index(name)) for name in vectors}
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(np.where(loss_mask, ids, -100)),
        segment_ids=torch.from_numpy(segment_ids),
        position_ids=torch.from_numpy(position_ids),
        token_type=torch.from_numpy(types),
        time_us=torch.from_numpy(times),
        loss_mask=torch.from_numpy(loss_mask),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        max_seqlen=int(lengths.max(initial=0)),
        subject_ids=torch.from_numpy(packs.segment_subject.astype(np.int64)),
        segment_offset=torch.from_numpy(packs.segment_offset.astype(np.int64)),
        segments_per_pack=torch.from_numpy(per_pack),
        pack_ids=torch.from_numpy(packs.pack_id.astype(np.int64)),
        item_positions={name: torch.from_numpy(places[which]) for name, which in chosen.items()},
        item_vectors={name: torch.from_numpy(vectors[name]) for name in vectors},
        item_keys={name: [packs.image_key[image] for image in which] for name, which in chosen.items()},
    )


def visible_items(batch: Batch, modality: str, k: int) -> torch.Tensor:
    """Which of the batch's n items of a modality each token may attend to: (B, L, n) bool, in item_positions' order.

    An item is visible to a token of the same subject whose time is strictly later (REQUIREMENTS P-8: equal times are
    hidden), the k most recent of them; of items at one time the later in the timeline counts as more recent. Tokens and
    items without a time see and show nothing.

    Raises:
        TimeloomError: the release has no such modality, or k is below 1.
    """
    if modality not in batch.item_positions:
        known = ", ".join(batch.item_positions) or "none"
        raise TimeloomError(f"the shards have no modality {modality}", remedy=f"choose one of: {known}")
    if k < 1:
        raise TimeloomError("k, the number of visible items, is below 1", remedy="give a positive number")
    row, column = batch.item_positions[modality].unbind(1)
    first = batch.segments_per_pack.cumsum(0) - batch.segments_per_pack
    segment = batch.segment_ids.clamp(min=0).long() + first[:, None]
    subject = batch.subject_ids[segment]
    item_subject, item_time = subject[row, column], batch.time_us[row, column]
    item_place = batch.segment_offset[segment[row, column]] + batch.position_ids[row, column]

    order = item_place.argsort(stable=True)
    order = order[item_time[order].argsort(stable=True)]
    order = order[item_subject[order].argsort(stable=True)]
    ranked = item_subject[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ranked, ranked)

    real = (batch.segment_ids >= 0)[..., None]
    before = real & (subject[..., None] == item_subject) & (item_time < batch.time_us[..., None])
    # A subject's items sorted by time: those before the token are the first `count`, of which the last k are kept.
    count = before.sum(-1, keepdim=True)
    return before & (item_time != NO_TIME) & (rank >= count - k)
