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
    # Items by segment and time, those without a time behind the others: what a token sees is one run of them.
    instants = torch.unique(time[time != NO_TIME])  # sorted
    place = torch.where(time == NO_TIME, len(instants), torch.searchsorted(instants, time))
    place += owner * (len(instants) + 1)
    order = place.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    ranked = place[order]

    first = batch.batch_segment * (len(instants) + 1)
    end = torch.searchsorted(ranked, first + torch.searchsorted(instants, batch.time_us))  # strictly before
    start = torch.maximum(torch.searchsorted(ranked, first), end - k)
    timed = batch.real & (batch.time_us != NO_TIME)
    end = torch.where(timed, end, start)
    rank, start, end = rank.int(), start.int(), end.int()  # half the bytes of (B, L, n)
    return (rank >= start[..., None]) & (rank < end[..., None])
