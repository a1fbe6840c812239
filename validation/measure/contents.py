"""How much every part of a release holds: what its manifest says of it, and what later releases are compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from extractors.items import WAITING
from validation.measure.measures import Measures
from warehouse.items import each_once
from warehouse.manifest import ContentEntry

BIRTH = "MEDS_BIRTH"
ALONE = "alone"


@dataclass(frozen=True)
class TableName:
    """A table as the configuration's sources name it, whatever events call it."""

    source: str
    table: str

    def __str__(self) -> str:
        return f"{self.source}/{self.table}" if self.source else self.table


def table_names(sources: Iterable[str]) -> dict[str, TableName]:
    """The tables by what events and the ledger call them.

    Args:
        sources: keys of a manifest's `sources`: source, table as the ledger calls it, number of the file.
    """
    files = [key.rpartition("/")[0].partition("/") for key in sources]
    several = len({source for source, _, _ in files}) > 1
    # Where a run has several sources, events name the source too.
    return {
        label: TableName(source, label.removeprefix(f"{source}/") if several else label) for source, _, label in files
    }


@dataclass(frozen=True)
class Holdings:
    """What tables and modalities hold.

    Attributes:
        spaces: `label` (as events call a table), `namespace`, `events`, `static` (of them without a time).
        sets: `labels`, `subjects`: how many subjects have events of exactly these tables.
        imaged: `modality`, `items` (usable, or waiting for their vectors), `subjects` (of all items), `alone` (those
            that no table has).
    """

    spaces: pl.DataFrame
    sets: pl.DataFrame
    imaged: pl.DataFrame


def read_holdings(measures: Measures, items: pl.DataFrame) -> Holdings:
    """What was counted in each bucket, added up.

    Args:
        items: at least `item_key`, `modality`, `verdict`, `subject_id`.

    Raises:
        TimeloomError: a file is damaged.
    """
    spaces = measures.counted("namespace", ["events", "static"], of="label", within="namespace")
    tables = measures.counted("tables", ["subjects"], of="labels")
    sets = tables.with_columns(pl.col("labels").str.json_decode(pl.List(pl.String)))
    subjects = measures.of("subjects").filter("known")
    return Holdings(spaces, sets, _imaged(each_once(items), subjects["subject_id"]))


def _imaged(items: pl.DataFrame, subject_ids: pl.Series) -> pl.DataFrame:
    known = pl.col("subject_id").is_in(subject_ids.implode())
    subjects = items.drop_nulls("subject_id").unique(["modality", "subject_id"])
    alone = subjects.group_by("modality").agg(
        pl.len().cast(pl.Int64).alias("subjects"), (~known).sum().cast(pl.Int64).alias(ALONE)
    )
    # An item that waits for its vector is not lost.
    there = pl.col("verdict").is_in(["ok", WAITING])
    usable = items.group_by("modality").agg(there.sum().cast(pl.Int64).alias("items"))
    return (
        usable.join(alone, on="modality", how="left")
        .with_columns(pl.col("subjects", ALONE).fill_null(0))
        .sort("modality")
    )


def contents_of(
    holdings: Holdings, ledger: pl.DataFrame, coverage: pl.DataFrame, names: Mapping[str, TableName]
) -> list[ContentEntry]:
    """Tables, sources, modalities, namespaces of tables and of profiles' tokens.

    A file that no source maps is no table: it holds nothing.

    Args:
        ledger: columns of LEDGER.
        coverage: columns of COVERAGE.
        names: as `table_names` gives them; a table that is not among them has no source.
    """
    unmapped = ledger.filter(pl.col("reason") == "unmapped_table")["table"].implode()
    counted = (
        ledger.filter(~pl.col("table").is_in(unmapped))
        .group_by("table")
        .agg(
            pl.col("rows").filter(pl.col("outcome") == "raw").sum().alias("raw"),
            pl.col("rows").filter(pl.col("reason") == "duplicate_row").sum().alias("again"),
            (pl.col("outcome") == "raw").any().alias("table_of_rows"),
        )
        .filter("table_of_rows")
    )
    rows = {label: raw - again for label, raw, again in counted.select("table", "raw", "again").iter_rows()}
    events = dict(holdings.spaces.group_by("label").agg(pl.col("events").sum()).iter_rows())
    named = {label: names.get(label, TableName("", label)) for label in sorted({*rows, *events})}
    alone = subjects_alone(holdings, named)
    tables = [
        ContentEntry(
            kind="table",
            name=name.table,
            within=name.source,
            counts={
                "rows": rows.get(label, 0),
                "events": events.get(label, 0),
                "subjects": _subjects(holdings.sets, [label]),
            }
            | ({ALONE: alone[label]} if label in alone else {}),
        )
        for label, name in named.items()
    ]
    return [*tables, *_sources(tables, holdings, named), *_others(holdings, coverage, named)]


def _subjects(sets: pl.DataFrame, labels: list[str]) -> int:
    """Subjects that have events of any of these tables."""
    held = pl.col("labels").list.eval(pl.element().is_in(labels)).list.any()
    return int(sets.filter(held)["subjects"].sum())


def _sources(tables: list[ContentEntry], holdings: Holdings, named: Mapping[str, TableName]) -> Iterable[ContentEntry]:
    for source in sorted({name.source for name in named.values()} - {""}):
        within = [entry for entry in tables if entry.within == source]
        labels = [label for label, name in named.items() if name.source == source]
        counts = {measure: sum(entry.counts[measure] for entry in within) for measure in ("rows", "events")}
        yield ContentEntry(kind="source", name=source, counts=counts | {"subjects": _subjects(holdings.sets, labels)})


def _others(holdings: Holdings, coverage: pl.DataFrame, named: Mapping[str, TableName]) -> Iterable[ContentEntry]:
    for line in holdings.imaged.iter_rows(named=True):
        counts = {name: line[name] for name in ("items", "subjects", ALONE)}
        if not named or holdings.sets.is_empty():
            counts.pop(ALONE)
        yield ContentEntry(kind="modality", name=line["modality"], counts=counts)
    for label, namespace, number, _ in holdings.spaces.iter_rows():
        yield ContentEntry(kind="namespace", name=namespace, within=str(named[label]), counts={"events": number})
    made = coverage.group_by("profile", "namespace").agg((pl.col("tokens") - pl.col("unknown")).sum().alias("tokens"))
    for profile, namespace, tokens in made.filter(pl.col("tokens") > 0).sort("profile", "namespace").iter_rows():
        yield ContentEntry(kind="tokens", name=namespace, within=profile, counts={"tokens": tokens})


def defining_tables(spaces: pl.DataFrame, named: Mapping[str, TableName]) -> dict[str, set[str]]:
    """Of each source the tables that say who is a patient: those with births, else those with facts without a time."""
    found: dict[str, set[str]] = {}
    births = set(spaces.filter(pl.col("namespace") == BIRTH)["label"])
    static = set(spaces.filter(pl.col("static") > 0)["label"])
    for source in {name.source for name in named.values()}:
        labels = {label for label, name in named.items() if name.source == source}
        found[source] = labels & births or labels & static
    return found


def subjects_alone(holdings: Holdings, named: Mapping[str, TableName]) -> dict[str, int]:
    """Of each table with facts, the subjects that no other table knows: most often a second id of one patient.

    A subject is known by the tables of its source that define patients, where it has such tables, and by any table of
    another source; where its source defines no patients, by any other table. Of a table that defines patients nothing
    is said: a patient without a further row is none that is lost, and of the only table with subjects neither.
    """
    with_subjects = {label for labels in holdings.sets["labels"].to_list() for label in labels}
    if len(with_subjects) < 2:
        return {}
    defining = defining_tables(holdings.spaces, named)
    judged = sorted(label for label in with_subjects if label not in defining[named[label].source])
    alone = dict.fromkeys(judged, 0)
    for labels, subjects in holdings.sets.iter_rows():
        for label in set(labels) & alone.keys():
            source = named[label].source
            known_by = {other for other in labels if other != label and named[other].source != source}
            known_by |= (defining[source] or (set(labels) - {label})) & set(labels)
            alone[label] += 0 if known_by else subjects
    return alone
