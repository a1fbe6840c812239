"""Texts as numbers, while a file becomes events."""

from collections.abc import Iterable

import polars as pl


class Interner:
    """Numbers of texts, in the order of their first appearance.

    Args:
        texts: those that have a number already.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._numbers = {text: number for number, text in enumerate(texts)}

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)

    def of(self, texts: pl.Series) -> pl.Series:
        """(n,) uint32 of texts (n,), null where null; each is looked at, so they had better be distinct."""
        asked = texts.to_list()
        numbers = list(map(self._numbers.get, asked))
        if None in numbers:
            numbers = [None if text is None else self._numbers.setdefault(text, len(self._numbers)) for text in asked]
        return pl.Series(numbers, dtype=pl.UInt32)
