"""The footer of a Parquet file as bytes: its row groups, and the same row groups at another place of another file.

Parquet describes its row groups in Thrift's compact protocol (parquet-format, parquet.thrift), and what it says of one
holds wherever its bytes lie but for the places and the number of the row group. No library copies a row group as it is:
pyarrow decodes and encodes it, which is most of what it costs to make it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"PAR1"
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
# Field ids of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROWS, _GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS, _GROUP_PLACE, _ORDINAL = 1, 3, 5, 7
_CHUNK_PLACE, _CHUNK = 2, 3
_PACKED_BYTES, _DATA_PLACE, _INDEX_PLACE, _DICTIONARY_PLACE = 7, 9, 10, 11
_NUMBER, _CAUGHT = rb"[\x80-\xff]*+[\x00-\x7f]", rb"([\x80-\xff]*+[\x00-\x7f])"


@dataclass(frozen=True)
class RowGroup:
    """What a footer says of a row group, and where its bytes lie.

    Attributes:
        said: the bytes of its description.
        places: of the numbers in them that are places in the file: (begin, end, value).
        ordinal: of its own number, the same; None where it is not said.
        begin, end: its bytes in the file.
        rows: how many rows it has.
    """

    said: bytes
    places: Sequence[tuple[int, int, int]]
    ordinal: tuple[int, int, int] | None
    begin: int
    end: int
    rows: int

    def at(self, place: int, number: int) -> bytes:
        """The description of these bytes at another place of a file, as its row group of that number."""
        moved = [(begin, end, value + place - self.begin if value else 0) for begin, end, value in self.places]
        if self.ordinal is not None:
            moved.append((*self.ordinal[:2], number))
        parts, last = [], 0
        for begin, end, value in sorted(moved):
            parts += [self.said[last:begin], _number(value)]
            last = end
        return b"".join([*parts, self.said[last:]])


@dataclass(frozen=True)
class Footer:
    """A footer in three parts: what stands before the number of rows, the row groups, and what stands behind them."""

    head: bytes
    groups: tuple[RowGroup, ...]
    tail: bytes

    @classmethod
    def read(cls, path: Path) -> "Footer":
        """A file's footer.

        Raises:
            ValueError: it is no Parquet file, or one of another form than this project writes.
        """
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 8, 0))
            ending = file.read(8)
            if size < 12 or ending[4:] != _MAGIC:
                raise ValueError("no Parquet file")
            length = int.from_bytes(ending[:4], "little")
            file.seek(size - 8 - length)
            return cls.of(file.read(length))

    @classmethod
    def of(cls, said: bytes) -> "Footer":
        """From the bytes of a footer; raises what `read` does."""
        reader = _Reader(said)
        rows_begin, groups_end, found = 0, 0, []
        last = 0
        while (kind_id := reader.field(last)) is not None:
            kind, last, begin = kind_id
            if last == _ROWS:
                rows_begin = begin
                reader.varint()
            elif last == _GROUPS:
                found = [_row_group(reader) for _ in range(reader.items())]
                groups_end = reader.place
            else:
                if rows_begin and not groups_end:
                    raise ValueError("a footer of another form")
                reader.skip(kind)
        if not rows_begin or not groups_end:
            raise ValueError("a footer of another form")
        return cls(said[:rows_begin], tuple(found), said[groups_end:])

    def of_groups(self, groups: Sequence[tuple[RowGroup, int]]) -> bytes:
        """The footer of a file of these row groups, each with the place of its bytes in it."""
        # Fields 3 and 4, each one behind the one before: their ids are said as the step from the last one.
        rows = bytes([1 << 4 | _I64]) + _number(sum(group.rows for group, _ in groups))
        head = bytes([1 << 4 | _LIST]) + _list_head(len(groups), _STRUCT)
        said = [group.at(place, number) for number, (group, place) in enumerate(groups)]
        return b"".join([self.head, rows, head, *said, self.tail])


def file_end(footer: bytes) -> bytes:
    """A footer as it ends a file."""
    return footer + len(footer).to_bytes(4, "little") + _MAGIC


def file_begin() -> bytes:
    """What a file begins with."""
    return _MAGIC


def _row_group(reader: "_Reader") -> RowGroup:
    start = reader.place
    places: list[tuple[int, int, int]] = []
    ordinal, rows, size, begins = None, 0, 0, []

    def group_field(kind: int, name: int) -> None:
        nonlocal ordinal, rows, size
        if name == _COLUMNS:
            for column in range(reader.items()):
                packed, in_chunk, own = _column_chunk(reader, column)
                size += packed
                places.extend((begin - start, end - start, value) for begin, end, value in in_chunk)
                begins.extend(own)
        elif name == _GROUP_PLACE:
            places.append(number())
        elif name == _ORDINAL:
            ordinal = number()
        elif name == _GROUP_ROWS:
            rows = reader.varint()
        else:
            reader.skip(kind)

    def number() -> tuple[int, int, int]:
        begin = reader.place
        value = reader.varint()
        return begin - start, reader.place - start, value

    reader.struct(group_field)
    begin = min(begins)
    return RowGroup(reader.said[start : reader.place], places, ordinal, begin, begin + size, rows)


@dataclass(frozen=True)
class _Shape:
    """What the description of a column chunk looks like: the same fields, and texts of the same lengths.

    Attributes:
        pattern: catches the numbers that are looked at.
        fields: of each of them whether it stands in the chunk's own description, not in that of its content; its id.
    """

    pattern: re.Pattern[bytes]
    fields: tuple[tuple[bool, int], ...]


# By a column's number, shapes that this process has seen: row groups of one schema have few, and to match a pattern
# takes a twentieth of the time that it takes to step through the fields.
_SHAPES: dict[int, list[_Shape]] = {}
_MOST_SHAPES = 8
_Chunk = tuple[int, list[tuple[int, int, int]], list[int]]


def _column_chunk(reader: "_Reader", column: int) -> _Chunk:
    """Bytes of a column chunk, the numbers in its description that are places, and those where its pages begin."""
    shapes = _SHAPES.setdefault(column, [])
    for shape in shapes:
        if found := shape.pattern.match(reader.said, reader.place):
            reader.place = found.end()
            return _caught(reader.said, found, shape)
    shape = _shape_of(_Reader(reader.said, reader.place))
    if len(shapes) < _MOST_SHAPES:
        shapes.append(shape)
    found = shape.pattern.match(reader.said, reader.place)
    if found is None:
        raise ValueError("a footer of another form")
    reader.place = found.end()
    return _caught(reader.said, found, shape)


def _caught(said: bytes, found: re.Match[bytes], shape: _Shape) -> _Chunk:
    packed, places, begins = 0, [], []
    for number, (whole, name) in enumerate(shape.fields, 1):
        begin, end = found.span(number)
        value = _Reader(said, begin).varint()
        if not whole and name == _PACKED_BYTES:
            packed += value
            continue
        places.append((begin, end, value))
        if not whole:
            begins.append(value)
    return packed, places, begins


def _shape_of(reader: "_Reader") -> _Shape:
    parts: list[bytes] = []
    fields: list[tuple[bool, int]] = []

    def literal(begin: int) -> None:
        parts.append(re.escape(reader.said[begin : reader.place]))

    def value(kind: int, path: tuple[int, ...]) -> None:
        begin = reader.place
        whole = len(path) == 1
        if kind in (_I16, _I32, _I64):
            reader.unsigned()
            looked_at = path == (_CHUNK_PLACE,) or path in _LOOKED_AT
            parts.append(_CAUGHT if looked_at else _NUMBER)
            if looked_at:
                fields.append((whole, path[-1]))
        elif kind == _STRUCT:
            struct(path)
        elif kind in (_LIST, _SET):
            size, inner = reader.list()
            literal(begin)
            for _ in range(size):
                value(_BYTE if inner in (_TRUE, _FALSE) else inner, (*path, 0))
        elif kind == _BINARY:
            length = reader.unsigned()
            literal(begin)
            parts.append(b"(?s:.{%d})" % length)
            reader.place += length
        else:
            reader.skip(kind)
            parts.append(b"(?s:.{%d})" % (reader.place - begin))

    def struct(path: tuple[int, ...]) -> None:
        last = 0
        while True:
            begin = reader.place
            found = reader.field(last)
            literal(begin)
            if found is None:
                return
            kind, last, _ = found
            value(kind, (*path, last))

    struct(())
    return _Shape(re.compile(b"".join(parts)), tuple(fields))


_LOOKED_AT = {(_CHUNK, name) for name in (_PACKED_BYTES, _DATA_PLACE, _INDEX_PLACE, _DICTIONARY_PLACE)}


class _Reader:
    """Steps through bytes of the compact protocol, from a place."""

    def __init__(self, said: bytes, place: int = 0) -> None:
        self.said, self.place = said, place

    def unsigned(self) -> int:
        """A number of as many bytes as it needs."""
        said, place = self.said, self.place
        byte = said[place]
        value, shift = byte & 0x7F, 7
        place += 1
        while byte & 0x80:
            byte = said[place]
            value |= (byte & 0x7F) << shift
            shift += 7
            place += 1
        self.place = place
        return value

    def varint(self) -> int:
        """A number with a sign."""
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def field(self, last: int) -> tuple[int, int, int] | None:
        """Kind and id of the next field and where it begins; None at the end of its struct."""
        begin = self.place
        head = self.said[begin]
        self.place = begin + 1
        if not head:
            return None
        step = head >> 4
        return head & 15, last + step if step else self.varint(), begin

    def struct(self, take: Callable[[int, int], None]) -> None:
        """Hands kind and id of each field on, to be read or skipped."""
        last = 0
        while (found := self.field(last)) is not None:
            kind, last, _ = found
            take(kind, last)

    def items(self) -> int:
        """How many a list has."""
        return self.list()[0]

    def list(self) -> tuple[int, int]:
        """How many a list has, and their kind."""
        head = self.said[self.place]
        self.place += 1
        size = head >> 4
        return self.unsigned() if size == 15 else size, head & 15

    def skip(self, kind: int) -> None:
        """Steps over a value."""
        if kind in (_I16, _I32, _I64):
            self.unsigned()
        elif kind == _BINARY:
            length = self.unsigned()
            self.place += length
        elif kind == _STRUCT:
            self.struct(lambda inner, _: self.skip(inner))
        elif kind in (_LIST, _SET):
            size, inner = self.list()
            for _ in range(size):
                # In a list a truth value is a byte of its own.
                self.skip(_BYTE if inner in (_TRUE, _FALSE) else inner)
        elif kind == _BYTE:
            self.place += 1
        elif kind == _DOUBLE:
            self.place += 8
        elif kind not in (_TRUE, _FALSE):
            raise ValueError("a footer of another form")


def _number(value: int) -> bytes:
    value = value << 1 if value >= 0 else (-value << 1) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _list_head(size: int, kind: int) -> bytes:
    if size < 15:
        return bytes([size << 4 | kind])
    found = bytearray([0xF0 | kind])
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)
