"""Windows of notes as an encoder takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from embedders.inputs.common import PHANTOMS
from extractors.note.read import NO_TOKEN
from extractors.note.settings import TextEncoder, encoder_folder
from extractors.note.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import torch

PHANTOM_TOKENS = 32


@dataclass(frozen=True)
class NoteSpec:
    """Windows of tokens, filled up to the length that the encoder has places for; nothing attends to what was filled.

    How tokens become windows is the extractor's matter, and part of what an item is known by. Whose tokens they are is
    part of what an encoder is known by.
    """

    kind: ClassVar[str] = "NoteSpec"
    form: ClassVar[str] = "text"

    length: int = 512
    vocabulary: str = ""

    @property
    def cut(self) -> str:
        """The way in which items must be cut, as their geometry names it."""
        return self.vocabulary

    @property
    def shape(self) -> tuple[int, ...]:
        """Ids of tokens, and a row of ones where there are some and zeros where the window was filled up."""
        return (2, self.length)

    @property
    def most(self) -> Mapping[str, int]:
        """Settings of the extractor that may be so large at most."""
        return {"window": self.length}

    def working_bytes(self, shape: Sequence[int]) -> int:
        """Memory that `apply` takes for a unit of `shape`."""
        return 4 * 4 * self.length

    def apply(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(n, tokens) int32, or shorter than `length`, to (n, 2, length) float32, in which ids below 2^24 are exact."""
        import torch

        if pixels.ndim != 2 or not 0 < pixels.shape[1] <= self.length:
            raise ValueError(f"windows are (n, {self.length}) or shorter, not {tuple(pixels.shape)}")
        made = torch.zeros((len(pixels), *self.shape), dtype=torch.float32, device=pixels.device)
        real = pixels != NO_TOKEN
        made[:, 0, : pixels.shape[1]] = torch.where(real, pixels, 0).to(torch.float32)
        made[:, 1, : pixels.shape[1]] = real.to(torch.float32)
        return made

    @staticmethod
    def phantom(side: int = PHANTOM_TOKENS) -> npt.NDArray[Any]:
        """(3, side) int32, in integer arithmetic: the same everywhere and for ever. Ids are below 100."""
        number, place = np.ogrid[:PHANTOMS, :side]
        ids = 5 + (place * (7 + 2 * number) + place * place // (3 + number)) % 90
        units: npt.NDArray[Any] = np.where(place < side - 8 * number, ids, NO_TOKEN)
        return units.astype(np.int32)


def vocabulary_of(config: TextEncoder) -> dict[str, str]:
    """The field of NoteSpec that an encoder's own files decide.

    Raises:
        TimeloomError: its folder has no vocabulary.
    """
    return {"vocabulary": load_vocabulary(encoder_folder(config)).name}
