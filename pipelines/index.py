"""index: a tree of images → one row per item, de-identified, with a verdict before any encoder is loaded.

What ties an item's key to raw files is written to the private folder beside the root, never into it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from extractors.crosswalk import read_crosswalk, relink
from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.extractor import ModalitySettings
from extractors.ids import SubjectIds
from extractors.items import OK, TWO_SUBJECTS, FoundItem
from extractors.modalities import extractor_of
from extractors.same_content import of_two_subjects
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.task import Result, Task
from pipelines.items import private_paths
from pipelines.night import Night, Stage
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_json, write_json
from warehouse.hashing import bucket_of


class Counts(TypedDict):
    """What a task tells: items by verdict, and how many findings were of an item that was found already."""

    modality: str
    verdicts: dict[str, int]
    found_again: int


class Params(TypedDict):
    """What a task is given: paths and settings."""

    modality: str
    settings: dict[str, Any]
    workers: int | None
    deid: dict[str, Any]
    private: str
    buckets: int
    segment: str


def plan(night: Night) -> list[Task]:
    """One task per modality.

    Raises:
        TimeloomError: a folder or crosswalk is missing.
    """
    config, layout, fingerprints = night.config, night.layout, night.fingerprints
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    tasks = []
    for modality, block in sorted(config.modalities.items()):
        if not block.path.is_dir():
            raise TimeloomError(
                f"the folder of {modality} images does not exist: {block.path}",
                remedy=f"mend modalities.{modality}.path",
            )
        crosswalk = block.crosswalk
        if crosswalk is not None and not crosswalk.file.is_file():
            raise TimeloomError(
                f"the crosswalk of {modality} does not exist", remedy=f"mend modalities.{modality}.crosswalk.file"
            )
        fingerprint = sha256_json(
            [STAGE.name, STAGE.version, modality, Fingerprints.of_tree(block.path), str(block.path)]
            + [crosswalk.model_dump(mode="json", exclude={"file"}) if crosswalk else None]
            + [fingerprints.of(crosswalk.file) if crosswalk else None]
            + [config.buckets, config.deid.model_dump(), deid.key_fingerprint]
            # Of its own modality alone: a key of another changes nothing here.
            + [block.model_dump(mode="json", exclude={"path", "crosswalk", "encoder"})]
        )
        name = f"items-{modality}-{fingerprint[:24]}"
        record = layout.segments / f"{name}.json"
        if fingerprints.rehash or not private_paths(layout.private, record.name).is_file():
            record.unlink(missing_ok=True)
        tasks.append(
            Task(
                stage=STAGE.name,
                function=STAGE.run,
                key=modality,
                base=str(layout.segments),
                record=str(record),
                params=Params(
                    modality=modality,
                    settings=block.model_dump(mode="json", exclude={"encoder"}),
                    workers=config.workers,
                    deid=config.deid.model_dump(mode="json"),
                    private=str(layout.private),
                    buckets=config.buckets,
                    segment=f"{name}.parquet",
                ),
                fingerprint=fingerprint,
            )
        )
    return tasks


def run(params: Params, base: Path) -> Result:
    """Indexes one modality's tree."""
    modality = params["modality"]
    extractor = extractor_of(modality)
    settings = extractor.settings.model_validate(params["settings"])
    folder, crosswalk = settings.path, settings.crosswalk
    deid_config = DeidConfig.model_validate(params["deid"])
    deid = Deidentifier(deid_config, load_key(deid_config, Path(params["private"])))
    links = read_crosswalk(crosswalk) if crosswalk else None
    found = extractor.index_items(settings, links, workers=params["workers"])
    found = _spelt(found, settings.subject_ids)
    frame = _rows(found, links if crosswalk and crosswalk.match == "patient_id" else None, settings, deid)
    twice = pl.Series(of_two_subjects(found, frame["subject_id"].to_list(), extractor, folder), dtype=pl.Boolean)
    ok_of_two = twice & (frame["verdict"] == OK)
    frame = frame.with_columns(pl.when(ok_of_two).then(pl.lit(TWO_SUBJECTS)).otherwise("verdict").alias("verdict"))
    frame = frame.with_columns(pl.Series("bucket", _buckets(frame["subject_id"], params["buckets"])))
    paths = {
        key: {"paths": list(item.paths), "geometry": item.geometry}
        for key, verdict, item in zip(frame["item_key"], frame["verdict"], found, strict=True)
        if verdict == OK
    }
    write_json(private_paths(Path(params["private"]), params["segment"]), {"folder": str(folder), "items": paths})
    # An item found twice (a copied folder, two lines of a crosswalk) is one item: a usable finding, if there is one.
    usable_first = frame.sort(pl.col("verdict") != OK, maintain_order=True)
    items = usable_first.unique("item_key", keep="first", maintain_order=True).sort("subject_id", "item_key")
    with atomic_write(base / params["segment"]) as temporary:
        pq.write_table(items.to_arrow(), temporary, compression="zstd", write_page_checksum=True)
    verdicts = dict(items.group_by("verdict").len().sort("verdict").iter_rows())
    counts = Counts(modality=modality, verdicts=verdicts, found_again=len(frame) - len(items))
    return Result({params["segment"]: len(items)}, counts)


def _spelt(found: list[FoundItem], subjects: SubjectIds) -> list[FoundItem]:
    """Items with their subjects' ids in one spelling; null where one is none."""
    raw = pl.Series([item.raw_subject for item in found], dtype=pl.String)
    return [replace(item, raw_subject=text) for item, text in zip(found, subjects.of(raw).to_list(), strict=True)]


def _buckets(subject_ids: pl.Series, buckets: int) -> Any:
    known = subject_ids.fill_null(0).to_numpy()
    return np.where(subject_ids.is_null().to_numpy(), 0, bucket_of(known, buckets)).astype(np.uint16)


def _rows(
    found: list[FoundItem], by_patient: pl.DataFrame | None, settings: ModalitySettings, deid: Deidentifier
) -> pl.DataFrame:
    """One row an item, in the order of `found`, with ids hashed and dates shifted."""
    frame = pl.DataFrame(
        {
            "raw_subject": [item.raw_subject for item in found],
            "item_key": [deid.item_key(f"{item.modality}\0{item.raw_subject}\0{item.identity}") for item in found],
            "modality": [item.modality for item in found],
            "time": [item.time for item in found],
            "available_time": [item.available_time for item in found],
            "time_source": [item.time_source for item in found],
            "time_precision": [item.time_precision for item in found],
            "verdict": [item.verdict for item in found],
            "units_expected": [item.units_expected for item in found],
            "geometry": [json.dumps(_public(item, deid), sort_keys=True) for item in found],
        },
        schema={
            "raw_subject": pl.String, "item_key": pl.String, "modality": pl.String, "time": pl.Datetime("us"),
            "available_time": pl.Datetime("us"), "time_source": pl.String, "time_precision": pl.String,
            "verdict": pl.String, "units_expected": pl.Int32, "geometry": pl.String,
        },
    )  # fmt: skip
    if by_patient is not None:
        frame = relink(frame, by_patient, settings.subject_ids)
    # A date stands at the end of its day, as in every other source: nothing may use it early.
    dated = pl.col("time_precision") == "day"
    end_of_day = pl.col("time").dt.truncate("1d") + pl.duration(days=1) - pl.duration(microseconds=1)
    frame = frame.with_columns(pl.when(dated).then(end_of_day).otherwise("time").alias("time"))
    subjects = frame["raw_subject"]
    offsets = pl.lit(deid.offsets(subjects))
    frame = frame.with_columns(
        deid.subject_ids(subjects).alias("subject_id"),
        (pl.col("time") + offsets).alias("time"),
        (pl.max_horizontal("time", "available_time") + offsets).alias("available_time"),
        pl.lit(bool(settings.crosswalk and settings.crosswalk.artificial)).alias("artificial_link"),
    ).drop("raw_subject")
    ok = pl.col("verdict") == OK
    return frame.with_columns(
        pl.when(ok & pl.col("subject_id").is_null())
        .then(pl.lit("failed_no_subject"))
        .when(ok & pl.col("time").is_null())
        .then(pl.lit("failed_no_time"))
        .otherwise("verdict")
        .alias("verdict")
    )


def _public(item: FoundItem, deid: Deidentifier) -> dict[str, Any]:
    """An item's geometry: without what only the reader needs (times of change tell dates), names of groups keyed."""
    public = {name: value for name, value in item.geometry.items() if name not in ("stamp", "stamps", "frames")}
    if "reconstruction_group" in public:
        public["reconstruction_group"] = deid.item_key(f"{item.modality}\0{public['reconstruction_group']}")
    return public


STAGE = Stage("index", 3, "pipelines.index:run", step="extract", in_release=False, plan=plan)
