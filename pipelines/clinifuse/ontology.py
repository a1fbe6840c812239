"""Classes above codes: parents of metadata/codes.parquet, crosswalks of the site, and how codes are nested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipelines.clinifuse.settings import GraphsConfig
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json

TIES = pl.Schema({"code": pl.String, "parent": pl.String})


def read_crosswalk(path: Path) -> pl.DataFrame:
    """`code` and `parent` of a site's CSV, plain or gzipped.

    Raises:
        TimeloomError: it is missing, or lacks a column.
    """
    remedy = "give a CSV with the columns code and parent, or take it out of graphs.crosswalks"
    try:
        found = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError("a crosswalk of graphs.crosswalks cannot be read", remedy) from error
    lacking = [name for name in TIES if name not in found.columns]
    if lacking:
        raise TimeloomError(f"a crosswalk of graphs.crosswalks lacks the column {lacking[0]}", remedy)
    return found.select(pl.col(name).str.strip_chars() for name in TIES).drop_nulls().unique()


def nested_ties(codes: pl.Series, nested: dict[str, tuple[int, ...]]) -> pl.DataFrame:
    """Each code (n,) with the next shorter one of its system, and that with the next, as TIES."""
    found = [pl.DataFrame(schema=TIES)]
    for system, lengths in nested.items():
        prefix = f"{system}/"
        body = pl.col("code").str.slice(len(prefix))
        plain = pl.col("code").str.starts_with(prefix) & ~body.str.contains("/", literal=True)
        level = codes.alias("code").to_frame().filter(plain)
        for length in sorted(lengths, reverse=True):
            longer = level.filter(body.str.len_chars() > length)
            ties = longer.select("code", parent=prefix + body.str.slice(0, length))
            found.append(ties)
            level = pl.concat([level.filter(body.str.len_chars() <= length), ties.select(code="parent")]).unique()
    return pl.concat(found)


@dataclass(frozen=True)
class Ontology:
    """What codes are one of.

    Attributes:
        ties: `code` and `parent`, each once: one step up.
        above: `code` and `parent`, each once: every class within the configured steps.
    """

    ties: pl.DataFrame
    above: pl.DataFrame

    @classmethod
    def of(cls, codes: pl.DataFrame, config: GraphsConfig) -> "Ontology":
        """Of the codes of a release, and of the classes above them.

        Args:
            codes: columns `code` and `parent_codes`, as metadata/codes.parquet has them.

        Raises:
            TimeloomError: a crosswalk is missing, or lacks a column.
        """
        given = [read_crosswalk(path) for path in config.crosswalks]
        if config.parents:
            parents = codes.select("code", parent="parent_codes").explode("parent").drop_nulls("parent")
            given.append(parents)
        return cls._within(codes["code"], _together(given), config)

    @classmethod
    def _within(cls, codes: pl.Series, given: pl.DataFrame, config: GraphsConfig) -> "Ontology":
        known = pl.concat([codes.alias("code"), given["parent"].alias("code")]).unique()
        ties = _together([given, nested_ties(known, config.nested)])
        step = codes.alias("code").unique().to_frame().join(ties, on="code")
        reached = [step if config.steps else step.clear()]
        for _ in range(1, config.steps):
            step = step.join(ties.rename({"code": "parent", "parent": "_next"}), on="parent").select(
                "code", parent="_next"
            )
            step = _together([step]).join(pl.concat(reached), on=["code", "parent"], how="anti")
            if step.is_empty():
                break
            reached.append(step)
        above = _together(reached)
        used = pl.concat([codes.alias("code"), above["parent"].alias("code")]).unique().to_frame()
        return cls(ties.join(used, on="code", how="semi").sort("code", "parent"), above.sort("code", "parent"))

    def of_codes(self, codes: pl.Series) -> "Ontology":
        """What of it concerns some codes (n,)."""
        wanted = codes.alias("code").unique().to_frame()
        above = self.above.join(wanted, on="code", how="semi")
        used = pl.concat([wanted, above.select(code="parent")]).unique()
        return Ontology(
            self.ties.join(used, on="code", how="semi").sort("code", "parent"), above.sort("code", "parent")
        )

    def digest(self) -> str:
        """A hash of what it says."""
        return sha256_json([frame[name].to_list() for frame in (self.ties, self.above) for name in TIES])

    def codes(self, codes: Iterable[str]) -> Sequence[str]:
        """Some codes and every class above one, in order."""
        return sorted({*codes, *self.above["parent"].to_list()})


def _together(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Ties of several tables, each once; nothing is one of itself."""
    together = pl.concat([pl.DataFrame(schema=TIES), *frames])
    return together.filter(pl.col("code") != pl.col("parent")).unique()
