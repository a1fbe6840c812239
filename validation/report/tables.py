"""The report's tables, made from measurements, small cells hidden: on the page, as JSON and as Parquet alike."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from extractors.items import VERDICTS
from validation.gate.judge import Judgement, Outcome
from validation.measure.cohort.subjects import IMAGING, INTERVALS, MODALITY_SETS, QUANTILES, STRUCTURED
from validation.measurements import Measurements
from validation.report.around_tables import join_table, loss_table, subject_table, tokenised_table
from validation.report.cells import LARGEST_SMALL, SMALL, WITHHELD, Cell, Cells, Hidden, follow
from validation.report.label_tables import attrition_table, label_table
from validation.report.ledger_tables import (
    availability_table,
    code_table,
    conflict_table,
    ledger_table,
    partial_table,
    quarantine_table,
    time_format_table,
)
from validation.report.strata_tables import strata_table, task_strata_table
from validation.report.table import Column, Format, Row, Table
from validation.report.triplet_tables import copies_table, funnel_table
from validation.report.vocabulary_tables import budget_table, coverage_table
from warehouse.modalities import INDEXED, MODALITIES, title_of
from warehouse.schemas import SPLITS
from warehouse.shards.packs import DEFAULT_PLAN

INTERVAL_HEADINGS = {
    "interval_tokens": "Interval over tokens (days)",
    "interval_times": "Interval over distinct times (days)",
    "interval_pooled": "Pooled gaps (days)",
}


def verdict_table(measurements: Measurements, cells: Cells) -> Table:
    """Images by modality and verdict."""
    rows: list[Row] = []
    for line in measurements.areas["items"].iter_rows(named=True):
        if not line["items"]:  # of an item that another encoder made a vector of; see encoder_table
            continue
        items = cells.count(line["items"])
        units = {
            name: follow(items, cells.count(line[name])) for name in ("units_expected", "units_encoded", "units_failed")
        }
        meaning = VERDICTS.get(line["verdict"], "unknown")
        modality = title_of(line["modality"])
        rows.append({"modality": modality, "verdict": line["verdict"], "meaning": meaning, "items": items} | units)
    columns = [
        Column("modality", "Modality", "text"),
        Column("verdict", "Verdict", "text"),
        Column("meaning", "Meaning", "text"),
        Column("items", "Items"),
        Column("units_expected", "Units expected"),
        Column("units_encoded", "Encoded"),
        Column("units_failed", "Failed"),
    ]
    each = " or ".join(f"a {MODALITIES[name].unit} of a {MODALITIES[name].title}" for name in INDEXED)
    note = f"A unit is {each}. An item that is not usable leaves no vector."
    return Table("verdicts", "Images", columns, rows, note)


def encoder_table(measurements: Measurements, cells: Cells) -> Table:
    """Images by encoder, of modalities that have several."""
    rows: list[Row] = []
    found = measurements.areas["encoders"]
    for line in found.filter(pl.col("store").n_unique().over("modality") > 1).iter_rows(named=True):
        alone = cells.count(line["failed_here_alone"])
        # Those that fail here alone are the difference from all usable images, which stands in another table.
        shown = {name: follow(alone, cells.count(line[name])) for name in ("usable", "failed")}
        row: Row = {"modality": title_of(line["modality"]), "encoder": line["encoder"], "store": line["store"]}
        rows.append(row | shown | {"failed_here_alone": alone})
    columns = [
        Column("modality", "Modality", "text"),
        Column("encoder", "Encoder", "text"),
        Column("store", "Store", "text"),
        Column("usable", "With a vector"),
        Column("failed", "Failed"),
        Column("failed_here_alone", "Of these with a vector elsewhere"),
    ]
    note = "An image that fails under one encoder has no token in profiles that name this encoder, and one in others."
    return Table("by_encoder", "Images by encoder", columns, rows, note)


def withheld_splits(counted: pl.DataFrame, cells: Cells) -> frozenset[str]:
    """Of the splits of one scheme, with their `subjects`, those whose number of patients is withheld.

    Nothing that adds up to it, or follows from it, may be shown either.
    """
    shown = cells.parts(counted["subjects"].to_list())
    return frozenset(split for split, cell in zip(counted["split"], shown, strict=True) if isinstance(cell, Hidden))


def _parts(values: Sequence[int], withheld: bool, cells: Cells) -> list[Cell]:
    """Parts of a number of patients that is shown, or is withheld itself."""
    shown = cells.parts(values)
    if withheld:
        shown = [WITHHELD if value and cell is not SMALL else cell for value, cell in zip(values, shown, strict=True)]
    return shown


def sets_table(measurements: Measurements, withheld: Collection[str], cells: Cells) -> Table:
    """The numbers of Figure A1: subjects by modality set and split."""
    rows: list[Row] = []
    for (split,), part in measurements.sets.group_by("split", maintain_order=True):
        shown = _parts(part["subjects"].to_list(), str(split) in withheld, cells)
        for kind, share, cell in zip(part["set"], part["share"], shown, strict=True):
            rows.append({"split": str(split), "set": kind, "subjects": cell, "share": follow(cell, share)})
    columns = [
        Column("split", "Split", "text"),
        Column("set", "Modalities", "text"),
        Column("subjects", "Patients"),
        Column("share", "Of the split", "share"),
    ]
    return Table("figure_a1", "Modalities by split", columns, rows)


def histogram_table(measurements: Measurements, withheld: Collection[str], cells: Cells) -> Table:
    """Subjects by length and split."""
    rows: list[Row] = []
    for (split,), part in measurements.histogram.group_by("split", maintain_order=True):
        shown = _parts(part["subjects"].to_list(), str(split) in withheld, cells)
        for low, share, cell in zip(part["low"], part["share"], shown, strict=True):
            rows.append({"split": str(split), "low": low, "subjects": cell, "share": follow(cell, share)})
    columns = [
        Column("split", "Split", "text"),
        Column("low", "Length from"),
        Column("subjects", "Patients"),
        Column("share", "Of the split", "share"),
    ]
    return Table("lengths", "Length of timelines", columns, rows)


def _points(line: Mapping[str, Any], cells: Cells) -> Cell:
    """A split's largest difference of a modality's share, too coarse to work out a number of patients."""
    points: float | None = line["modality_points"]
    if cells.open or points is None:
        return points
    coarse = 100 * 2 * LARGEST_SMALL / max(1, int(line["subjects"]))
    return round(points / coarse) * coarse if coarse <= 1 else WITHHELD


def balance_table(measurements: Measurements, cells: Cells) -> Table:
    """How alike the splits of each scheme are, and how many patients are set aside."""
    statistics = ("length_ks", "length_smd", "interval_smd", "modality_points")
    rows: list[Row] = []
    for (scheme,), part in measurements.areas["splits"].group_by("scheme", maintain_order=True):
        shown = cells.parts(part["subjects"].to_list())
        for line, cell in zip(part.iter_rows(named=True), shown, strict=True):
            row: Row = {"scheme": str(scheme), "split": line["split"], "subjects": cell, "target": line["target"]}
            row["share"] = follow(cell, line["share"])
            both = shown[0] if isinstance(shown[0], Hidden) else cell
            row |= {name: follow(both, line[name]) for name in statistics}
            rows.append(row | {"modality_points": follow(both, _points(line, cells))})
        if (aside := int(part["set_aside"][0])) > 0:
            blank: Row = dict.fromkeys(("share", "target", *statistics))
            rows.append({"scheme": str(scheme), "split": "set aside", "subjects": cells.count(aside)} | blank)
    columns = [
        Column("scheme", "Scheme", "text"),
        Column("split", "Split", "text"),
        Column("subjects", "Patients"),
        Column("share", "Share", "share"),
        Column("target", "Asked", "share"),
        Column("length_ks", "Length, KS", "fine"),
        Column("length_smd", "Log length, SMD", "fine"),
        Column("interval_smd", "Interval, SMD", "fine"),
        Column("modality_points", "Modalities, points", "fine"),
    ]
    note = (
        "Each split against train: Kolmogorov-Smirnov distance, standardised mean differences, and the largest "
        "difference of a modality set's share. Set aside: ids that the hospital merged after they had different splits."
    )
    return Table("balance", "How alike the splits are", columns, rows, note)


def cohort_table(
    measurements: Measurements, sets: Table, population: str, withheld: Collection[str], cells: Cells
) -> Table:
    """Table A1 (all patients) or A2 (patients with images), a row per split."""
    part = measurements.cohorts.filter(pl.col("population") == population)
    counts = part["subjects"].to_list()
    shown = [
        WITHHELD if count and split in withheld and cell is not SMALL else cell
        for split, count, cell in zip(part["split"], counts, cells.parts(counts), strict=True)
    ]
    without = {row["split"]: row["subjects"] for row in sets.rows if row["set"] == MODALITY_SETS[0]}
    rows: list[Row] = []
    for line, cell in zip(part.iter_rows(named=True), shown, strict=True):
        # patients with images are all of them but the structured only: hidden together
        subjects = (
            cell if population == STRUCTURED or isinstance(cell, Hidden) else follow(without[line["split"]], cell)
        )
        row: Row = {
            "split": line["split"],
            "subjects": subjects,
            "share": follow(subjects, line["share"]),
            "tokens": follow(subjects, line["tokens"]),
        }
        for prefix in ("length", *INTERVALS):
            row |= _statistics(line, prefix, subjects, cells)
        rows.append(row)
    columns = [
        Column("split", "Split", "text"),
        Column("subjects", "Patients"),
        Column("share", "Share of patients", "share"),
        Column("tokens", measurements.length_unit.split(" of ")[0].capitalize()),
        *_headings("length", "Length"),
        *(column for name, heading in INTERVAL_HEADINGS.items() for column in _headings(name, heading)),
    ]
    name, title, length = (
        ("table_a1", "Table A1. All patients, structured data", "structured tokens")
        if population == STRUCTURED
        else ("table_a2", "Table A2. Patients with images, structured data and images", "structured and image tokens")
    )
    readings = "; ".join(f"{INTERVAL_HEADINGS[name].lower()}: {meaning}" for name, meaning in INTERVALS.items())
    note = (
        f"Length: {length} a patient ({measurements.length_unit}). The papers do not define their interval; "
        f"{readings}. The first is the one of Table A1. Nothing is clipped."
    )
    return Table(name, title, columns, rows, note, upright=True)


def _statistics(line: Mapping[str, Any], prefix: str, subjects: Cell, cells: Cells) -> Row:
    # Pooled gaps are as many as times, but what they would give away is the patients that have them.
    count = line["interval_times_n" if prefix == "interval_pooled" else f"{prefix}_n"]
    enough = follow(subjects, cells.count(count))
    row: Row = {f"{prefix}_{name}": follow(enough, line[f"{prefix}_{name}"]) for name in ("mean", "sd")}
    for name, quantile in QUANTILES.items():
        value = follow(enough, line[f"{prefix}_{name}"])
        row[f"{prefix}_{name}"] = value if cells.tail(count, quantile) else WITHHELD
    return row


def _headings(prefix: str, heading: str) -> list[Column]:
    names = {"mean": "mean", "sd": "standard deviation", "p1": "1st percentile", "q1": "1st quartile"}
    names |= {"median": "median", "q3": "3rd quartile", "p99": "99th percentile", "min": "minimum", "max": "maximum"}
    kind: Format = "tenths" if prefix == "length" else "number"
    return [Column(f"{prefix}_{name}", f"{heading}, {words}", kind) for name, words in names.items()]


def shard_table(measurements: Measurements, cohort: Table, withheld: Collection[str], cells: Cells) -> Table:
    """Shards by profile, plan and split; what would give a hidden number of patients away is hidden too."""
    known = {row["split"]: row["subjects"] for row in cohort.rows}
    names = ("packs", "tokens_timeline", "tokens_dropped", "tokens_shards", "token_difference", "fill", "max_segments",
             "image_places")  # fmt: skip
    rows: list[Row] = []
    for _, part in measurements.areas["shards"].group_by("profile", "plan", maintain_order=True):
        # Their sum is known from the verdicts: a split's small number could be worked out from it.
        images = cells.parts(part["image_places"].to_list())
        for line, places in zip(part.iter_rows(named=True), images, strict=True):
            # A further plan may hold a few subjects, and as many packs, or as many as a split has.
            further = line["plan"] != DEFAULT_PLAN
            subjects = cells.count(line["subjects_shards"]) if further else known.get(line["split"])
            if line["split"] in withheld:
                subjects = WITHHELD
            whole: Row = {name: line[name] for name in names}
            # Cut to two digits: tokens less those of Table A1 are tokens of images.
            whole |= {name: cells.rounded(line[name]) for name in names[:4]}
            if not cells.open and line["fill"] is not None:
                whole["fill"] = round(line["fill"], 2)
            shown = {name: follow(subjects, value) for name, value in whole.items()}
            shown["image_places"] = follow(shown["image_places"], places)
            rows.append({name: line[name] for name in ("profile", "plan", "split")} | shown)
    columns = [
        Column("profile", "Profile", "text"),
        Column("plan", "Plan", "text"),
        Column("split", "Split", "text"),
        Column("packs", "Packs"),
        Column("tokens_timeline", "Tokens in timelines"),
        Column("tokens_dropped", "Left out by the plan"),
        Column("tokens_shards", "Tokens in shards"),
        Column("token_difference", "Difference"),
        Column("fill", "Fill", "share"),
        Column("max_segments", "Most segments"),
        Column("image_places", "Images"),
    ]
    return Table(
        "shards",
        "Shards",
        columns,
        rows,
        "The difference from what a plan must keep is summed over patients and must be 0."
        + ("" if cells.open else " Packs and tokens are cut to two digits."),
    )


def expectation_table(judgement: Judgement, cells: Cells) -> Table:
    """Every expectation with its result."""
    rows: list[Row] = [
        {
            "suite": result.suite,
            "sentence": result.sentence,
            "severity": result.severity,
            "result": "pass" if result.success else "fail",
            "observed": _observed(result, cells),
            "rule": result.rule,
        }
        for result in judgement.results
    ]
    headings = {"suite": "Suite", "sentence": "Expectation", "severity": "Severity", "result": "Outcome"}
    columns = [Column(name, heading, "text") for name, heading in headings.items()]
    columns += [Column("observed", "Observed", "number"), Column("rule", "Required", "text")]
    return Table("expectations", "Expectations", columns, rows)


def _observed(result: Outcome, cells: Cells) -> Cell:
    """The value behind a result; a share or deviation of few subjects would give their number away."""
    value = result.observed
    if value is None or cells.open or result.kind == "number":
        return value
    if result.kind == "derived":
        return WITHHELD
    return cells.rounded(int(value))


def listed(
    name: str, title: str, given: Sequence[Mapping[str, Any]], formats: Mapping[str, tuple[str, Format]]
) -> Table:
    """A table of what the caller gives: a row per entry, the columns that `formats` names and any entry has."""
    columns = [
        Column(key, heading, kind) for key, (heading, kind) in formats.items() if any(key in entry for entry in given)
    ]
    return Table(name, title, columns, [{column.name: entry.get(column.name) for column in columns} for entry in given])


def build_tables(measurements: Measurements, judgement: Judgement, cells: Cells) -> dict[str, Table]:
    """All tables by name."""
    withheld = withheld_splits(measurements.cohorts.filter(pl.col("population") == STRUCTURED), cells)
    # A profile may have another scheme than that of Table A1.
    schemes = measurements.areas["splits"].partition_by("scheme")
    anywhere = withheld.union(*(withheld_splits(scheme, cells) for scheme in schemes))
    ledger, sets = ledger_table(measurements, cells), sets_table(measurements, withheld, cells)
    first, second = (
        cohort_table(measurements, sets, population, withheld, cells) for population in (STRUCTURED, IMAGING)
    )
    alike = balance_table(measurements, cells)
    shown = {row["subjects"] for table in (first, second, alike) for row in table.rows if row["split"] == SPLITS[0]}
    attrition = attrition_table(measurements, cells)
    tables = [
        expectation_table(judgement, cells),
        loss_table(measurements, cells),
        subject_table(measurements, cells),
        ledger,
        quarantine_table(measurements, ledger, cells),
        partial_table(measurements, cells),
        join_table(measurements, cells),
        conflict_table(measurements, cells),
        availability_table(measurements, ledger, cells),
        time_format_table(measurements, ledger, cells),
        code_table(measurements),
        verdict_table(measurements, cells),
        encoder_table(measurements, cells),
        first,
        second,
        sets,
        alike,
        histogram_table(measurements, withheld, cells),
        shard_table(measurements, first, anywhere, cells),
        budget_table(measurements.budgets, {cell for cell in shown if isinstance(cell, int)}, cells),
        tokenised_table(measurements, cells),
        coverage_table(measurements.coverage, anywhere, cells),
        attrition,
        label_table(measurements, attrition, anywhere, cells),
        strata_table(measurements, withheld, cells),
        task_strata_table(measurements, attrition, cells),
        funnel_table(measurements, cells),
        copies_table(measurements, cells),
    ]
    return {table.name: table for table in tables}
