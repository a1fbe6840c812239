"""Lists of codes, and which codes of a release belong to each: by what they are, or by what a parent of them is."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import polars as pl
from pydantic import field_validator, model_validator

from extractors.yaml_files import read_yaml
from warehouse.configuration import Settings
from warehouse.errors import TimeloomError

_FILE = Path(__file__).parent / "codes.yaml"
DERIVED = "DERIVED"
# Code systems that need not occur in a release to be known.
SYSTEMS = (
    "ICD10CM", "ICD10PCS", "ICD9CM", "ICD9PCS", "RXNORM", "ATC", "LOINC", "SNOMED", "CPT4", "HCPCS", "NDC", "OMOP",
    "MEDS_BIRTH", "MEDS_DEATH", "MIMIC_LAB", "CHART", "ED_VITAL", "PRESCRIPTION_START",
    "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "ICU_ADMISSION",
    "ICU_DISCHARGE", "VISIT_START", "VISIT_END", "VISIT_DETAIL_START", "VISIT_DETAIL_END", "ENCOUNTER_START",
    "ENCOUNTER_END", DERIVED,
)  # fmt: skip
# A code without its system.
_BARE = re.compile(r"^[A-Z]?\d[^/]*$")
# Older systems whose codes a crosswalk makes one of a newer system.
OLDER = {"ICD10CM": "ICD9CM", "ICD10PCS": "ICD9PCS"}
_DEPTH = 20  # parents of parents; a hierarchy is no deeper
# `code` of the release, the `list` that it belongs to, and `node`, the code or parent by which it does.
MEMBERS = {"code": pl.String, "list": pl.String, "node": pl.String}


class CodeList(Settings):
    """A list of codes.

    Attributes:
        any: whole codes, beginnings (`ICD10CM/N17*`), regular expressions (`^…$`).
        lists: further lists that belong to it.
        without: what does not belong to it although it would; as `any`.
    """

    any: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @field_validator("any", "without")
    @classmethod
    def _readable(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if not _is_expression(expression_of(entry)):
                raise ValueError(f"{entry} is no regular expression")
            if not systems_of([entry]) or _BARE.match(entry):
                raise ValueError(f"{entry} names no code system: write it as ICD10CM/N17*")
        return entries

    @model_validator(mode="after")
    def _something(self) -> "CodeList":
        if not self.any and not self.lists:
            raise ValueError("a list needs codes: give any, or lists")
        return self


@cache
def _is_expression(text: str) -> bool:
    """Whether Python and polars can read a regular expression; each bucket's task asks for all of them again."""
    try:
        re.compile(text)
        pl.Series(["x"]).str.contains(text)
    except (re.error, pl.exceptions.PolarsError):
        return False
    return True


def expression_of(entry: str) -> str:
    """An entry of a list as a regular expression over whole codes."""
    if entry.startswith("^"):
        return entry
    return f"^{re.escape(entry.removesuffix('*'))}" + ("" if entry.endswith("*") else "$")


def systems_of(entries: Iterable[str]) -> list[str]:
    """The code systems that entries name, in their order."""
    found: dict[str, None] = {}
    for entry in entries:
        head = entry.removeprefix("^").partition("/")[0]
        if alternatives := re.fullmatch(r"\(([A-Z0-9_|]+)\)", head):
            found |= dict.fromkeys(alternatives[1].split("|"))
        elif name := re.match(r"[A-Z][A-Z0-9_]*", head):
            found[name[0]] = None
    return list(found)


@cache
def built_in_lists() -> dict[str, CodeList]:
    """The lists of codes.yaml."""
    read = read_yaml(_FILE, _FILE.name, "docs/tasks.md")
    return {name: CodeList.model_validate(entry) for name, entry in read.items()}


def lists_within(names: Iterable[str], lists: Mapping[str, CodeList]) -> dict[str, None]:
    """Some lists and all below them, in order."""
    wanted, seen = list(names), dict[str, None]()
    while wanted:
        current = wanted.pop(0)
        if current not in seen:
            seen[current] = None
            wanted += lists[current].lists
    return seen


def entries_of(name: str, lists: Mapping[str, CodeList]) -> tuple[list[str], list[str]]:
    """What a list holds and what it leaves out, with the lists below it."""
    below = lists_within([name], lists)
    held = [entry for each in below for entry in lists[each].any]
    return held, [entry for each in below for entry in lists[each].without]


def read_mappings(paths: Sequence[Path]) -> pl.DataFrame:
    """`code`, `parent` of the site's mappings.

    Raises:
        TimeloomError: a file is missing, or lacks a column.
    """
    frames = [pl.DataFrame(schema={"code": pl.String, "parent": pl.String})]
    for path in paths:
        try:
            read = pl.read_csv(path, infer_schema=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise TimeloomError(
                "a file of labels.mappings cannot be read", remedy="give a CSV with the columns code and parent"
            ) from error
        missing = [name for name in ("code", "parent") if name not in read.columns]
        if missing:
            raise TimeloomError(
                f"a file of labels.mappings has no column {missing[0]}", remedy="its columns are code and parent"
            )
        frames.append(read.select(pl.col("code", "parent").str.strip_chars()).drop_nulls())
    return pl.concat(frames).unique().sort("code", "parent")


def edges_of(codes: pl.DataFrame, mappings: pl.DataFrame, parents_of_none: Sequence[str]) -> pl.DataFrame:
    """`code`, `parent` of every tie, but those of codes that are no fact of their parents' kind.

    Args:
        codes: `code`, `parent_codes` of metadata/codes.parquet.
        mappings: as `read_mappings` gives them; a site's own tie counts whatever its code is.
    """
    known = codes.select("code", pl.col("parent_codes").alias("parent")).explode("parent").drop_nulls()
    none = "|".join(re.escape(name).replace(r"\*", "[A-Z0-9_]*") for name in parents_of_none)
    if none:
        known = known.filter(~pl.col("code").str.contains(f"^({none})(/|$)"))
    return pl.concat([known, mappings]).unique()


def resolve(names: Iterable[str], lists: Mapping[str, CodeList], codes: pl.Series, edges: pl.DataFrame) -> pl.DataFrame:
    """Which codes belong to which lists; columns of MEMBERS, sorted.

    Args:
        names: the lists that are wanted.
        codes: the release's codes; derived ones may be among them.
        edges: as `edges_of` gives them.
    """
    nodes = pl.concat([codes.rename("node"), edges["code"].rename("node"), edges["parent"].rename("node")]).unique()
    found = [pl.DataFrame(schema=MEMBERS)]
    for name in names:
        held, left_out = entries_of(name, lists)
        members = _below(_matching(nodes, held), edges).filter(pl.col("code").is_in(codes.implode()))
        if members.is_empty():
            continue
        outside = _below(_matching(nodes, left_out), edges)
        if not outside.is_empty():
            members = members.join(outside.select("code").unique(), on="code", how="anti")
        found.append(members.select("code", pl.lit(name).alias("list"), "node"))
    return pl.concat(found).sort("code", "list", "node")


def _matching(nodes: pl.Series, entries: Sequence[str]) -> pl.Series:
    whole = [entry for entry in entries if not entry.startswith("^") and not entry.endswith("*")]
    others = [expression_of(entry) for entry in entries if entry.startswith("^") or entry.endswith("*")]
    matches = nodes.is_in(pl.Series(whole, dtype=pl.String).implode())
    if others:
        matches |= nodes.str.contains("|".join(f"(?:{entry})" for entry in others))
    return nodes.filter(matches)


def _below(nodes: pl.Series, edges: pl.DataFrame) -> pl.DataFrame:
    """`code`, `node`: the nodes themselves, and whatever has one of them as a parent, or as a parent's parent."""
    reached = pl.DataFrame({"code": nodes, "node": nodes})
    latest = reached
    for _ in range(_DEPTH if len(edges) else 0):
        if latest.is_empty():
            break
        latest = (
            latest.rename({"code": "parent"})
            .join(edges, on="parent", how="inner")
            .select("code", "node")
            .unique()
            .join(reached, on=["code", "node"], how="anti")
        )
        reached = pl.concat([reached, latest])
    return reached


def unknown_systems(entries: Iterable[str], present: Iterable[str]) -> list[str]:
    """A line for each code system that neither the release nor timeloom knows, with the nearest known one."""
    known = dict.fromkeys([*SYSTEMS, *present])
    lines = []
    for system in systems_of(entries):
        if system not in known:
            close = difflib.get_close_matches(system, known, 1, 0.5)
            lines.append(
                f"{system} is no code system of this release" + (f", did you mean {close[0]}?" if close else "")
            )
    return lines
