"""What a release lacks for a task, each in one line, with the mapping that would help."""

from collections.abc import Mapping

import polars as pl

from pipelines.tasks.codes import DERIVED, OLDER, CodeList, entries_of, systems_of, unknown_systems
from pipelines.tasks.definition import BIRTH, DEATH, ORDER, TaskConfig, bare

# What each derived event is made of, as lists of codes.
MADE_OF = {
    "AKI_KDIGO": ("creatinine",),
    "LOT": ("antineoplastic",),
    "NEUTROPENIC_FEVER": ("neutropenia", "fever"),
    "FEBRILE_NEUTROPENIA": ("neutrophils", "temperature"),
}


def lists_below(names: list[str], lists: Mapping[str, CodeList]) -> list[str]:
    """The lists that derived events of some lists are made of."""
    entries = [entry for name in names for entry in entries_of(name, lists)[0]]
    parts = [parts for kind, parts in MADE_OF.items() if any(f"{DERIVED}//{kind}" in entry for entry in entries)]
    return sorted({name for part in parts for name in part})


def is_derived(name: str, lists: Mapping[str, CodeList]) -> bool:
    """Whether a list holds derived events and nothing else."""
    return systems_of(entries_of(name, lists)[0]) == [DERIVED]


def namespaces_of(codes: pl.Series) -> list[str]:
    """What codes begin with, up to a slash."""
    return codes.str.extract(r"^([^/]+)", 1).drop_nulls().unique().sort().to_list()


def missing_of(
    task: TaskConfig, lists: Mapping[str, CodeList], members: pl.DataFrame, present: list[str]
) -> tuple[list[str], list[str]]:
    """What keeps a task's labels from being made, and what else it lacks; a line each.

    Args:
        members: `code`, `list` of the release.
        present: the namespaces of the release's codes and of their parents.
    """
    held = set(members["list"].unique().to_list())
    decisive: list[str] = []
    further: list[str] = []
    purposes = task.lists()
    lacking: dict[str, str] = {}
    for name, purpose in purposes.items():
        sources = lists_below([name], lists) if is_derived(name, lists) else [name]
        for source in sources:
            if source not in held and purpose != ORDER:
                lacking[source] = purpose
    outcomes = [name for name, purpose in purposes.items() if purpose == "outcome"]
    # A composite has an outcome as long as one of its parts has a code.
    some_outcome = any(
        not set(lists_below([name], lists) if is_derived(name, lists) else [name]) & lacking.keys() for name in outcomes
    )
    for source, purpose in lacking.items():
        if source == BIRTH and task.index.min_age is None:
            continue  # The wash-in alone: without births, none is taken for the beginning of a record.
        line = _line(source, purpose, lists, present)
        whole = purpose in ("index event", "required") or (purpose == "outcome" and not some_outcome)
        (decisive if whole or (source == BIRTH and task.index.min_age is not None) else further).append(line)
    entries = [entry for name in purposes for entry in entries_of(name, lists)[0]]
    further += unknown_systems(entries, present)
    return decisive, further


def _line(name: str, purpose: str, lists: Mapping[str, CodeList], present: list[str]) -> str:
    systems = [system for system in systems_of(entries_of(name, lists)[0]) if system != DERIVED]
    if name == DEATH:
        if purpose == "outcome":
            return "no code of the release is a death (MEDS_DEATH): its source names no table of deaths"
        return "no code of the release is a death (MEDS_DEATH): nobody is left out for a competing death"
    if name == BIRTH:
        return "no code of the release is a birth (MEDS_BIRTH): nobody's age is known; min_age: null asks for none"
    wanted = " or ".join(systems[:3])
    absent = [system for system in systems if system not in present]
    if len(absent) == len(systems):
        return (
            f"it wants {wanted} codes for {bare(name)} ({purpose}), and none of the release's codes is one or has "
            f"one as its parent: name a crosswalk to {wanted} with the source, or a file under labels.mappings"
        )
    return f"no code of the release is {bare(name)} ({purpose}), of {wanted}: map codes to them under labels.mappings"


def older_codes(systems: list[str], codes: pl.DataFrame, edges: pl.DataFrame) -> list[str]:
    """A line for each older system of whose codes some have no parent in the newer one.

    Args:
        systems: the code systems that tasks name.
        codes: `code` of the release.
        edges: `code`, `parent`.
    """
    lines = []
    for newer, older in OLDER.items():
        of_older = codes.filter(pl.col("code").str.starts_with(f"{older}/"))
        if newer not in systems or of_older.is_empty():
            continue
        mapped = edges.filter(pl.col("parent").str.starts_with(f"{newer}/"))
        unmapped = of_older.join(mapped, on="code", how="anti").height
        if unmapped:
            lines.append(
                f"{unmapped:,} of {of_older.height:,} {older} codes have no parent in {newer} and count for no task: "
                f"name a crosswalk from {older} to {newer} with the source, or a file under labels.mappings"
            )
    return lines
