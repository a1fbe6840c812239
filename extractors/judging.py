"""Items that are judged one by one, by several processes where there are many; those of an earlier night are kept."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from extractors.items import FoundItem

T = TypeVar("T")


def judge_each(
    asked: Sequence[T],
    judge: Callable[[T], FoundItem],
    state: Callable[[T], tuple[str, str]],
    known: Sequence[FoundItem],
    *,
    workers: int | None,
    a_worker: int,
    progress: Callable[[int, int], None] | None = None,
    chunk: int = 1,
) -> list[FoundItem]:
    """One item for each that is asked for (n,), in order.

    Args:
        judge: gives an item; it can be pickled.
        state: the first path of what is asked for, and how its files stand. A known item with this path, and the same
            state in its geometry, is taken as it is.
        known: items of an earlier night.
        workers: processes; this machine's cores if None.
        a_worker: fewer for each process are judged before another process has started.
        progress: called with how many are judged, and of how many that are.
        chunk: how many a process is given at a time.
    """
    earlier = {(item.paths[0], item.geometry["state"]): item for item in known if item.geometry.get("state")}
    kept = [earlier.get(state(wanted)) if earlier else None for wanted in asked]
    new = [wanted for wanted, item in zip(asked, kept, strict=True) if item is None]
    processes = min(len(os.sched_getaffinity(0)) if workers is None else workers, len(new) // a_worker)
    if processes < 2:
        judged = iter(_collect(map(judge, new), progress, len(new)))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            judged = iter(_collect(pool.map(judge, new, chunksize=chunk), progress, len(new)))
    return [item or next(judged) for item in kept]


def _collect(items: Iterable[FoundItem], progress: Callable[[int, int], None] | None, total: int) -> list[FoundItem]:
    collected: list[FoundItem] = []
    for item in items:
        collected.append(item)
        if progress is not None:
            progress(len(collected), total)
    return collected
