"""How far vectors of the same units may be apart where bits cannot be the same: other devices, libraries, kernels."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

# By precision: the least cosine similarity, and the largest error relative to a vector's largest value.
TOLERANCES: Mapping[str, tuple[float, float]] = {"float32": (0.99999, 1e-3), "bf16": (0.999, 5e-2)}


def compare(vectors: npt.NDArray[np.float32], known: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The least cosine similarity of (n, width) vectors, and the largest error relative to a vector's largest value."""
    ours, theirs = vectors.astype(np.float64), known.astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = (ours * theirs).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    error = np.abs(ours - theirs).max(axis=1) / np.maximum(np.abs(theirs).max(axis=1), np.finfo(np.float64).tiny)
    return float(cosine.min()), float(error.max())


def agree(cosine: float, error: float, precision: str) -> bool:
    """Whether vectors that far apart are the same within a precision's tolerance; never where one is not a number."""
    least, most = TOLERANCES[precision]
    return cosine >= least and error <= most
