"""An export: which files hold which table."""

from functools import cached_property
from pathlib import Path

from extractors.source import CROSSWALK, Source, made_columns
from extractors.tables.raw_table import DATABASE, RawTable
from warehouse.errors import TimeloomError

ENDINGS = (".csv", ".csv.gz", ".parquet")


class Export:
    """A folder of tables, or one DuckDB file, as its source describes it.

    Args:
        path: the folder, or the `.duckdb` file.
        crosswalks: files that the site supplies, by the names that the source gives them.
    """

    def __init__(self, path: Path, source: Source, crosswalks: dict[str, Path] | None = None) -> None:
        self.path, self.source, self.crosswalks = path, source, crosswalks or {}
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

    @cached_property
    def _listing(self) -> dict[str, list[Path]]:
        """Files below the folder by table name, in lower case."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.path.rglob("*")):
            for ending in ENDINGS:
                if path.name.lower().endswith(ending):
                    name = str(path.relative_to(self.path))[: -len(ending)].lower()
                    found.setdefault(name, []).append(path)
        return found

    @cached_property
    def _database_tables(self) -> dict[str, str]:
        from extractors.tables.database import database_tables

        names = database_tables(self.path)
        return {name.lower() if self.source.case_insensitive else name: name for name in names}

    def files(self, table: str) -> list[Path]:
        """The files of a table, in name order: `table.csv`, `.csv.gz` or `.parquet`, or a folder of such parts.

        Raises:
            TimeloomError: a folder has a file's name, the table stands there in two forms, or a crosswalk is missing.
        """
        if table.startswith(CROSSWALK):
            supplied = self.crosswalks.get(table.removeprefix(CROSSWALK))
            if supplied is not None and not supplied.is_file():
                raise TimeloomError(f"there is no file for the {table}", remedy="mend sources.crosswalks")
            return [supplied] if supplied else []
        if self.is_database:
            return [self.path] if table in self._database_tables else []
        if self.source.case_insensitive:
            named, prefix = self._listing.get(table, []), f"{table}/"
            pieces = [path for name, paths in self._listing.items() if name.startswith(prefix) for path in paths]
        else:
            named = [path for ending in ENDINGS if (path := self.path / f"{table}{ending}").exists()]
            parts = self.path / table
            pieces = sorted(path for path in parts.iterdir() if path.name.endswith(ENDINGS)) if parts.is_dir() else []
        for path in named:
            if path.is_dir():
                raise TimeloomError(f"{path.name} is a folder", remedy="give the file itself")
        if len(named) + bool(pieces) > 1:
            raise TimeloomError(f"the table {table} stands there twice", remedy="keep one of its files")
        return named or pieces

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
                    f"source {self.source.name} lacks the table {table}",
                    remedy="export it, or mark it `optional: true`",
                )
            if files:
                found[table] = files
        return found

    def unmapped(self) -> dict[str, Path]:
        """Tables that lie there and that no rule mentions, by path below the folder or name in the database."""
        if self.is_database:
            return {name: self.path for name in self._database_tables if name not in self.source.tables}
        known = {path for files in self.mapped().values() for path in files}
        return {
            str(path.relative_to(self.path)): path
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and path.name.lower().endswith(ENDINGS) and path not in known
        }

    def open(self, path: Path, table: str, label: str | None = None) -> RawTable:
        """One of a table's files.

        Raises:
            TimeloomError: unreadable, empty, or with a header that is none.
        """
        rule = self.source.tables.get(table)
        name = self._database_tables.get(table, table) if self.is_database else table
        reading = self.source.reading_of(table)
        raw = RawTable(
            path,
            name,
            reading.nothing,
            label=label or table,
            reading=reading,
            lower_case=self.source.case_insensitive,
            optional_columns=tuple(rule.optional_columns) if rule else (),
        )
        if rule and table in self.source.reading.tables:
            # What is said of a column that is not there would be said in vain.
            raw.require(set(self.source.reading.tables[table].columns) - made_columns(rule))
        return raw
