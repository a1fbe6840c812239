"""What a note's text says of itself: whether anything stands in it, what de-identification and encodings left of it."""

import codecs
import gzip
import zlib
from io import BytesIO
from pathlib import Path, PurePosixPath

import polars as pl

from extractors.items import VerdictError
from extractors.note.vocabulary import BLANKS

# A letter or a digit; underscores, lines and bullets alone say nothing.
_SAYS_SOMETHING = r"[\p{L}\p{N}]"
# UTF-8 that was read as Windows-1252 or Latin-1, and what stands where a letter was lost.
_MOJIBAKE = (
    r"[ÂÃ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]|â€|ï»¿|\ufffd"
)
_LONGEST_FILE = 64 << 20
_GZIP = b"\x1f\x8b"


def described(texts: pl.Series) -> pl.DataFrame:
    """Of texts (n,): `text` without a mark of byte order, `says` whether a letter or digit stands in it, `tidy` with
    one blank between words, and how many `blanks` (what was taken out) and `mojibake` it has."""
    text = texts.fill_null("").str.strip_prefix("\ufeff")
    return pl.DataFrame(
        {
            "text": text,
            "says": text.str.contains(_SAYS_SOMETHING),
            "tidy": text.str.replace_all(r"\s+", " ").str.strip_chars(),
            "blanks": text.str.count_matches(BLANKS),
            "mojibake": text.str.count_matches(_MOJIBAKE),
        }
    )


def text_path(named: str | None) -> str | None:
    """The path that a table names, as programs for Windows write it, too; None where it leaves the root."""
    bare = (named or "").strip().replace("\\", "/")
    parts = PurePosixPath(bare)
    return None if not bare or parts.is_absolute() or ".." in parts.parts else parts.as_posix()


def read_text(path: Path, encoding: str | None) -> str:
    """A text file's text, gunzipped where it is gzipped.

    Raises:
        VerdictError: failed_missing_file; failed_unreadable, also where it is no text in its encoding.
    """
    if not path.is_file():
        raise VerdictError("failed_missing_file")
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            with gzip.GzipFile(fileobj=BytesIO(content)) as unpacked:  # all of its members
                content = unpacked.read(_LONGEST_FILE + 1)
        if len(content) > _LONGEST_FILE:
            raise VerdictError("failed_unreadable")
        return content.decode("utf-8-sig" if codecs.lookup(encoding or "utf-8").name == "utf-8" else str(encoding))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise VerdictError("failed_unreadable") from error
