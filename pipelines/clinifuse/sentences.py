"""Where a clinical text's sentences begin and end, in letters."""

import re

# A sentence ends behind its mark where a blank and no small letter follow; at an empty line; and at the end.
_END = re.compile(r"""[.!?]+["')\]]*(?=\s+[^\sa-z]|\s*$)|(?=\n[ \t\r]*\n)""")
# Words whose point ends no sentence: titles, abbreviations, single letters, and numbers that begin a line of a list.
_NO_END = re.compile(r"(?:\b(?:Drs?|Mrs?|Ms|St|Pt|vs|approx|No|Fig|[A-Za-z]|[ei]\.[eg])|(?:^|\n)[ \t]*\d{1,2})\.$")
_BEFORE = 12


def sentences_of(text: str) -> tuple[list[int], list[int]]:
    """Where each sentence begins and ends, without the blanks around it.

    >>> sentences_of("Heart is normal. No effusion")
    ([0, 17], [16, 28])
    """
    begins, ends = [], []
    start = 0
    stops = [match.end() for match in _END.finditer(text)]
    for stop in (*stops, len(text)):
        if stop < len(text) and _NO_END.search(text[max(0, stop - _BEFORE) : stop]):
            continue
        piece = text[start:stop]
        body = piece.strip()
        if body:
            begin = start + len(piece) - len(piece.lstrip())
            begins.append(begin)
            ends.append(begin + len(body))
        start = stop
    return begins, ends
