"""index: a tree of images → one row per item, de-identified, with a verdict before any encoder is loaded.

What ties an item's key to raw files is written to the private folder beside the root, never into it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.events.times import parse_times
from extractors.items import OK, FoundItem
from extractors.source import TimeRule
from pipelines.config import CrosswalkConfig
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.task import Result, Task
from pipelines.items import private_paths
from pipelines.night import Night, Stage
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_json, write_json
from warehouse.hashing import bucket_of

_CROSSWALK = ("match", "subject_id", "time", "available_time", "mpp")


def plan(night: Night) -> list[Task]:
    """One task per modality.

    Raises:
        TimeloomError: a folder or crosswalk is missing.
    """
    config, layout, fingerprints = night.config, night.layout, night.fingerprints
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    tasks = []
    for modality, images in sorted(config.images.items()):
        if not images.path.is_dir():
            raise TimeloomError(
                f"the folder of {modality} images does not exist: {images.path}", remedy=f"mend images.{modality}.path"
            )
        crosswalk = images.crosswalk
        if crosswalk is not None and not crosswalk.file.is_file():
            raise TimeloomError(
                f"the crosswalk of {modality} does not exist", remedy=f"mend images.{modality}.crosswalk.file"
            )
        fingerprint = sha256_json(
            [STAGE.name, STAGE.version, modality, Fingerprints.of_tree(images.path), str(images.path)]
            + [crosswalk.model_dump(mode="json", exclude={"file"}) if crosswalk else None]
            + [fingerprints.of(crosswalk.file) if crosswalk else None]
            + [
                config.buckets,
                config.deid.model_dump(),
                deid.key_fingerprint,
                images.timezone,
                images.reconstruction.model_dump(),
                images.max_failed_tiles,
            ]
        )
        name = f"items-{modality}-{fingerprint[:24]}"
        record = layout.segments / f"{name}.json"
        if not private_paths(layout.private, record.name).is_file():
            record.unlink(missing_ok=True)
        tasks.append(
            Task(
                stage=STAGE.name,
                function=STAGE.run,
                key=modality,
                base=str(layout.segments),
                record=str(record),
                params={
                    "modality": modality,
                    "folder": str(images.path),
                    "timezone": images.timezone,
                    "reconstruction": images.reconstruction.model_dump(mode="json"),
                    "max_failed_tiles": images.max_failed_tiles,
                    "workers": config.workers,
                    "crosswalk": crosswalk.model_dump(mode="json") if crosswalk else None,
                    "deid": config.deid.model_dump(mode="json"),
                    "private": str(layout.private),
                    "buckets": config.buckets,
                    "segment": f"{name}.parquet",
                },
                fingerprint=fingerprint,
            )
        )
    return tasks


def run(params: dict[str, Any], base: Path) -> Result:
    """Indexes one modality's tree."""
    modality, folder = params["modality"], Path(params["folder"])
    crosswalk = CrosswalkConfig.model_validate(params["crosswalk"]) if params["crosswalk"] else None
    deid_config = DeidConfig.model_validate(params["deid"])
    deid = Deidentifier(deid_config, load_key(deid_config, Path(params["private"])))
    links = _read_crosswalk(crosswalk) if crosswalk else None
    found = _find(modality, folder, links, params)
    frame = _rows(found, links if crosswalk and crosswalk.match == "patient_id" else None, crosswalk, deid)
    frame = frame.with_columns(pl.Series("bucket", _buckets(frame["subject_id"], params["buckets"])))
    paths = {
        key: {"paths": list(item.paths), "geometry": item.geometry}
        for key, item in zip(frame["item_key"].to_list(), found, strict=True)
        if item.verdict == OK
    }
    write_json(private_paths(Path(params["private"]), params["segment"]), {"folder": str(folder), "items": paths})
    # An item found twice (a copied folder, two lines of a crosswalk) is one item: a usable finding, if there is one.
    usable_first = frame.sort(pl.col("verdict") != OK, maintain_order=True)
    items = usable_first.unique("item_key", keep="first", maintain_order=True).sort("subject_id", "item_key")
    with atomic_write(base / params["segment"]) as temporary:
        pq.write_table(items.to_arrow(), temporary, compression="zstd", write_page_checksum=True)
    verdicts = dict(items.group_by("verdict").len().sort("verdict").iter_rows())
    counts = {"modality": modality, "verdicts": verdicts, "found_again": len(frame) - len(items)}
    return Result({params["segment"]: len(items)}, counts)


def _buckets(subject_ids: pl.Series, buckets: int) -> Any:
    known = subject_ids.fill_null(0).to_numpy()
    return np.where(subject_ids.is_null().to_numpy(), 0, bucket_of(known, buckets)).astype(np.uint16)


def _find(modality: str, folder: Path, links: pl.DataFrame | None, params: dict[str, Any]) -> list[FoundItem]:
    if modality == "ct":
        from extractors.ct.index import index_ct
        from extractors.ct.reconstructions import ReconstructionConfig

        reconstruction = ReconstructionConfig.model_validate(params["reconstruction"])
        return index_ct(
            folder, site_timezone=params["timezone"], workers=params["workers"], reconstruction=reconstruction
        )
    from extractors.wsi.index import index_slides

    if links is None:
        raise TimeloomError("slides have no subject of their own", remedy="give images.wsi.crosswalk")
    manifest = links.rename({"match": "path", "subject_id": "raw_subject"})
    return index_slides(folder, manifest, workers=params["workers"], max_failed_tiles=params["max_failed_tiles"])


def _read_crosswalk(crosswalk: CrosswalkConfig) -> pl.DataFrame:
    """Columns match, subject_id (text), time, available_time (datetime[us]), time_precision, mpp (float)."""
    try:
        raw = pl.read_csv(crosswalk.file, infer_schema=False, comment_prefix="#")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TimeloomError("the crosswalk is no CSV", remedy=f"mend {crosswalk.file.name}") from error
    names: dict[str, str] = {name: name for name in _CROSSWALK} | {str(k): v for k, v in crosswalk.columns.items()}
    for required in ("match", "subject_id"):
        if names[required] not in raw.columns:
            raise TimeloomError(
                f"the crosswalk {crosswalk.file.name} lacks the column {names[required]}",
                remedy="add it, or name another under crosswalk.columns",
            )
    frame = raw.select(
        (pl.col(names[name]) if names[name] in raw.columns else pl.lit(None, pl.String)).alias(name)
        for name in _CROSSWALK
    )
    time, available = (parse_times(frame, TimeRule(column=[name])) for name in ("time", "available_time"))
    if time.unreadable.any() or available.unreadable.any():
        raise TimeloomError(
            f"the crosswalk {crosswalk.file.name} has times that cannot be read", remedy="write 2024-05-01 13:30:00"
        )
    return frame.with_columns(
        time.time.alias("time"),
        time.precision.cast(pl.String).alias("time_precision"),
        available.time.alias("available_time"),
        pl.col("mpp").cast(pl.Float64, strict=False),
        pl.col("match", "subject_id").str.strip_chars().replace("", None),
    )


def _rows(
    found: list[FoundItem], by_patient: pl.DataFrame | None, crosswalk: CrosswalkConfig | None, deid: Deidentifier
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
            "geometry": [json.dumps(_public(item.geometry, deid), sort_keys=True) for item in found],
        },
        schema={
            "raw_subject": pl.String, "item_key": pl.String, "modality": pl.String, "time": pl.Datetime("us"),
            "available_time": pl.Datetime("us"), "time_source": pl.String, "time_precision": pl.String,
            "verdict": pl.String, "units_expected": pl.Int32, "geometry": pl.String,
        },
    )  # fmt: skip
    if by_patient is not None:
        frame = _relink(frame, by_patient)
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
        pl.lit(bool(crosswalk and crosswalk.artificial)).alias("artificial_link"),
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


def _public(geometry: dict[str, Any], deid: Deidentifier) -> dict[str, Any]:
    """A geometry without what only the reader needs (times of change of files tell dates), names of groups keyed."""
    public = {name: value for name, value in geometry.items() if name not in ("stamp", "stamps", "frames")}
    if "reconstruction_group" in public:
        public["reconstruction_group"] = deid.item_key(f"ct\0{public['reconstruction_group']}")
    return public


def _relink(frame: pl.DataFrame, links: pl.DataFrame) -> pl.DataFrame:
    """Subjects, and times where it gives them, from a crosswalk by PatientID; unknown patients have no subject."""
    renamed = links.rename(
        {"match": "raw_subject", "time": "_time", "available_time": "_available", "time_precision": "_precision"}
    ).unique("raw_subject", keep="first", maintain_order=True)
    joined = frame.join(renamed, on="raw_subject", how="left", maintain_order="left")
    given = pl.col("_time").is_not_null()
    return joined.with_columns(
        pl.col("subject_id").alias("raw_subject"),
        pl.coalesce("_time", "time").alias("time"),
        pl.when(given).then("_available").otherwise("available_time").alias("available_time"),
        pl.when(given).then(pl.lit("crosswalk")).otherwise("time_source").alias("time_source"),
        pl.coalesce("_precision", "time_precision").alias("time_precision"),
    ).select(frame.columns)


STAGE = Stage("index", 2, "pipelines.index:run", step="extract", in_release=False, plan=plan)
