"""Which items each token may see: strictly earlier ones of its own segment, the most recent k."""

import torch

from warehouse.arrays import NO_TIME
from warehouse.errors import TimeloomError
from warehouse.readers.batch import Batch


def visible_items(batch: Batch, modality: str, k: int) -> torch.Tensor:
    """Which of the batch's n items of a modality each token may attend to: (B, L, n) bool, in item_positions' order.

    A token sees the k most recent items of its segment whose times are strictly before its own. It does not see an
    item at its own time, as in the paper of the multimodal EHR model (§2.2). Of items at one time, the later in the
    batch's order counts as more recent. A segment is that paper's retrieval window, so what a token sees does not
    depend on what else is in the batch. A token without a time sees no item, and no token sees an item without a time.

    Raises:
        TimeloomError: the batch has no such modality, or k is below 1.
    """
    batch.check_modality(modality)
    if k < 1:
        raise TimeloomError("k, the number of visible items, is below 1", remedy="give a positive number")
    owner, time = batch.item_segment[modality], batch.item_time_us[modality]
    order = time.argsort(stable=True)
    order = order[owner[order].argsort(stable=True)]
    ranked = owner[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ranked, ranked)

    timed = batch.real & (batch.time_us != NO_TIME)
    eligible = timed[..., None] & (batch.batch_segment[..., None] == owner) & (time != NO_TIME)
    before = eligible & (time < batch.time_us[..., None])
    # A segment's items sorted by time, those without one first: the ones before the token end at `last`.
    untimed = torch.zeros(max(batch.n_segments, 1), dtype=torch.int64, device=owner.device)
    untimed.index_add_(0, owner, (time == NO_TIME).long())
    last = before.sum(-1, keepdim=True) + untimed[batch.batch_segment][..., None]
    return before & (rank >= last - k)
