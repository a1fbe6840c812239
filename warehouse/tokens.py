"""Token types, reserved ids and names: shared by the stages that write tokens and the readers that mask them."""

from enum import IntEnum

from warehouse.modalities import MODALITIES


class TokenType(IntEnum):
    """What a token stands for. Loss masks are derived from it, never stored."""

    SPECIAL = 0
    STRUCTURED = 1
    DEMOGRAPHIC = 2
    INTERVAL = 3
    IMAGE = 4


PAD, BOS, EOS, UNK = 0, 1, 2, 3
FIRST_IMAGE = 4  # the token of modality number 0
IMAGE_TOKENS = {name: FIRST_IMAGE + modality.number for name, modality in MODALITIES.items()}

RESERVED: tuple[tuple[str, TokenType], ...] = (
    ("[PAD]", TokenType.SPECIAL),
    ("[BOS]", TokenType.SPECIAL),
    ("[EOS]", TokenType.SPECIAL),
    ("[UNK]", TokenType.SPECIAL),
    *((f"[{modality.upper()}]", TokenType.IMAGE) for modality in MODALITIES),
)

TYPE_NAMES = {kind: kind.name.lower() for kind in TokenType}

# Namespaces of the tokens that stand for a value's quantile (VALUE/Q7) and for the time since the event before.
VALUE, INTERVAL = "VALUE", "INTERVAL"
TIMELINE_END = "TIMELINE_END"
