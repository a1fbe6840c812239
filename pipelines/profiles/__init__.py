"""Token profiles: rules as data, and the one code path that reads them."""

from pipelines.profiles.codes import codes_of, pieces_of
from pipelines.profiles.rules import BUILT_IN, NamespaceRule, Piece, ProfileConfig, built_in, read_rules, with_rules

__all__ = [
    "BUILT_IN", "NamespaceRule", "Piece", "ProfileConfig", "built_in", "codes_of", "pieces_of", "read_rules",
    "with_rules",
]  # fmt: skip
