"""How a CSV file is written, where nobody says it; and text of any encoding as UTF-8.

A separator is taken from the header only where it can be no other: each column that the source needs stands between
signs of one kind, and none between those that are usual. What is found in this way is said, never kept quiet.
"""

import codecs
import csv
import io
import re
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from extractors.reading import TableReading
from extractors.tables.block import NotTextError, UnclosedQuoteError
from extractors.tables.csv_records import Grammar

COMMA, TAB = ",", "\t"
SEPARATORS = {COMMA: "commas", ";": "semicolons", TAB: "tabs", "|": "vertical bars"}
HEAD_BYTES = 1 << 20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_TAB_NAMES = (".tsv", ".tsv.gz")
# A field in quotes with doubled quotes in it: nobody writes that but who puts quotes around fields.
_DOUBLED = re.compile(rb'(?<![^\t\r\n])"[^"\t\r\n]*(?:""[^"\t\r\n]*)+"(?![^\t\r\n])')


class Stream(Protocol):
    """Bytes that are read from front to end."""

    def read(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class Request:
    """What a reader of CSV is asked to read, besides the file.

    Attributes:
        reading: what is said of the table.
        needed: columns that the source needs of it; in lower case where `lower_case`.
        lower_case: names are compared in lower case.
        detect: the header may show the separator, where `reading` does not say it.
    """

    reading: TableReading = field(default_factory=TableReading)
    needed: frozenset[str] = frozenset()
    lower_case: bool = False
    detect: bool = True


NOTHING_SAID = Request()


def grammar_of(request: Request, name: str, head: bytes) -> tuple[Grammar, str]:
    """How a file is written, and in words what nobody said of it but its first rows show; empty where that is nothing.

    Args:
        name: of the file; its ending may say that tabs stand between fields.
        head: its first HEAD_BYTES, UTF-8.
    """
    reading, noticed = request.reading, []
    usual = TAB if name.lower().endswith(_TAB_NAMES) else COMMA
    separator = reading.separator or (_shown(request, head, usual) if request.detect else usual)
    if separator != (reading.separator or usual):
        noticed.append(f"{SEPARATORS[separator]} separate its columns, as its header shows")
    quote: str | None = reading.quote or '"'
    if reading.quote is None and separator == TAB:
        quote = '"' if _around_fields(head) else None
        if b'"' in head:
            signs = "stand around fields" if quote else "are signs like others"
            noticed.append(f"quotes {signs}, as its first rows show")
    if reading.quote == "none":
        quote = None
    return Grammar(separator, quote, reading.escape if reading.escape != quote else None), "; ".join(noticed)


def _shown(request: Request, head: bytes, usual: str) -> str:
    """The separator that the header shows; the usual one where it shows none, or several."""
    needed, names = request.needed, _names(request, usual, head)
    if needed & names if needed else len(names) > 1:
        return usual
    others = {separator: _names(request, separator, head) for separator in SEPARATORS if separator != usual}
    found = [separator for separator, names in others.items() if (needed <= names if needed else len(names) > 1)]
    return found[0] if len(found) == 1 else usual


def _names(request: Request, separator: str, head: bytes) -> frozenset[str]:
    quote = None if request.reading.quote == "none" else request.reading.quote or '"'
    grammar = Grammar(separator, quote)
    try:
        names = grammar.names_of(grammar.header_of(head)[0].decode())
    except (UnclosedQuoteError, UnicodeDecodeError, csv.Error):
        return frozenset()
    return frozenset(name.lower() if request.lower_case else name for name in names)


def _around_fields(head: bytes) -> bool:
    """Whether quotes between tabs stand around fields; they are signs like others where nothing shows that."""
    if b'"' not in head:
        return False
    lines = head.splitlines()[: -1 if len(head) >= HEAD_BYTES else None]
    header = lines[0].split(b"\t")
    if any(len(name) > 1 and name[:1] == name[-1:] == b'"' for name in header) or _DOUBLED.search(head):
        return True
    if all(line.count(b"\t") == len(header) - 1 for line in lines if line):
        return False
    text = io.StringIO(b"\n".join(lines).decode(errors="replace"), newline="")
    try:
        return all(len(fields) == len(header) for fields in csv.reader(text, delimiter=TAB) if fields)
    except csv.Error:
        return False


def hint_of(head: bytes) -> str:
    """What to declare where bytes are no UTF-8."""
    return "utf-16" if head.startswith(_UTF16) else "cp1252"


class Recoded:
    """A stream of text in some encoding as one of UTF-8.

    Args:
        encoding: its name.
    """

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream, self._encoding = stream, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._kept = bytearray()
        self._ended = self._broken = False

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end.

        Raises:
            NotTextError: what comes next is no text; all before it was given.
        """
        while len(self._kept) < size and not (self._ended or self._broken):
            raw = self._stream.read(size)
            self._ended = not raw
            try:
                self._kept += self._decoder.decode(raw, final=self._ended).encode()
            except UnicodeError as error:
                self._broken = True
                if isinstance(error, UnicodeDecodeError):
                    self._kept += error.object[: error.start].decode(self._encoding, "replace").encode()
        if self._broken and not self._kept:
            raise NotTextError(place=None)
        given = bytes(self._kept[:size])
        del self._kept[:size]
        return given
