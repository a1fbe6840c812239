"""Which types of tokens are targets of a loss.

`targets` in warehouse/readers/collate.py makes the mask of a batch from it, and token budgets count by it.
"""

import numpy as np
import numpy.typing as npt

from warehouse.errors import TimeloomError
from warehouse.tokens import TokenType

# `mehrt` is the loss of MEHRT: every structured token is a target, demographics too, and no image is. `multimodal` is
# the loss of the multimodal EHR model: demographics are context only, and intervals are predicted, as ETHOS does.
LOSS_TARGETS: dict[str, tuple[TokenType, ...]] = {
    "mehrt": (TokenType.STRUCTURED, TokenType.DEMOGRAPHIC),
    "multimodal": (TokenType.STRUCTURED, TokenType.INTERVAL),
}


def loss_table(loss: str) -> npt.NDArray[np.bool_]:
    """(256,) bool: whether a token type is a target.

    Raises:
        TimeloomError: no such loss.
    """
    if loss not in LOSS_TARGETS:
        raise TimeloomError(f"there is no loss called {loss}", remedy=f"choose one of {', '.join(LOSS_TARGETS)}")
    table = np.zeros(256, dtype=np.bool_)
    table[list(LOSS_TARGETS[loss])] = True
    return table
