"""Golden vectors: a worker embeds fixed phantoms when it starts, and compares with what its store's first worker got.

It finds what would fill a store with wrong vectors in silence: NaN, zeros, vectors that do not depend on the image,
other weights under the same name, a device or library that computes otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedders.encoders.device import device_name
from embedders.encoders.encoder import Encoder
from embedders.encoders.spec import StoreSpec
from embedders.encoders.tolerances import agree, compare
from embedders.inputs.common import PHANTOMS, described
from warehouse.errors import REPAIR, TimeloomError
from warehouse.sealed import read_sealed, write_sealed

RECORD = "encoder.json"
DEPENDENCE = 1e-4  # least difference between vectors of different phantoms, relative to their largest value


@dataclass(frozen=True)
class GoldenCheck:
    """What a check found. `recorded`: this worker was the store's first. `exact`: equal to the record bit for bit.

    `batch_invariant`: on this device a vector has the same bits at each place of a batch and beside any neighbour.
    """

    recorded: bool
    exact: bool
    cosine: float
    max_error: float
    batch_invariant: bool


def check_golden(encoder: Encoder, folder: Path) -> GoldenCheck:
    """Embeds the phantoms of the encoder's modality; records their vectors in the store's `folder`, or compares them.

    Call it once per worker, before its first item. Two forward passes.

    Raises:
        TimeloomError: the vectors are not finite, zero, constant or independent of the image; they differ from the
            record by more than rounding; the record is another encoder's or is damaged.
    """
    vectors, invariant = _embed(encoder)
    _check_plausible(vectors, encoder.spec.label)
    path = folder / RECORD
    environment = _environment(encoder)
    if not path.is_file():
        write_sealed(path, _record(encoder, environment, vectors, invariant))
        return GoldenCheck(True, True, 1.0, 0.0, invariant)
    record = _read(path)
    if record["spec_hash"] != encoder.spec.spec_hash:
        raise _foreign(folder, record)
    known = record["vectors"]
    if known.shape != vectors.shape or not np.isfinite(known).all():
        raise _damaged(path)
    cosine, error = compare(vectors, known)
    exact = np.array_equal(vectors, known)
    same = record["environment"] == environment
    # Within one environment the bits must be equal, unless torch.compile is in use: each process times its kernels and
    # may choose others.
    if (same and not exact and not encoder.compiled) or not agree(cosine, error, encoder.spec.precision):
        where = "in the same environment" if same else f"by {record['environment'].get('device')}"
        raise TimeloomError(
            f"{encoder.spec.label} makes other golden vectors than those recorded {where} "
            f"(cosine {cosine:.6f}, largest error {error:.2g})",
            remedy="find out what changed in hardware or libraries; its vectors must not be mixed with the store's",
        )
    return GoldenCheck(False, exact, cosine, error, invariant)


def record_import(spec: StoreSpec, declared: Mapping[str, Any], folder: Path) -> None:
    """Writes the record of a store of imported vectors, which no phantom can prove; or compares it.

    Args:
        declared: what the configuration says of the vectors, without paths.

    Raises:
        TimeloomError: the record is another encoder's or is damaged.
    """
    path = folder / RECORD
    if path.is_file():
        if _read(path)["spec_hash"] != spec.spec_hash:
            raise _foreign(folder, _read(path))
        return
    record = {
        "label": spec.label,
        "store": spec.store_name,
        "spec_hash": spec.spec_hash,
        "width": spec.width,
        "weights_sha256": None,
        "imported": dict(declared),
        "output": spec.output,
        "store_dtype": spec.store_dtype,
        "environment": {},
        "vectors": [],
    }
    write_sealed(path, record)


def _foreign(folder: Path, record: Mapping[str, Any]) -> TimeloomError:
    return TimeloomError(
        f"the store {folder.name} belongs to another encoder, {record['label']}",
        remedy="give this encoder's own folder",
    )


def _embed(encoder: Encoder) -> tuple[npt.NDArray[np.float32], bool]:
    """The phantoms' vectors (3, width), and whether they are the same in another order, at other places of a batch.

    Of an encoder that makes several vectors of a unit their mean stands for all.
    """
    units = encoder.spec.preprocess.phantom()
    vectors = encoder.encode(units)
    order = np.arange(encoder.rows, 0, -1) % PHANTOMS
    again = encoder.submit([units[order]]).result()
    invariant = bool(np.array_equal(again, vectors[order]))
    if vectors.ndim == 3:
        kept = encoder.spec.tokens_of(units)
        assert kept is not None
        vectors = np.stack([unit[:count].mean(axis=0) for unit, count in zip(vectors, kept, strict=True)])
    return vectors, invariant


def _check_plausible(vectors: npt.NDArray[np.float32], label: str) -> None:
    fault = ""
    largest = np.abs(vectors).max(axis=1)
    if not np.isfinite(vectors).all():
        fault = "makes vectors that are not finite"
    elif not (largest > 0).all():
        fault = "makes vectors of zeros"
    elif not (np.ptp(vectors, axis=1) > DEPENDENCE * largest).all():
        fault = "makes vectors whose values are all equal"
    else:
        pairs = [np.abs(vectors[place] - vectors[place - 1]).max() / largest.max() for place in range(len(vectors))]
        if min(pairs) <= DEPENDENCE:
            fault = "makes vectors that do not depend on the image"
    if fault:
        raise TimeloomError(
            f"{label} {fault}", remedy="see that its weights are whole and its precision suits the device"
        )


def _environment(encoder: Encoder) -> dict[str, Any]:
    """All that decides about bits; equal environments must make equal bits."""
    import torch
    import transformers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device_name(encoder.device),
        "threads": torch.get_num_threads() if encoder.device.type == "cpu" else None,
        "precision": encoder.spec.precision,
        "compiled": encoder.compiled,
    }


def _record(
    encoder: Encoder, environment: dict[str, Any], vectors: npt.NDArray[np.float32], invariant: bool
) -> dict[str, Any]:
    spec = encoder.spec
    return {
        "label": spec.label,
        "store": spec.store_name,
        "spec_hash": spec.spec_hash,
        "width": spec.width,
        "weights_sha256": spec.weights_sha256,
        "architecture": dict(spec.architecture),
        "preprocess": described(spec.preprocess),
        "batch_size": spec.batch_size,
        "output": spec.output,
        "store_dtype": spec.store_dtype,
        "environment": environment,
        "batch_invariant": invariant,
        "vectors": [[float(value) for value in vector] for vector in vectors],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_sealed(path, older=True)
        if all(isinstance(record[key], kind) for key, kind in _KEYS.items()):
            return {**record, "vectors": np.array(record["vectors"], dtype=np.float32)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    raise _damaged(path)


_KEYS: Mapping[str, type] = {"spec_hash": str, "label": str, "vectors": list, "environment": dict}


def _damaged(path: Path) -> TimeloomError:
    return TimeloomError(f"{path.name} of the store {path.parent.name} is damaged", remedy=REPAIR)
