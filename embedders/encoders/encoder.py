"""Units in, vectors out: every forward pass has one shape, so a unit's vector does not depend on its neighbours.

On CUDA a batch is staged in pinned memory, copied on a stream of its own, preprocessed, encoded and copied back, while
the caller gathers the next. On the CPU it is computed at once.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedders.encoders.device import device_name, peak_flops
from embedders.encoders.flops import flops_per_unit
from embedders.encoders.spec import EncoderSpec
from embedders.encoders.tolerances import agree, compare
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    import torch
    from torch import nn

CPU_ROWS = 4  # units of one forward pass on the CPU: as fast as more, and little is lost to filling up the last
# Memory that windowing and resizing may take at a time. On the CPU what fits its caches: a slice of 512 x 512 alone
# takes 2.1 ms, of 32 together each takes 6 to 10, for memory that is mapped anew for each step.
PREPROCESS_BYTES: Mapping[str, int] = {"cuda": 256 << 20, "cpu": 4 << 20}
ALIGNMENT = 16  # bytes, of each shape's place in the staging buffer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figures:
    """What a run's report says of its encoder. A multiply-add counts as two FLOPs."""

    flops_per_unit: int
    peak_flops: float  # FLOP/s of large matrix products in this precision
    device: str
    precision: str
    compiled: bool


class Pending:
    """Vectors on their way.

    `seconds`: how long the device computed them, preprocessing included and waiting excluded; known after `result`.
    """

    def __init__(
        self,
        vectors: "torch.Tensor",
        seconds: float = 0.0,
        slot: "_Slot | None" = None,
        free: "list[_Slot] | None" = None,
    ) -> None:
        self.seconds = seconds
        self._vectors = vectors
        self._slot = slot
        self._free = free

    def result(self) -> npt.NDArray[np.float32]:
        """(units, width) float32, or (units, tokens, width), in the order they were submitted; waits for the device."""
        if self._slot is not None and self._free is not None:
            self._slot.done.synchronize()
            self.seconds = self._slot.begun.elapsed_time(self._slot.done) / 1000
            self._vectors = self._vectors.clone()  # the slot's memory goes to the next batch
            self._free.append(self._slot)
            self._slot = None
        vectors: npt.NDArray[np.float32] = self._vectors.numpy()
        return vectors


class _Slot:
    """Pinned memory of one batch in flight: its input, which grows to the largest seen, and its vectors."""

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        import torch

        self.input = torch.empty(0, dtype=torch.uint8)
        self.output = torch.empty((rows, *shape), dtype=torch.float32, pin_memory=True)
        self.begun, self.done = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def reserve(self, size: int) -> None:
        import torch

        if self.input.numel() < size:
            self.input = torch.empty(size, dtype=torch.uint8, pin_memory=True)


class Encoder:
    """Preprocessing and model on one device; not for use by several threads.

    `batch_size`: the most units of one `submit`. `rows`: the units of one forward pass, filled up with zeros.
    `vector_shape`: of what a unit becomes. `compiled`: whether torch.compile is in use.
    """

    def __init__(self, spec: EncoderSpec, model: "nn.Module", device: "torch.device") -> None:
        import torch

        self.spec = spec
        self.device = device
        self.batch_size = spec.batch_size
        self.vector_shape = spec.vector_shape
        self.rows = spec.batch_size if device.type == "cuda" else min(CPU_ROWS, spec.batch_size)
        model = model.to(device).eval().requires_grad_(False)
        if spec.precision == "bf16":
            _to_bfloat16(model)
        self._free: list[_Slot] = []
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32
            torch.backends.cuda.matmul.allow_tf32 = False
            self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._computing = torch.cuda.default_stream(device)  # encoders that take turns share it
        self._model: Any = model
        self.compiled = spec.compile and self._compile()

    @property
    def flops_per_unit(self) -> int:
        """FLOPs of one unit, counted from the model."""
        return flops_per_unit(self.spec.name, self.spec.architecture, self.spec.preprocess.shape)

    @property
    def figures(self) -> Figures:
        """FLOPs counted from the model; the device's peak is measured at the first call."""
        return Figures(
            flops_per_unit=self.flops_per_unit,
            peak_flops=peak_flops(self.device, self.spec.precision),
            device=device_name(self.device),
            precision=self.spec.precision,
            compiled=self.compiled,
        )

    def submit(self, parts: Sequence[npt.NDArray[Any]]) -> Pending:
        """Starts one batch. On CUDA it returns while the device works; `parts` may change at once.

        Args:
            parts: units (n, ...) as their modality's preprocessing takes them; shapes may differ between parts. At most
                `batch_size` units in all, and at least one.

        Raises:
            ValueError: no units, too many, or of a shape that the preprocessing does not take.
            TimeloomError: the model makes vectors of another width than the configuration says.
        """
        units = sum(len(part) for part in parts)
        if not 0 < units <= self.batch_size:
            raise ValueError(f"a batch holds 1 to {self.batch_size} units, not {units}")
        if self.device.type == "cuda":
            return self._submit_cuda(_runs(parts), units)
        import torch

        begun = perf_counter()
        with torch.inference_mode():
            vectors = self._vectors([_tensor(part) for part in parts if len(part)], units)[:units]
        return Pending(vectors, perf_counter() - begun)

    def encode(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Any number of units (n, ...) of one shape, to vectors (n, *vector_shape) float32; waits for them."""
        starts = range(0, len(pixels), self.batch_size)
        vectors = [self.submit([pixels[start : start + self.batch_size]]).result() for start in starts]
        return np.concatenate(vectors) if vectors else np.empty((0, *self.vector_shape), np.float32)

    def forward(self, images: "torch.Tensor") -> "torch.Tensor":
        """Preprocessed units (rows, *shape) on the device, to vectors (rows, *vector_shape); what benchmarks time."""
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, self.spec.precision == "bf16"):
            vectors: torch.Tensor = self._model(images)
        return vectors.to(torch.float32)

    def _vectors(self, runs: "Sequence[torch.Tensor]", units: int) -> "torch.Tensor":
        """Units on the device, by shape, to vectors of at least as many rows."""
        import torch

        filled = -(-units // self.rows) * self.rows
        images = torch.zeros((filled, *self.spec.preprocess.shape), dtype=torch.float32, device=self.device)
        place = 0
        for run in runs:
            step = max(1, PREPROCESS_BYTES[self.device.type] // self.spec.preprocess.working_bytes(run.shape[1:]))
            for start in range(0, len(run), step):
                chunk = run[start : start + step]
                images[place : place + len(chunk)] = self.spec.preprocess.apply(chunk)
                place += len(chunk)
        starts = range(0, filled, self.rows)
        vectors = torch.cat([self.forward(images[start : start + self.rows]) for start in starts])
        if vectors.shape != (filled, *self.vector_shape):
            raise TimeloomError(
                f"encoder {self.spec.label} gave vectors of {vectors.shape[-1]} instead of {self.spec.width}",
                remedy="set `width` to what the encoder makes",
            )
        return vectors

    def _submit_cuda(self, runs: Sequence[Sequence[npt.NDArray[Any]]], units: int) -> Pending:
        import torch

        with torch.cuda.device(self.device), torch.inference_mode():
            slot = self._free.pop() if self._free else _Slot(self.batch_size, self.vector_shape)
            places, size = _places(runs)
            slot.reserve(size)
            _stage(runs, places, slot.input.numpy())
            with torch.cuda.stream(self._copying):
                raw = slot.input[:size].to(self.device, non_blocking=True)
            self._computing.wait_stream(self._copying)
            raw.record_stream(self._computing)
            with torch.cuda.stream(self._computing):
                slot.begun.record(self._computing)
                on_device = [_view(raw, run, place) for run, place in zip(runs, places, strict=True)]
                vectors = self._vectors(on_device, units)[:units]
                slot.output[:units].copy_(vectors, non_blocking=True)
                slot.done.record(self._computing)
        return Pending(slot.output[:units], slot=slot, free=self._free)

    def _compile(self) -> bool:
        """Compiles the model, and keeps it if the phantom's vectors are the plain model's within tolerance; where that
        is impossible or not so, says so in one line and goes on without."""
        import torch

        plain, units = self._model, self.spec.preprocess.phantom()
        expected = _rows(self.encode(units))
        try:
            self._model = torch.compile(plain, dynamic=False)
            cosine, error = compare(_rows(self.encode(units)), expected)
        except Exception as error_found:  # torch.compile fails in many ways: no compiler, no Triton, an operator
            self._model = plain
            _log.warning("torch.compile does not work here (%s): running without it", type(error_found).__name__)
            return False
        if agree(cosine, error, self.spec.precision):
            return True
        self._model = plain
        _log.warning(
            "torch.compile makes other vectors here (cosine %.6f, largest error %.2g): running without it",
            cosine,
            error,
        )
        return False


def _rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Units' vectors as one row each, however many a unit makes."""
    return vectors.reshape(len(vectors), -1)


def _to_bfloat16(model: "nn.Module") -> None:
    """Keeps the weights of products in bfloat16, as autocast would cast them anew in each pass; the bits are equal."""
    import torch
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            module.to(torch.bfloat16)


def _runs(parts: Sequence[npt.NDArray[Any]]) -> list[list[npt.NDArray[Any]]]:
    """Neighbouring parts of one shape and type together: each run is preprocessed at once."""
    filled = (part for part in parts if len(part))
    return [list(run) for _, run in groupby(filled, key=lambda part: (part.shape[1:], part.dtype))]


def _tensor(part: npt.NDArray[Any]) -> "torch.Tensor":
    """A part as a tensor; without a copy where torch can take it as it is."""
    import torch

    return torch.from_numpy(np.require(part, requirements=["C", "W"]))


def _places(runs: Sequence[Sequence[npt.NDArray[Any]]]) -> tuple[list[int], int]:
    """Where each run begins in the staging buffer, and the bytes of all."""
    places, size = [], 0
    for run in runs:
        places.append(size)
        size += -(-sum(part.nbytes for part in run) // ALIGNMENT) * ALIGNMENT
    return places, size


def _stage(runs: Sequence[Sequence[npt.NDArray[Any]]], places: Sequence[int], buffer: npt.NDArray[np.uint8]) -> None:
    """Copies each run to its place in a buffer of bytes."""
    for run, place in zip(runs, places, strict=True):
        for part in run:
            target = buffer[place : place + part.nbytes].view(part.dtype).reshape(part.shape)
            np.copyto(target, part)
            place += part.nbytes


def _view(raw: "torch.Tensor", run: Sequence[npt.NDArray[Any]], place: int) -> "torch.Tensor":
    """A run's units in the copied buffer."""
    import torch

    dtype = torch.from_numpy(np.empty(0, run[0].dtype)).dtype
    size = sum(part.nbytes for part in run)
    return raw[place : place + size].view(dtype).view(sum(len(part) for part in run), *run[0].shape[1:])
