"""Reads packs with litdata or MosaicML's MDS; run by loader.py in a peer's own environment.

    python loader_peers.py litdata|mds IDS.bin FOLDER CONTEXT BATCH PASSES

Writes the packs once in the peer's format, uncompressed, then reads them shuffled; the last word printed is the best
pass's seconds. Each sample is a pack of uint16 ids; a batch is BATCH of them, stacked and widened to int64.
"""

import sys
import time
import types
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch


def _mds(ids: Any, folder: Path, context: int) -> Iterable[Any]:
    # The package imports torchvision for its vision datasets, which are not used here.
    vision = types.ModuleType("torchvision.datasets")
    vision.VisionDataset = object  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": types.ModuleType("torchvision"), "torchvision.datasets": vision}
    for name in ("transforms", "transforms.functional"):
        sys.modules[f"torchvision.{name}"] = types.ModuleType(f"torchvision.{name}")
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    for name, module in sys.modules.items():
        if name.startswith("torchvision"):
            module.__spec__ = ModuleSpec(name, None)  # whoever asks whether it is installed looks for one
    from streaming import MDSWriter, StreamingDataset

    if not folder.is_dir():
        with MDSWriter(out=str(folder), columns={"ids": f"ndarray:uint16:{context}"}) as writer:
            for row in ids:
                writer.write({"ids": np.asarray(row)})
    # Asked for samples by number it is faster than iterated, which waits for a thread that downloads nothing.
    dataset = StreamingDataset(local=str(folder), batch_size=1)
    return (dataset[number]["ids"] for number in np.random.default_rng(1).permutation(len(ids)).tolist())


def _pack(row: tuple[str, int, int]) -> Any:
    path, context, number = row
    return torch.from_numpy(np.array(np.memmap(path, np.uint16, "r").reshape(-1, context)[number]))


def _litdata(path: str, count: int, folder: Path, context: int) -> Iterable[Any]:
    import litdata

    tokens = litdata.TokensLoader(block_size=context)  # its fastest way to read fixed blocks of tokens
    if not folder.is_dir():
        rows = [(path, context, number) for number in range(count)]
        litdata.optimize(
            fn=_pack, inputs=rows, output_dir=str(folder), chunk_size=4096 * context, num_workers=1, item_loader=tokens
        )
    return litdata.StreamingDataset(str(folder), item_loader=tokens, shuffle=True, seed=1)  # type: ignore[no-any-return]


def main() -> None:
    name, path, folder, context, batch, passes = sys.argv[1:7]
    ids = np.memmap(path, np.uint16, "r").reshape(-1, int(context))
    best = float("inf")
    for _ in range(int(passes) + 1):
        source = (
            _mds(ids, Path(folder), int(context))
            if name == "mds"
            else _litdata(path, len(ids), Path(folder), int(context))
        )
        start, process_start, seen, rows = time.perf_counter(), time.process_time(), 0, []
        for sample in source:
            rows.append(np.asarray(sample))
            if len(rows) == int(batch):
                torch.from_numpy(np.stack(rows).astype(np.int64))
                seen, rows = seen + len(rows), []
        seen += len(rows)
        best = min(best, time.perf_counter() - start, time.process_time() - process_start)
        if seen != len(ids):
            raise SystemExit(f"{name} gave {seen} of {len(ids)} packs")
    print(best)


if __name__ == "__main__":
    main()
