"""How full packs are, and how fast they are filled: best-fit in hash order against next-fit and against padding.

Timelines have the lengths of Table A1 of the MEHRT paper (mean 677, standard deviation 1,515 tokens, log-normal). The
last line is JSON: the share of places filled, tokens lost, and documents a second.

    python benchmarks/packing.py [--quick]
"""

import argparse
import json
import time

import numpy as np
import numpy.typing as npt

from pipelines.pack import MAX_SEGMENTS, best_fit, cut
from warehouse.hashing import splitmix64

MEAN, DEVIATION, CONTEXT = 677.0, 1515.0, 2048


def lengths(subjects: int) -> npt.NDArray[np.int64]:
    """Log-normal lengths of at least 2 tokens, in the order of the subjects' hashes."""
    sigma = np.sqrt(np.log1p((DEVIATION / MEAN) ** 2))
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN) - sigma**2 / 2, sigma, subjects)
    order = np.argsort(splitmix64(np.arange(subjects)))
    return np.maximum(2, drawn).astype(np.int64)[order]


def next_fit(pieces: npt.NDArray[np.int64], context: int) -> int:
    """Packs used when a piece that does not fit opens a new pack."""
    packs, room = 0, 0
    for piece in pieces.tolist():
        if piece > room:
            packs, room = packs + 1, context
        room -= piece
    return packs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 subjects instead of 2,000,000")
    subjects = 200_000 if parser.parse_args().quick else 2_000_000
    whole = lengths(subjects)
    start = time.perf_counter()
    _, _, pieces = cut(whole, CONTEXT)
    packs = best_fit(pieces, CONTEXT)
    seconds = time.perf_counter() - start
    used = int(packs.max()) + 1
    segments = int(np.bincount(packs).max())
    fill = {
        "best_fit": pieces.sum() / (used * CONTEXT),
        "next_fit": pieces.sum() / (next_fit(pieces, CONTEXT) * CONTEXT),
        "one_a_pack": pieces.sum() / (len(pieces) * CONTEXT),
    }
    for name, share in fill.items():
        print(f"{name:>10}: {share:.2%} of the places hold a token")
    print(
        f"{subjects:,} subjects, {whole.sum():,} tokens, {used:,} packs in {seconds:.1f} s, at most {segments} segments"
    )
    print(
        json.dumps(
            {
                "pack_fill": round(float(fill["best_fit"]), 5),
                "fill_vs_next_fit": round(float(fill["best_fit"] / fill["next_fit"]), 4),
                "tokens_lost": int(whole.sum() - pieces.sum()),
                "max_segments": segments,
                "max_segments_allowed": MAX_SEGMENTS,
                "documents_per_s": round(subjects / seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
