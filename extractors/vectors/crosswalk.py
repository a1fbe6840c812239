"""Vectors without their raw files: a crosswalk says whose they are, and when."""

import polars as pl

from extractors.vectors.settings import ImportedConfig, without_ending
from warehouse.errors import TimeloomError


def links_of_vectors(links: pl.DataFrame, imported: ImportedConfig) -> pl.DataFrame:
    """A crosswalk's links by the names that vectors have; a file's ending may stand in it or be left out.

    Raises:
        TimeloomError: two lines name one file, with and without its ending.
    """
    if imported.many:
        return links
    given = links["match"].drop_nulls()
    named = pl.Series([without_ending(name, imported) for name in given.to_list()], dtype=pl.String)
    if named.n_unique() < len(named):
        raise TimeloomError(
            "the crosswalk names a file of vectors twice, with and without its ending",
            remedy="leave the line that is right",
        )
    spelt = links["match"].replace_strict(given, named, default=None, return_dtype=pl.String)
    return links.with_columns(spelt.alias("match"))
