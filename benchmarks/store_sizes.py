"""What stores take on disk: bytes an item and of whole archives, measured on stores that this writes.

    python -m benchmarks.store_sizes [--items N]

Each store has items of one shape, as the embedder writes them: the vectors, and of sequences where each of them lies.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extractors.note.read import starts_of
from warehouse.embeddings.store import PLACES, close_stores
from warehouse.embeddings.writer import EmbeddingWriter

NOTES, ECGS, XRAYS = 1_000_000, 800_000, 370_000


@dataclass(frozen=True)
class Kind:
    """Items of one shape.

    Attributes:
        vectors: of a sequence; 1 where they are pooled.
        places: numbers that say where a vector of a sequence lies.
        archive: how many such items an archive has.
    """

    name: str
    vectors: int
    width: int
    places: int
    archive: int


def note_vectors(tokens: int) -> int:
    """Vectors of a note's sequence: its windows' tokens, with those that overlap twice, and two marks each."""
    starts, behind = starts_of(tokens, 512, 384, 8)
    return sum(min(510, tokens - start) + 2 for start in starts.tolist()) if not behind else 8 * 512


KINDS = (
    Kind("note, pooled", 1, 768, 0, NOTES),
    Kind("note of 250 tokens, sequence", note_vectors(250), 768, 4, NOTES),
    Kind("note of 2,500 tokens, sequence", note_vectors(2_500), 768, 4, NOTES),
    Kind("ECG, pooled", 1, 768, 0, ECGS),
    Kind("ECG, ecg-vit-b, sequence", 100, 768, 2, ECGS),
    Kind("ECG, ecg-fm of 10 s, sequence", 312, 768, 2, ECGS),
    Kind("ECG, csfm-base, sequence", 1_200, 768, 2, ECGS),
    Kind("x-ray, pooled", 1, 768, 0, XRAYS),
    Kind("x-ray, biomedclip or vit-mae, sequence", 197, 768, 2, XRAYS),
    Kind("x-ray, rad-dino, sequence", 1_370, 768, 2, XRAYS),
)


def bytes_an_item(kind: Kind, items: int, folder: Path) -> float:
    """The size of a store of `items` items, over their number."""
    path = folder / f"{kind.name}.lmdb"
    draw = np.random.default_rng(1)
    with EmbeddingWriter(path) as writer:
        for start in range(0, items, 64):
            batch = []
            for number in range(start, min(start + 64, items)):
                key = f"{number:032x}"
                shape = (kind.vectors, kind.width) if kind.places else (kind.width,)
                batch.append((key, draw.standard_normal(shape).astype(np.float16), 1))
                if kind.places:
                    batch.append((key + PLACES, np.zeros((kind.vectors, kind.places), np.int32), 1))
            writer.put_many(batch)
    close_stores()
    return path.stat().st_size / items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=4_096, help="items of a pooled store; of sequences a 64th")
    items = parser.parse_args().items
    print(f"{'':42}{'vectors':>8}{'bytes an item':>15}{'items':>11}{'GB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            size = bytes_an_item(kind, max(16, items // 64) if kind.places else items, Path(folder))
            total = size * kind.archive / 1e9
            print(f"{kind.name:42}{kind.vectors:>8,}{size:>15,.0f}{kind.archive:>11,}{total:>9,.1f}")


if __name__ == "__main__":
    main()
