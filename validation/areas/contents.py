"""Contents: how much the release holds, part by part, against its manifest and the releases before it."""

from shlex import quote
from typing import Any

import polars as pl

from validation.areas.area import Area, Check, Expectation
from validation.measure.measured_release import MeasuredRelease
from warehouse.manifest import ContentEntry

SAID = 5  # parts that a message names before it counts the rest


def measure(release: MeasuredRelease) -> pl.DataFrame:
    """A row per part and measure of which there is less than before, see `measure_losses`; one empty row for none."""
    losses = release.losses
    if losses.is_empty():
        losses = pl.DataFrame([{"kind": "", "name": "", "within": "", "lost": 0, "accepted": 0}], schema=losses.schema)
    declared = release.declared if release.declared is not None else release.contents
    return losses.with_columns(pl.lit(len(_miscounted(declared, release.contents)), pl.Int64).alias("miscounted"))


def part_of(line: dict[str, Any]) -> str:
    """A part of a release, in words."""
    kind, name, within = line["kind"], line["name"], line["within"]
    if kind == "tokens":
        return f"namespace {name} of profile {within}"
    return f"{kind} {name} of {within}" if within else f"{kind} {name}"


def _words(broken: pl.DataFrame) -> str:
    """What was lost. What follows from the loss of a table, its namespaces and tokens, is not said beside it."""
    first = broken.filter(pl.col("kind") == pl.col("kind").first())
    parts: dict[str, list[str]] = {}
    for line in first.iter_rows(named=True):
        parts.setdefault(part_of(line), []).append(f"{line['now']} of {line['before']} {line['measure']}")
    said = [f"{part} has {', '.join(counts)}" for part, counts in parts.items()]
    rest = len(said) - SAID
    return "; ".join(said[:SAID]) + (f"; and {rest} more" if rest > 0 else "")


def _remedy(broken: pl.DataFrame) -> str:
    kind = pl.col("kind")
    names = broken.filter(kind == kind.first())["option"].unique(maintain_order=True)
    options = " ".join(f"--accept-loss {quote(name)}" for name in names.head(SAID))
    return f"mend the export, or agree to the loss for this night: {options}"


def _miscounted(declared: Any, held: list[ContentEntry]) -> list[str]:
    """Parts that the manifest counts otherwise than they are."""
    said, found = ({entry.key: entry.counts for entry in entries} for entries in (declared, held))
    return [
        part_of(dict(zip(("kind", "name", "within"), key, strict=True)))
        for key in sorted(said.keys() | found.keys())
        if said.get(key) != found.get(key)
    ]


def _against_manifest(release: MeasuredRelease) -> pl.DataFrame:
    """A row per part that the manifest counts otherwise; none where it counts nothing."""
    parts = _miscounted(release.declared, release.contents) if release.declared is not None else []
    return pl.DataFrame({"part": parts, "miscounted": [1] * len(parts)}, schema_overrides={"part": pl.String})


CONTENTS = Check("contents", _against_manifest, lambda _: "every part holds what the manifest says", located_by="part")

AREA = Area(
    "contents",
    measure,
    (
        Expectation(
            "lost",
            "No table, source, modality or namespace holds much less than in the releases before.",
            kind="number",
            words=_words,
            remedy=_remedy,
        ),
        Expectation(
            "miscounted",
            "The manifest says how much every table, modality and namespace holds.",
            kind="number",
            check=CONTENTS,
            fault="other counts than in the manifest",
        ),
    ),
)
