"""triplets: one bucket's items and events → images, text and record of each study. Schema out: TRIPLETS, FUNNEL.

Some subjects are done at a time, so that memory does not grow with the bucket.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from extractors.extractor import imported
from extractors.items import UnitRequest, VerdictError
from extractors.modalities import EXTRACTORS
from pipelines.clinifuse.graph import types_of
from pipelines.clinifuse.sentences import sentences_of
from pipelines.clinifuse.settings import GraphsConfig, TripletsConfig
from pipelines.clinifuse.studies import NO_TEXT, NO_VISIT, pair
from pipelines.clinifuse.visits import read_events, visits_of
from pipelines.engine.context import counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.papers.digests import raw_params
from pipelines.papers.duplicates import scheme_of
from pipelines.profiles.choosing import parents_hash
from pipelines.split import hashes_of
from pipelines.stores import RawParams, raw_items
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
from warehouse.hashing import bucket_of
from warehouse.items import each_once
from warehouse.layout import ReleaseLayout, bucket_name
from warehouse.manifest import TripletsEntry
from warehouse.parquet import read_frame, table_writer, write_table
from warehouse.schemas import FUNNEL, SPLITS, TRIPLETS

_EVENTS = ("subject_id", "visit_id", "time", "available_time", "code", "kind", "source", "numeric_value")
NO_SPLIT, KEPT_OUT, DUPLICATE = "no_split", "kept_out", "duplicate"


def settings_of(night: Night) -> TripletsConfig | None:
    """The block of the configuration, with the schemes that are kept out where it does not name them."""
    config, labels = night.config.triplets, night.config.labels
    if config is None or config.keep_out is not None:
        return config
    scheme = labels.scheme or night.config.primary_scheme
    evaluated = labels.tasks and scheme != scheme_of(night, config.scheme)
    return config.model_copy(update={"keep_out": (scheme,) if evaluated else ()})


class Counts(TypedDict):
    """What a task tells: usable triplets by split, the others by reason, visits that end before they begin, and linked
    studies whose visit has no primary diagnosis."""

    triplets: dict[str, int]
    set_aside: dict[str, int]
    out_of_order: int
    without_primary: int


class Params(RawParams):
    """What a task is given: paths and settings, the rule of diagnoses, and modalities whose texts the release holds."""

    bucket: int
    scheme: str
    settings: dict[str, Any]
    graphs: dict[str, Any]
    kept_texts: list[str]
    duplicates: bool


def plan(night: Night) -> list[Task]:
    """One task per bucket, up to date as long as its items, events, splits, copies and codes' parents are."""
    config = settings_of(night)
    if config is None:
        return []
    tree, scheme = night.tree, scheme_of(night, config.scheme)
    graphs = night.config.graphs or GraphsConfig()
    rules = graphs.model_dump(mode="json", include={"nodes", "left_out"})
    kept = sorted(name for name, block in night.config.modalities.items() if block.keeps_texts and config.sentences)
    copies = _copies_hashes(night)
    night.report("metadata")
    parents = read_frame(tree.codes).select("code", "parent_codes").drop_nulls("parent_codes")
    events, items = night.report("align").hashes(), night.report("embed").hashes()
    relative = ReleaseLayout(Path())
    splits = {name: hashes_of(night, name) for name in (scheme, *(config.keep_out or ()))}
    return [
        make_task(
            STAGE,
            bucket_name(bucket),
            night.context.staging,
            settings=[config.model_dump(mode="json"), scheme, rules, kept],
            inputs=[
                [events[str(relative.events(bucket))], items[str(relative.items(bucket))]],
                [of_scheme.get(bucket) for of_scheme in splits.values()],
                copies.get(bucket),
                parents_hash(tree, bucket, parents),
            ],
            params=Params(
                **raw_params(night),
                bucket=bucket,
                scheme=scheme,
                settings=config.model_dump(mode="json"),
                graphs=rules,
                kept_texts=kept,
                duplicates=night.config.duplicates is not None,
            ),
        )
        for bucket in range(night.config.buckets)
    ]


def _copies_hashes(night: Night) -> dict[int, str]:
    """Per bucket, a hash of its items that are set aside as copies."""
    night.report("duplicates")
    if night.config.duplicates is None:
        return {}
    aside = _aside(night.tree).sort("item_key")
    buckets = bucket_of(aside["subject_id"].to_numpy(), night.config.buckets)
    grouped = aside.with_columns(pl.Series("bucket", buckets)).group_by("bucket").agg("item_key")
    return {bucket: sha256_json(sorted(keys)) for bucket, keys in grouped.iter_rows()}


def _aside(tree: ReleaseLayout) -> pl.DataFrame:
    return read_frame(tree.copies).filter(pl.col("set_aside")).select("subject_id", "item_key")


def run(params: Params, base: Path) -> Result:
    """Writes one bucket's triplets, and what became of everything that might have made one.

    Raises:
        TimeloomError: a text changed since it was indexed.
    """
    tree, bucket = ReleaseLayout(base), params["bucket"]
    config = TripletsConfig.model_validate(params["settings"])
    items = each_once(read_frame(tree.items(bucket)))
    splits = read_frame(tree.scheme_subjects(params["scheme"])).select("subject_id", "split")
    empty = pl.Series("item_key", [], dtype=pl.String)
    aside = _aside(tree)["item_key"] if params["duplicates"] else empty
    kept_out = _kept_out(tree, config)
    counts = Counts(triplets=dict.fromkeys(SPLITS, 0), set_aside={}, out_of_order=0, without_primary=0)
    funnels = []
    with table_writer(tree.triplets(bucket), TRIPLETS, "triplets") as writer:
        for events in read_events(tree.events(bucket), _EVENTS):
            visits = visits_of(events)
            of_part = items.join(events.select("subject_id").unique(), on="subject_id", how="semi")
            paired = pair(of_part, visits, config)
            found = _with_record(paired.studies.filter(pl.col("text_role") != NO_TEXT), visits, config)
            found = _with_primary(found, events, tree, params, config)
            found = _with_places(found, params)
            found = found.join(splits, on="subject_id", how="left", maintain_order="left").with_columns(
                _reason(aside, kept_out).alias("set_aside")
            )
            writer.add(found.sort("subject_id", "source", "study"))
            funnels += [paired.funnel, _outcomes(found)]
            counts["out_of_order"] += paired.out_of_order
            counts["without_primary"] += found.filter(pl.col("has_ehr") & pl.col("primary_dx").is_null()).height
            _add(counts, found)
    funnel = pl.concat(funnels) if funnels else pl.DataFrame(schema=dict.fromkeys(FUNNEL.names, pl.String))
    funnel = funnel.group_by("source", "step", "rule").agg(pl.col("number").cast(pl.Int64).sum())
    rows = write_table(tree.funnel(bucket), funnel.sort("source", "step", "rule"), FUNNEL, "the funnel")
    files: dict[str, int | None] = {
        str(tree.triplets(bucket).relative_to(base)): writer.rows,
        str(tree.funnel(bucket).relative_to(base)): rows,
    }
    return Result(files, counts)


def _kept_out(tree: ReleaseLayout, config: TripletsConfig) -> pl.Series:
    """Subjects that models are evaluated on under other schemes."""
    found = [pl.Series("subject_id", [], dtype=pl.Int64)]
    for scheme in config.keep_out or ():
        found.append(read_frame(tree.scheme_subjects(scheme)).filter(pl.col("split") == "held_out")["subject_id"])
    return pl.concat(found)


def _reason(aside: pl.Series, kept_out: pl.Series) -> pl.Expr:
    """Why a triplet is not to be used; null where it is."""
    copied = (
        pl.col("text_key").is_in(aside.implode())
        | pl.col("image_keys").list.eval(pl.element().is_in(aside.implode())).list.any()
    )
    return (
        pl.when(pl.col("split").is_null())
        .then(pl.lit(NO_SPLIT))
        .when(pl.col("subject_id").is_in(kept_out.implode()))
        .then(pl.lit(KEPT_OUT))
        .when(copied)
        .then(pl.lit(DUPLICATE))
    )


def _outcomes(found: pl.DataFrame) -> pl.DataFrame:
    """The funnel's last step: triplets by split, or by why they are set aside."""
    rule = pl.coalesce("set_aside", "split")
    return found.group_by("source", rule=rule).agg(pl.len().cast(pl.Int64).alias("number")).select(
        "source", pl.lit("outcome").alias("step"), "rule", "number"
    )  # fmt: skip


def _add(counts: Counts, found: pl.DataFrame) -> None:
    for split, reason, number in found.group_by("split", "set_aside").len().iter_rows():
        if reason is None:
            counts["triplets"][split] += number
        else:
            counts["set_aside"][reason] = counts["set_aside"].get(reason, 0) + number


def _with_record(studies: pl.DataFrame, visits: pl.DataFrame, config: TripletsConfig) -> pl.DataFrame:
    """Studies with triplet_id, has_ehr, ehr_cutoff_time and visit_ids: those that had begun by then, its own last."""
    linked = pl.col("link_rule") != NO_VISIT
    cutoff = pl.col("low") if config.cutoff == "study" else pl.max_horizontal("low", "finish")
    studies = studies.with_columns(
        pl.concat_str(pl.col("image_keys").list.last(), "text_key").alias("triplet_id"),
        linked.alias("has_ehr"),
        pl.when(linked).then(cutoff).alias("ehr_cutoff_time"),
    )
    before = (
        studies.filter("has_ehr")
        .select("triplet_id", "subject_id", "visit", "ehr_cutoff_time")
        .join(visits.select("subject_id", "visit_id", "start", other="visit"), on="subject_id")
        .with_columns((pl.col("other") == pl.col("visit")).alias("own"))
        .filter((pl.col("start") <= pl.col("ehr_cutoff_time")) | pl.col("own"))
        .sort("triplet_id", "own", "other")
        .group_by("triplet_id")
        .agg(pl.col("visit_id").alias("visit_ids"))
    )
    return studies.join(before, on="triplet_id", how="left", maintain_order="left")


def _with_primary(
    studies: pl.DataFrame, events: pl.DataFrame, tree: ReleaseLayout, params: Params, config: TripletsConfig
) -> pl.DataFrame:
    """Studies with the primary diagnosis of their visit, and when it was known."""
    pairs = types_of(events.select("source", "code").unique(), GraphsConfig.model_validate(params["graphs"]))
    diagnoses = pairs.filter(pl.col("type") == "diagnosis")
    rows = (
        events.join(studies.select("visit_id").drop_nulls().unique(), on="visit_id", how="semi")
        .join(diagnoses.select("source", "code"), on=["source", "code"])
        .with_columns(pl.coalesce("available_time", "time").alias("available_time"))
    )
    if config.primary == "rank":
        rows = rows.drop_nulls("numeric_value").sort("numeric_value", "available_time", "code")
    else:
        rows = (rows if config.primary == "first" else rows.clear()).sort("available_time", "time", "code")
    first = rows.unique(["subject_id", "visit_id"], keep="first", maintain_order=True)
    first = first.select("subject_id", "visit_id", code="code", primary_dx_time="available_time")
    if config.primary_system is not None:
        system = f"{config.primary_system}/"
        parents = read_frame(tree.codes).select("code", parent="parent_codes").explode("parent")
        only = (
            parents.filter(pl.col("parent").str.starts_with(system) & ~pl.col("code").str.starts_with(system))
            .unique()
            .filter(pl.len().over("code") == 1)
        )
        first = first.join(only, on="code", how="left").with_columns(pl.coalesce("parent", "code").alias("code"))
    first = first.select("subject_id", "visit_id", "primary_dx_time", primary_dx="code")
    return studies.join(first, on=["subject_id", "visit_id"], how="left", maintain_order="left")


def _with_places(studies: pl.DataFrame, params: Params) -> pl.DataFrame:
    """Studies with the places of windows and sentences in their texts."""
    schema: dict[str, Any] = {"text_key": pl.String} | dict.fromkeys(
        ("segment_begins", "segment_ends", "sentence_begins", "sentence_ends"), pl.List(pl.Int32)
    )
    texts = studies.select("text_key", "text_modality").unique().sort("text_key")
    rows = [row for (name,), part in texts.group_by("text_modality") for row in _places(str(name), part, params)]
    found = pl.DataFrame(rows, schema=schema, orient="row")
    return studies.join(found, on="text_key", how="left", maintain_order="left")


def _places(modality: str, texts: pl.DataFrame, params: Params) -> Iterator[tuple[Any, ...]]:
    extractor = EXTRACTORS[modality]
    read_units, text_of = imported(extractor.read_units), imported(extractor.text)
    raw = raw_items(params, modality, dict.fromkeys(texts["text_key"], 0))
    for key in texts["text_key"]:
        item = raw[key]
        request = UnitRequest(item.root, item.paths, item.geometry)
        try:
            windows = np.concatenate([batch.places for batch in read_units(request, extractor.units_a_batch)])
            whole = text_of(request) if modality in params["kept_texts"] else None
        except VerdictError as error:
            raise TimeloomError(
                f"texts of {modality} items are not what they were when they were indexed", remedy="run again"
            ) from error
        sentences = (None, None) if whole is None else sentences_of(whole)
        yield key, windows[:, 1].tolist(), windows[:, 2].tolist(), *sentences


def declare(night: Night) -> dict[str, Any]:
    """How many triplets there are."""
    config = settings_of(night)
    if config is None:
        return {}
    counted = [counts_of(entry, Counts) for entry in night.report(STAGE.name).entries.values()]
    reasons = sorted({reason for counts in counted for reason in counts["set_aside"]})
    return {
        "triplets": TripletsEntry(
            rules=config.model_dump(mode="json"),
            scheme=scheme_of(night, config.scheme),
            triplets={split: sum(counts["triplets"][split] for counts in counted) for split in SPLITS},
            set_aside={reason: sum(counts["set_aside"].get(reason, 0) for counts in counted) for reason in reasons},
        )
    }


STAGE = Stage(
    "triplets",
    version=2,
    run="pipelines.papers.triplets:run",
    after=("index", "embed", "align", "metadata", "split", "duplicates"),
    keys=("triplets", "graphs", "duplicates", "labels"),
    plan=plan,
    declare=declare,
    settings_are=("triplets", "scheme", "graphs", "texts kept"),
    inputs_are=("events and items", "splits", "copies", "parents of its codes"),
)
