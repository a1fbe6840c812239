"""What reads one kind of file."""

from collections.abc import Collection, Iterator
from typing import Protocol

from extractors.tables.block import TableBlock
from extractors.tables.content_blocks import Known, RecordBlocks


class TableReader(Protocol):
    """What reads one kind of file.

    Attributes:
        columns: the table's columns, in its order.
        fractions: columns of numbers with a type, whose texts have a point before the fraction.
        malformed: numbers of the records met so far whose number of fields is wrong, or where text stands behind a
            closing quote.
        repeated: numbers of the records met so far that say what the header says.
        noticed: in words what nobody said of how the file is written, but its first rows show.
    """

    columns: list[str]
    malformed: list[int]
    fractions: list[str]
    repeated: list[int]
    noticed: str

    def blocks(self, columns: list[str], seed: int | None, plain: Collection[str] | None) -> Iterator[TableBlock]:
        """The rows in the file's order, null where the export says nothing; with hashes where there is a seed.

        Columns may be numbered where `plain` names them not.
        """

    def follow(self, seed: int, known: Known | None, *, known_alone: bool) -> RecordBlocks | None:
        """What gets to know the blocks that the next call of `blocks` reads; that then leaves the known ones out. None
        where the reader cannot tell them.

        Args:
            seed: that of `blocks`.
            known_alone: it leaves all others out instead.
        """
