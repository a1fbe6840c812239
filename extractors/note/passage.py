"""One pass over tables of notes: texts in, tokens into a kept file, and a row a note of what else is known of it."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl
import xxhash

from extractors.items import OK, VerdictError
from extractors.note.copies import BANDS, ROWS, U32, signatures_of
from extractors.note.kept import KeptWriter
from extractors.note.read import starts_of, state_of
from extractors.note.rows import rows_of
from extractors.note.settings import NoteSettings
from extractors.note.tables import NoteFile
from extractors.note.texts import described, read_text, text_path
from extractors.note.tokens import Tokens
from warehouse.errors import RawFileChangedError

EMPTY = "refused_empty"
_NO_TOKENS = np.empty(0, np.uint32)
# Of every note, besides what `extractors.note.rows.rows_of` gives.
_KNOWN: dict[str, pl.DataType | type[pl.DataType]] = {
    "table": pl.String, "path": pl.String, "stamp": pl.String, "record": pl.Int64, "verdict": pl.String,
    "hash": pl.String, "letters": pl.String, "blanks": pl.UInt32, "mojibake": pl.UInt32, "tokens": pl.Int64,
    "batch": pl.Int64, "row": pl.Int64, "summary": pl.Boolean, "is_addendum": pl.Boolean, "subject": pl.String,
    "id": pl.String, "visit": pl.String, "no_visit": pl.Boolean, "kind": pl.String, "parent": pl.String,
    "time": pl.Datetime("us"), "precision": pl.String, "source": pl.String, "available": pl.Datetime("us"),
    "stored_early": pl.Boolean, "time_unreadable": pl.Boolean,
}  # fmt: skip
# And of every note and vocabulary, as `counted` names it.
COUNTED = ("units", "tokens", "tokens_cut")
_PLACED = ("batch", "row")


def counted(what: str, vocabulary: str) -> str:
    """The column of what is counted of COUNTED by one vocabulary."""
    return f"{what}/{vocabulary}"


class Passage:
    """The notes that were met so far.

    Args:
        cutters: the tokenizer of each vocabulary, by its name. Notes are compared by the tokens of the first, which the
            column `tokens` counts.
    """

    def __init__(self, settings: NoteSettings, cutters: Mapping[str, Tokens], folder: Path) -> None:
        self._settings, self._cutters = settings, cutters
        self._writer = KeptWriter(folder, tuple(cutters))
        of_cuts = {counted(what, name): pl.Int64 for name in cutters for what in COUNTED}
        self._schema: dict[str, pl.DataType | type[pl.DataType]] = {**_KNOWN, **of_cuts}
        self._frames: list[pl.DataFrame] = []
        self._signatures: list[U32] = []

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def notes(self) -> pl.DataFrame:
        """A row a note, columns _KNOWN and those of COUNTED, in the order of their tables."""
        return pl.concat(self._frames) if self._frames else pl.DataFrame(schema=self._schema)

    def signatures(self) -> U32:
        """The signatures of those that have `tokens`, in the same order (n, BANDS * ROWS)."""
        return np.concatenate([np.empty((0, BANDS * ROWS), np.uint32), *self._signatures])

    def add(self, file: NoteFile) -> None:
        """The notes of a file.

        Raises:
            TimeloomError: it cannot be read, or lacks a column.
            RawFileChangedError: it is not the same before and after.
        """
        path = self._settings.path / file.path
        before, records = state_of(path), 0
        for rows in rows_of(self._settings, file):
            rows = rows.with_columns(pl.int_range(records, records + len(rows), dtype=pl.Int64).alias("record"))
            records += len(rows)
            if file.rule.file is not None:
                for start in range(0, len(rows), 1024):
                    self._add(file, *self._with_files(file, rows[start : start + 1024]))
            else:
                alike = [pl.lit(file.path).alias("path"), pl.lit(before).alias("stamp"), pl.lit(OK).alias("verdict")]
                self._add(file, rows.drop("content").with_columns(alike), rows["content"])
        if state_of(path) != before:
            raise RawFileChangedError("a table of notes")

    def _with_files(self, file: NoteFile, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """Rows with what became of the text files that they name, and the files' texts."""
        encoding = self._settings.reading_of(file.table).encoding
        read = [self._read(named, encoding) for named in rows["content"]]
        columns = [
            pl.Series(name, [entry[place] for entry in read], dtype=pl.String)
            for place, name in enumerate(("path", "stamp", "verdict"))
        ]
        texts = pl.Series([entry[3] for entry in read], dtype=pl.String)
        return rows.drop("content").with_columns(columns), texts

    def _read(self, named: str | None, encoding: str | None) -> tuple[str, str, str, str | None]:
        path = text_path(named)
        if path is None:
            return "", "", "failed_missing_file", None
        before = state_of(self._settings.path / path)
        try:
            text = read_text(self._settings.path / path, encoding)
        except VerdictError as error:
            return path, before, error.verdict, None
        if state_of(self._settings.path / path) != before:
            raise RawFileChangedError("a text file of the notes")
        return path, before, OK, text

    def _add(self, file: NoteFile, rows: pl.DataFrame, content: pl.Series) -> None:
        rule, texts = file.rule, described(content)
        usable = (rows["verdict"] == OK) & texts["says"]
        rows = rows.with_columns(
            pl.lit(file.table).alias("table"),
            pl.lit(rule.summary).alias("summary"),
            pl.col("kind").is_in(rule.addenda).fill_null(False).alias("is_addendum"),
            (pl.col("visit").is_null() & (rule.visit is not None)).alias("no_visit"),
            _hashed("hash", texts["tidy"]),
            _hashed("letters", texts["text"]),  # where windows begin is counted in them, blanks with the others
            texts["blanks"],
            texts["mojibake"],
        )
        rows = rows.with_columns(self._cut(texts["text"].set(~usable, "").to_list()))
        says_whose = rule.subject is not None and self._settings.crosswalk is None
        says_when = rule.time is not None or rule.available is not None
        nobody = pl.lit(self._settings.subject_ids.of(rows["subject"]).is_null())
        verdict = (
            pl.when(pl.col("verdict") != OK).then("verdict")
            .when(pl.sum_horizontal(counted("tokens", name) for name in self._cutters) == 0).then(pl.lit(EMPTY))
            .when(pl.lit(says_whose) & nobody).then(pl.lit("failed_no_subject"))
            .when(pl.lit(says_when and says_whose) & pl.col("time").is_null()).then(pl.lit("failed_no_time"))
            .otherwise(pl.lit(OK))
        )  # fmt: skip
        rows = rows.with_columns(verdict.alias("verdict"))
        self._frames.append(rows.select(pl.col(name).cast(kind) for name, kind in self._schema.items()))

    def _cut(self, texts: list[str]) -> list[pl.Series]:
        """Texts (n,) as tokens into the kept file: of each what COUNTED says by each vocabulary, and where it is."""
        known: dict[str, list[int]] = {name: [] for name in self._schema if "/" in name or name in _PLACED}
        primary = next(iter(self._cutters))
        for parts in zip(*(cutter.of(texts) for cutter in self._cutters.values()), strict=True):
            cuts = {}
            for name, (_, encodings) in zip(self._cutters, parts, strict=True):
                tokens = [np.array(encoding.ids, np.uint32) for encoding in encodings]
                windows = [self._windows(encoding) for encoding in encodings]
                cuts[name] = tokens, [spans for spans, _ in windows]
                known[counted("tokens", name)] += map(len, tokens)
                known[counted("tokens_cut", name)] += [behind for _, behind in windows]
                known[counted("units", name)] += [len(spans) // 2 for spans, _ in windows]
            tokens, start = cuts[primary][0], parts[0][0]
            stored = texts[start : start + len(tokens)] if self._settings.keep_text else [None] * len(tokens)
            known["batch"] += [self._writer.add(cuts, stored)] * len(tokens)
            known["row"] += range(len(tokens))
            self._sign([found for found in tokens if len(found)])
        known["tokens"] = known[counted("tokens", primary)]
        return [pl.Series(name, values, dtype=pl.Int64) for name, values in known.items()]

    def _sign(self, filled: list[U32]) -> None:
        if filled:
            ends = np.cumsum([len(found) for found in filled])
            self._signatures.append(signatures_of(np.concatenate(filled), ends))

    def _windows(self, encoding: Any) -> tuple[Any, int]:
        """Of each window where its text begins and ends in letters, flat, and how many tokens are behind the last.

        A window's text begins where that of the token before it ends, so that no letter is between two.
        """
        size, settings = len(encoding), self._settings
        if not size:
            return np.empty(0, np.int32), 0
        starts, behind = starts_of(size, settings.window, settings.stride, settings.at_most)
        ends = np.minimum(starts + settings.room, size) - 1
        spans = [
            (encoding.token_to_chars(int(start) - 1)[1] if start else 0, encoding.token_to_chars(int(end))[1])
            for start, end in zip(starts, ends, strict=True)
        ]
        return np.array(spans, np.int32).ravel(), behind


def _hashed(name: str, texts: pl.Series) -> pl.Series:
    return pl.Series(name, [xxhash.xxh3_128_hexdigest(text.encode()) for text in texts], dtype=pl.String)
