"""Batches as trainers take them: tensors of packs, and what follows from them, made when it is asked for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch

from warehouse.errors import TimeloomError
from warehouse.modalities import MODALITIES

MODEL_INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")
NO_PACK = -1  # the pack id of a row of padding
IGNORED = -100  # what torch's and transformers' cross-entropy leave out


@dataclass(frozen=True, eq=False, repr=False)
class IdBatch:
    """B packs of L tokens, ids only.

    Attributes:
        input_ids: (B, L) int64; PAD behind the last segment.
        pack_ids: (B,) int64; -1 at a row of padding, which fills a batch up where packs run out.
        cursor: where its reader stands, over all ranks, once this batch is used; see `state_dict(after=batch)`.
    """

    input_ids: torch.Tensor
    pack_ids: torch.Tensor
    cursor: tuple[int, ...]

    def __repr__(self) -> str:
        # Sizes only: what is printed or logged shows nothing of a patient.
        return f"{type(self).__name__}({tuple(self.input_ids.shape)} tokens)"

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def real_rows(self) -> torch.Tensor:
        """(B,) bool, False at rows of padding: those of no pack."""
        return self.pack_ids != NO_PACK

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with every tensor in pinned memory; a DataLoader with `pin_memory=True` calls it."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The batch with `function` of every tensor."""

        def changed(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return function(value)
            if isinstance(value, dict):
                return {name: changed(entry) for name, entry in value.items()}
            return value

        return replace(self, **{field.name: changed(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True, eq=False, repr=False)
class SegmentBatch(IdBatch):
    """Ids and where segments begin; S segments in all, a segment being a run of one subject's timeline.

    Attributes:
        segment_ids: (B, L) int32, 0-based in the pack, -1 at padding.
        position_ids: (B, L) int64, restarting at 0 in every segment; 0 at padding.
        cu_seqlens: (S + 1,) int32, segment boundaries in the sequence of the batch's tokens without padding.
        max_seqlen: tokens in the longest segment.
        subject_ids: (S,) int64, whose timeline each segment is from.
        segment_offset: (S,) int64, tokens of that timeline before the segment.
        segments_per_pack: (B,) int64, sums to S.
    """

    segment_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    subject_ids: torch.Tensor
    segment_offset: torch.Tensor
    segments_per_pack: torch.Tensor

    @property
    def n_segments(self) -> int:
        """S."""
        return len(self.subject_ids)

    @cached_property
    def real(self) -> torch.Tensor:
        """(B, L) bool, False at padding: `tensor[batch.real]` is what `cu_seqlens` cuts."""
        return self.segment_ids >= 0

    @cached_property
    def batch_segment(self) -> torch.Tensor:
        """(B, L) int64: each token's segment, an index into `subject_ids`; at padding its pack's first, or any."""
        first = (self.segments_per_pack.cumsum(0) - self.segments_per_pack).clamp(max=max(self.n_segments - 1, 0))
        return self.segment_ids.clamp(min=0).long() + first[:, None]

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


@dataclass(frozen=True, eq=False, repr=False)
class Batch(SegmentBatch):
    """Everything of B packs; n items (images) of a modality.

    Attributes:
        token_type: (B, L) uint8, warehouse.tokens.TokenType; SPECIAL at padding.
        time_us: (B, L) int64, microseconds since 1970; warehouse.shards.file.NO_TIME for static tokens and padding.
        loss_mask: (B, L) bool, True where the token is a target.
        item_positions: modality to (n, 2) int64, (row, position) of each image token; (-1, -1) for an item that was
            retrieved by its time and has no token in the pack.
        item_vectors: modality to (n, d) float32, the encoder's vector of each, the mean of its units where the store
            holds sequences; un-projected, un-normalised. (0, d) where vectors were not asked for.
        item_segment: modality to (n,) int64, the batch's segment that each item belongs to.
        item_time_us: modality to (n,) int64.
        item_units, item_lengths: modality to (U, d) and (n,) int64: the units of all items one after the other, and
            how many each has; empty unless asked for.
        items_dropped: modality to how many items of the segments' time spans were left out, being older than the k
            most recent; empty where items are those of the packs' image tokens.
        item_keys: modality to the n item keys.
    """

    token_type: torch.Tensor
    time_us: torch.Tensor
    loss_mask: torch.Tensor
    item_positions: dict[str, torch.Tensor]
    item_vectors: dict[str, torch.Tensor]
    item_segment: dict[str, torch.Tensor]
    item_time_us: dict[str, torch.Tensor]
    item_units: dict[str, torch.Tensor]
    item_lengths: dict[str, torch.Tensor]
    items_dropped: dict[str, int]
    item_keys: dict[str, list[str]]

    def __repr__(self) -> str:
        items = ", ".join(f"{len(keys)} {modality}" for modality, keys in self.item_keys.items())
        return f"Batch({tuple(self.input_ids.shape)} tokens, {self.n_segments} segments, items: {items or 'none'})"

    @cached_property
    def labels(self) -> torch.Tensor:
        """(B, L) int64, input_ids where loss_mask, else -100; unshifted, as transformers wants them."""
        return self.input_ids.masked_fill(~self.loss_mask, IGNORED)

    def padded_units(self, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The items' sequences side by side: values (n, N, d), zero behind each one's end, and valid (n, N) bool.

        Raises:
            TimeloomError: sequences were not asked for.
        """
        if modality not in self.item_units:
            raise TimeloomError(
                f"the batch has no sequences of {modality}", remedy='ask for them: shards(..., vectors="sequences")'
            )
        units, lengths = self.item_units[modality], self.item_lengths[modality]
        width = int(lengths.max()) if len(lengths) else 0
        valid = torch.arange(width, device=units.device) < lengths[:, None]
        values = units.new_zeros(len(lengths), width, units.shape[1])
        values[valid] = units
        return values, valid

    def available(self, modality: str) -> torch.Tensor:
        """(S,) bool: the segments that have an item of a modality in the batch; the others get nothing in its place.

        Raises:
            TimeloomError: the batch has no such modality.
        """
        self.check_modality(modality)
        owner = self.item_segment[modality]
        return torch.zeros(self.n_segments, dtype=torch.bool, device=owner.device).index_fill_(0, owner, True)

    def items_by_segment(self, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Each segment's items side by side: which of the n (S, K) int64, by time, and where there is one, (S, K) bool.

        K is the most that a segment has. Where there is none the number is 0, and must be masked.

        Raises:
            TimeloomError: the batch has no such modality.
        """
        self.check_modality(modality)
        owner, time = self.item_segment[modality], self.item_time_us[modality]
        order = time.argsort(stable=True)
        order = order[owner[order].argsort(stable=True)]
        counts = torch.bincount(owner, minlength=self.n_segments)
        place = torch.arange(int(counts.max()) if len(counts) else 0, device=owner.device)
        present = place < counts[:, None]
        which = torch.zeros(present.shape, dtype=torch.int64, device=owner.device)
        which[present] = order
        return which, present

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

    def flat(self) -> dict[str, Any]:
        """The batch as one row of T tokens without padding, for transformers' packed attention: (1, T) each.

        `input_ids`, `labels` and `position_ids`, which restart at 0 in every segment: transformers' `sdpa`, `eager`
        and `flex_attention` find the segments by them; flash attention takes `cu_seq_lens_*` and `max_length_*`.
        A segment's first token is never a target, so the shift of labels joins no two segments. Of a batch without a
        segment it is one token of padding, as no kernel takes none.
        """
        if not self.n_segments:
            nothing, edges = self.input_ids.new_zeros(1, 1), self.cu_seqlens.new_tensor([0, 1])
            return _flat(nothing, torch.full_like(nothing, IGNORED), nothing, edges, 1)
        ids, labels, positions = (
            tensor[self.real][None] for tensor in (self.input_ids, self.labels, self.position_ids)
        )
        return _flat(ids, labels, positions, self.cu_seqlens, self.max_seqlen)

    def check_modality(self, modality: str) -> None:
        """Raises TimeloomError where the batch has no such modality."""
        if modality not in self.item_positions:
            known = ", ".join(name for name in MODALITIES if name in self.item_positions) or "none"
            raise TimeloomError(f"the shards have no modality {modality}", remedy=f"choose one of: {known}")


def _flat(
    ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor, edges: torch.Tensor, longest: int
) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,  # with a cache transformers do not look for segments
    }
