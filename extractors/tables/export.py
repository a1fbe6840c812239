"""An export: which files hold which table."""

import difflib
import re
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path

from extractors.source import CROSSWALK, Source, made_columns
from extractors.tables.id_columns import IdKind, id_kinds
from extractors.tables.raw_table import DATABASE, RawTable
from warehouse.errors import TimeloomError

ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
"""What names of tables' files end in, in lower case."""
# A text beside tables may be a licence.
TEXTS = (".txt", ".txt.gz")
_ALIKE = 0.75  # spelt so nearly alike, a file may be meant
# Parts that a program numbered: no patient has such a name.
_NUMBERED_PART = re.compile(r"(part|chunk|split|shard|slice)[-_.]?\d{1,5}([-_.]c\d{3})?", re.I)


class Export:
    """A folder of tables, or one DuckDB file, as its source describes it.

    Args:
        path: the folder, or the `.duckdb` file.
        crosswalks: files that the site supplies, by the names that the source gives them.
    """

    def __init__(self, path: Path, source: Source, crosswalks: dict[str, Path] | None = None) -> None:
        self.path, self.source, self.crosswalks = path, source, crosswalks or {}
        self._folders: dict[Path, list[Path]] = {}
        unknown = sorted(set(self.crosswalks) - set(source.crosswalks))
        if unknown:
            known = ", ".join(sorted(source.crosswalks)) or "none"
            raise TimeloomError(
                f"source {source.name} knows no crosswalk {unknown[0]}", remedy=f"the ones it knows: {known}"
            )

    @property
    def is_database(self) -> bool:
        """Whether all tables lie in one DuckDB file."""
        return self.path.name.lower().endswith(DATABASE)

    def _inside(self, folder: Path) -> list[Path]:
        """What lies in a folder, in name order."""
        if folder not in self._folders:
            self._folders[folder] = sorted(folder.iterdir()) if folder.is_dir() else []
        return self._folders[folder]

    def _called(self, names: list[str]) -> list[Path]:
        """Folders below the export by the names on the way to them, whatever their case."""
        found = [self.path]
        for name in names:
            found = [
                path for folder in found for path in self._inside(folder)
                if path.name.lower() == name.lower() and path.is_dir()
            ]  # fmt: skip
        return found

    def _name_of(self, path: Path) -> str:
        """A file's path below the folder without its ending."""
        return str(path.relative_to(self.path))[: -len(_ending(path))]

    @cached_property
    def _database_tables(self) -> dict[str, str]:
        from extractors.tables.database import database_tables

        names = database_tables(self.path)
        return {name.lower() if self.source.case_insensitive else name: name for name in names}

    @cached_property
    def _id_kinds(self) -> dict[str, dict[str, IdKind]]:
        return id_kinds(self.source)

    def files(self, table: str) -> list[Path]:
        """The files of a table, in name order: one of the table's name and an ending of ENDINGS, or a folder of parts.

        Upper and lower case make no difference: of a source that minds them, only where the table has no other file.

        Raises:
            TimeloomError: a folder has a file's name, the table stands there in two forms or in two names that differ
                in case only, or a crosswalk is missing.
        """
        if table.startswith(CROSSWALK):
            supplied = self.crosswalks.get(table.removeprefix(CROSSWALK))
            if supplied is not None and not supplied.is_file():
                raise TimeloomError(f"there is no file for the {table}", remedy="mend sources.crosswalks")
            return [supplied] if supplied else []
        if self.is_database:
            return [self.path] if table in self._database_tables else []
        *folders, name = table.split("/")
        named = [
            path
            for folder in self._called(folders)
            for path in self._inside(folder)
            # A link to nowhere is no file.
            if path.name[: -len(_ending(path)) or None].lower() == name.lower() and _ending(path) and path.exists()
        ]
        named = self._of_case(table, _without_texts(named))
        pieces = self._of_case(table, self._pieces(table))
        for path in named:
            if path.is_dir():
                raise TimeloomError(f"{path.name} is a folder", remedy="give the file itself")
        if len(named) + bool(pieces) > 1:
            raise TimeloomError(f"the table {table} stands there twice", remedy="keep one of its files")
        return named or pieces

    def _pieces(self, table: str) -> list[Path]:
        """The files in a folder of a table's name, whatever their case."""
        folders = self._called(table.split("/"))
        deep = self.source.case_insensitive
        pieces = [path for folder in folders for path in (sorted(folder.rglob("*")) if deep else self._inside(folder))]
        pieces = [path for path in pieces if _ending(path) and path.exists()]
        return _without_texts(pieces)

    def _of_case(self, table: str, paths: list[Path]) -> list[Path]:
        """Those of some files that are the table's, and not another table's whose name differs in case only.

        Raises:
            TimeloomError: names that differ in case only are left.
        """
        others = {name for name in self.source.tables if name != table and name.lower() == table.lower()}
        spelt: dict[str, list[Path]] = {}
        for path in paths:
            spelt.setdefault(self._name_of(path)[: len(table)], []).append(path)
        left = [path for name, its in spelt.items() if name not in others for path in its]
        if len({str(path).lower() for path in left}) < len(left) or len(spelt.keys() - others) > 1:
            raise TimeloomError(
                f"the table {table} stands there twice, in names that differ in upper and lower case",
                remedy="keep one of its files",
            )
        return left

    def mapped(self) -> dict[str, list[Path]]:
        """Files by table, for every table of the source that is there.

        Raises:
            TimeloomError: the path or a table that is not optional is missing.
        """
        if not (self.path.is_file() if self.is_database else self.path.is_dir()):
            raise TimeloomError(
                f"the folder of source {self.source.name} does not exist: {self.path}", remedy="mend sources.path"
            )
        found = {}
        for table, rule in self.source.tables.items():
            files = self.files(table)
            if rule.optional and not self.is_database:
                # What an export leaves behind of a table that it has not.
                files = [path for path in files if path.stat().st_size]
            if not files and not rule.optional:
                raise TimeloomError(
                    f"source {self.source.name} lacks the table {table}{self._spelt_alike(table)}",
                    remedy="export it, or mark it `optional: true`",
                )
            if files:
                found[table] = files
        return found

    def _spelt_alike(self, table: str) -> str:
        """In words, a file that no rule mentions and that is spelt nearly as a table is; nothing where none is."""
        if self.is_database:
            found = list(self._database_tables)
        else:
            texts = has_texts(self.path.rglob("*"))
            found = [self._name_of(path) for path in self.path.rglob("*") if is_table(path, texts)]
        unknown = {name.lower(): name for name in sorted(found) if name not in self.source.tables}
        close = difflib.get_close_matches(table.lower(), unknown, 1, _ALIKE)
        return f" ({unknown[close[0]]} lies there and is no table of it)" if close else ""

    def unmapped(self) -> dict[str, Path]:
        """Tables that lie there and that no rule mentions, by path below the folder or name in the database."""
        if self.is_database:
            return {name: self.path for name in self._database_tables if name not in self.source.tables}
        known = {path for files in self.mapped().values() for path in files}
        texts = has_texts(known)
        return {
            str(path.relative_to(self.path)): path
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and is_table(path, texts) and path not in known
        }

    def open(self, path: Path, table: str, label: str | None = None) -> RawTable:
        """One of a table's files.

        Raises:
            TimeloomError: unreadable, empty, or with a header that is none.
        """
        rule, reading = self.source.tables.get(table), self.source.reading_of(table)
        name = self._database_tables.get(table, table) if self.is_database else table
        is_crosswalk = table.startswith(CROSSWALK)
        known = rule is not None or is_crosswalk
        raw = RawTable(
            path,
            name,
            reading.nothing,
            reading=reading,
            needed=self.source.needed_columns(table) if known else (),
            # What is found out of a crosswalk is said nowhere: it has no rows of its own.
            detect=not is_crosswalk,
            label=label or table,
            # To find it the table's files are listed, which each of many parts would do.
            part=partial(self._part, path, table) if known else None,
            lower_case=self.source.case_insensitive,
            optional_columns=tuple(rule.optional_columns) if rule else (),
            ids=self._id_kinds.get(table),
            subjects=self.source.reading.subject_ids,
        )
        if rule and table in self.source.reading.tables:
            # What is said of a column that is not there would be said in vain.
            raw.require(set(self.source.reading.tables[table].columns) - made_columns(rule))
        return raw

    def _part(self, path: Path, table: str) -> str:
        """Which of a table's files it is, in words; by its name only where that is a number that a program gave."""
        alone = self.is_database or path.parent == self.path / Path(table).parent
        files = [] if alone else self._pieces(table)
        if path not in files:
            return ""
        named = f" ({path.name})" if _NUMBERED_PART.fullmatch(path.name[: -len(_ending(path))]) else ""
        return f", part {files.index(path) + 1} of {len(files)}{named}"


def _ending(path: Path) -> str:
    """What of ENDINGS a name ends in, in whatever case; nothing where it is no table's."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def is_table(path: Path, texts: bool) -> bool:
    """Whether a file's name is that of a table.

    Args:
        texts: tables of the export are text files.
    """
    return _ending(path) != "" and (texts or _ending(path) not in TEXTS)


def has_texts(files: Iterable[Path]) -> bool:
    """Whether one of some tables' files is a text file."""
    return any(_ending(path) in TEXTS for path in files)


def _without_texts(paths: list[Path]) -> list[Path]:
    """Files of a table: text files only where there are no others, for else they may say something of them."""
    return [path for path in paths if _ending(path) not in TEXTS] or paths
