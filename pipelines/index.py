"""index: a modality's items → one row per item, de-identified, with a verdict before any encoder is loaded.

What ties an item's key to raw files is written to the private folder beside the root, never into it.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from extractors.crosswalk import read_crosswalk, references, relink
from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.extractor import Extractor, ModalitySettings
from extractors.ids import SubjectIds
from extractors.issuers import with_issuers
from extractors.items import ABSENT, OK, TWO_SUBJECTS, FoundItem, foreign_item, identity_of
from extractors.modalities import tree_reader
from extractors.same_content import of_two_subjects
from extractors.vectors.crosswalk import links_of_vectors
from extractors.vectors.settings import VectorSettings
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Result, Task
from pipelines.group import Counts as GroupCounts
from pipelines.group import read_items, whole_items
from pipelines.items import ITEM_PLACES, private_paths
from pipelines.night import Night, Stage
from pipelines.scan import Counts as ScanCounts
from pipelines.scan import settings_of
from pipelines.trees import trees_of
from warehouse.files import atomic_write, hash_file, sha256_json
from warehouse.hashing import bucket_of
from warehouse.manifest import FileEntry


class Counts(TypedDict):
    """What a task tells: items by verdict, how many findings were of an item that was found already, and of the file
    that it leaves in the private folder what a FileEntry says."""

    modality: str
    verdicts: dict[str, int]
    found_again: int
    places: dict[str, Any]


class Params(TypedDict):
    """What a task is given: paths and settings; of the key its fingerprint alone; how many files are none of the
    modality, and what tells them."""

    modality: str
    settings: dict[str, Any]
    grouped: list[str]
    foreign: tuple[int, int]
    deid: dict[str, Any]
    key: str
    private: str
    buckets: int
    segment: str


def plan(night: Night) -> list[Task]:
    """One task per modality, over the items that were found in its files."""
    config, layout, fingerprints = night.config, night.layout, night.fingerprints
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    tasks = []
    for modality, _, block, _ in trees_of(config):
        if modality not in config.modalities:  # vectors of items that lie in another tree
            continue
        crosswalk = block.crosswalk
        grouped = files_of_tree(night.report("group"), modality)
        foreign = foreign_of_tree(night.report("scan"), modality)
        fingerprint = sha256_json(
            # With the files' names, by which items are found again.
            [STAGE.name, STAGE.version, modality, grouped, foreign]
            + [crosswalk.model_dump(mode="json", exclude={"file"}) if crosswalk else None]
            + [fingerprints.of(crosswalk.file) if crosswalk else None]
            + [config.buckets, config.deid.model_dump(), deid.key_fingerprint]
            # Of its own modality alone: a key of another changes nothing here.
            + [settings_of(block, "path", "crosswalk")]
        )
        name = f"items-{modality}-{fingerprint[:24]}"
        record = layout.segments / f"{name}.json"
        if fingerprints.rehash:
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
                    settings=settings_of(block),
                    grouped=[str(layout.grouped / path) for path, _ in grouped],
                    foreign=foreign,
                    deid=config.deid.model_dump(mode="json"),
                    key=deid.key_fingerprint,
                    private=str(layout.private),
                    buckets=config.buckets,
                    segment=f"{name}.parquet",
                ),
                fingerprint=fingerprint,
                intact="pipelines.index:has_places",
                raw_files=fingerprints.planned(crosswalk.file, f"the crosswalk of {modality}") if crosswalk else {},
            )
        )
    return tasks


def files_of_tree(group: StageReport, modality: str) -> list[tuple[str, str]]:
    """The files of a tree's items, with their hashes, in the order of these."""
    found = [
        (path, file.sha256)
        for entry in group.entries.values()
        if counts_of(entry, GroupCounts)["modality"] == modality
        for path, file in entry.files.items()
    ]
    return sorted(found, key=lambda file: file[1])


def foreign_of_tree(scan: StageReport, modality: str) -> tuple[int, int]:
    """How many files are none of the modality, and the sum that tells them."""
    counts = [counts_of(entry, ScanCounts) for entry in scan.entries.values()]
    ours = [counted for counted in counts if counted["modality"] == modality]
    total = sum(counted["foreign_total"] for counted in ours) % (1 << 64)
    return sum(counted["foreign"] for counted in ours), total


def run(params: Params, base: Path) -> Result:
    """De-identifies a modality's items, and looks for one content that is tied to two subjects."""
    modality = params["modality"]
    extractor, settings = tree_reader(modality, params["settings"])
    crosswalk = settings.crosswalk
    deid_config = DeidConfig.model_validate(params["deid"])
    deid = Deidentifier.held_to(deid_config, Path(params["private"]), params["key"])
    links = read_crosswalk(crosswalk, f"modalities.{modality}.crosswalk", settings.subject_ids) if crosswalk else None
    if links is not None and isinstance(settings, VectorSettings):
        links = links_of_vectors(links, settings.imported)
    places = [(path, row, item) for path in params["grouped"] for row, item in enumerate(read_items(Path(path)))]
    found = [item for *_, item in places]
    if params["foreign"][0]:
        found.append(foreign_item(modality, extractor.foreign, *params["foreign"]))
    alone = isinstance(settings, VectorSettings)  # named by their files, whatever the crosswalk calls that
    by_path = crosswalk is not None and (alone or (crosswalk.match == "path" and extractor.by_file is not None))
    if crosswalk is None or crosswalk.match == "patient_id" or by_path:
        # The block's keys are of ids in the files' headers; those of a crosswalk are mended by its own.
        found = with_issuers(_spelt(found, settings.subject_ids), settings.issuers)
    if links is not None and by_path:
        found += _absent(modality, found, links)
    frame = _rows(found, links, extractor, settings, deid, by_path=by_path)

    def whole(place: int) -> FoundItem:
        path, row, _ = places[place]
        return whole_items(Path(path), [row])[0]

    twice = of_two_subjects(found, frame["subject_id"].to_list(), whole, extractor, settings.path)
    ok_of_two = pl.Series(twice, dtype=pl.Boolean) & (frame["verdict"] == OK)
    frame = frame.with_columns(pl.when(ok_of_two).then(pl.lit(TWO_SUBJECTS)).otherwise("verdict").alias("verdict"))
    frame = frame.with_columns(pl.Series("bucket", _buckets(frame["subject_id"], params["buckets"])))
    # An item found twice (a copied folder, two lines of a crosswalk) is one item: a usable finding, if there is one.
    usable_first = frame.with_row_index("place").sort(pl.col("verdict") != OK, maintain_order=True)
    items = usable_first.unique("item_key", keep="first", maintain_order=True).sort("subject_id", "item_key")
    usable = [(key, Path(places[place][0]).name, places[place][1]) for key, place in _usable(items)]
    kept = pl.DataFrame(usable, schema=ITEM_PLACES, orient="row").to_arrow()
    private = private_paths(Path(params["private"]), params["segment"])
    with atomic_write(private) as temporary:
        pq.write_table(kept, temporary, compression="zstd", write_page_checksum=True)
    strong, fast = hash_file(private)
    places_entry = FileEntry(sha256=strong, bytes=private.stat().st_size, rows=len(kept), xxh3=fast)
    items = items.drop("place")
    with atomic_write(base / params["segment"]) as temporary:
        pq.write_table(items.to_arrow(), temporary, compression="zstd", write_page_checksum=True)
    verdicts = dict(items.group_by("verdict").len().sort("verdict").iter_rows())
    counts = Counts(
        modality=modality,
        verdicts=verdicts,
        found_again=len(frame) - len(items),
        places=places_entry.model_dump(mode="json"),
    )
    return Result({params["segment"]: len(items)}, counts)


def has_places(params: Params, base: Path) -> bool:
    """Whether the private folder still says where the items of a segment lie, as it was written."""
    record = load_record((base / params["segment"]).with_suffix(".json"))
    if record is None:
        return False
    places = FileEntry.model_validate(counts_of(record, Counts)["places"])
    return places.is_of(private_paths(Path(params["private"]), params["segment"]))


def _usable(items: pl.DataFrame) -> Iterator[tuple[str, int]]:
    yield from items.filter(pl.col("verdict") == OK).select("item_key", "place").iter_rows()


def _spelt(found: list[FoundItem], subjects: SubjectIds) -> list[FoundItem]:
    """Items with their subjects' ids in one spelling; null where one is none."""
    raw = pl.Series([item.raw_subject for item in found], dtype=pl.String)
    return [replace(item, raw_subject=text) for item, text in zip(found, subjects.of(raw).to_list(), strict=True)]


def _buckets(subject_ids: pl.Series, buckets: int) -> Any:
    known = subject_ids.fill_null(0).to_numpy()
    return np.where(subject_ids.is_null().to_numpy(), 0, bucket_of(known, buckets)).astype(np.uint16)


def _absent(modality: str, found: list[FoundItem], links: pl.DataFrame) -> list[FoundItem]:
    """An item for each path that a crosswalk names and no item has."""
    named = {item.names.get("path") for item in found}
    away = [path for path in links["match"].drop_nulls().to_list() if path not in named]
    return [
        FoundItem(
            modality, None, identity_of([f"absent:{path}"]), (path,), None, "", "day", None, ABSENT, None,
            names={"path": path},
        )
        for path in away
    ]  # fmt: skip


def _rows(
    found: list[FoundItem],
    links: pl.DataFrame | None,
    extractor: Extractor,
    settings: ModalitySettings,
    deid: Deidentifier,
    *,
    by_path: bool,
) -> pl.DataFrame:
    """One row an item, in the order of `found`, with ids hashed and dates shifted.

    Args:
        by_path: the crosswalk names items by path that its modality finds without it; others keep what they say.
    """
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
            "geometry": [json.dumps(public_geometry(item, deid, extractor), sort_keys=True) for item in found],
        },
        schema={
            "raw_subject": pl.String, "item_key": pl.String, "modality": pl.String, "time": pl.Datetime("us"),
            "available_time": pl.Datetime("us"), "time_source": pl.String, "time_precision": pl.String,
            "verdict": pl.String, "units_expected": pl.Int32, "geometry": pl.String,
        },
    )  # fmt: skip
    if links is not None and settings.crosswalk is not None and (by_path or settings.crosswalk.match != "path"):
        match = "path" if by_path else settings.crosswalk.match
        named = (item.raw_subject if match == "patient_id" else item.names.get(match) for item in found)
        named_frame = frame.with_columns(references(named, match).alias("reference"))
        frame = relink(named_frame, links, keep_others=by_path).drop("reference")
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


def public_geometry(item: FoundItem, deid: Deidentifier, extractor: Extractor) -> dict[str, Any]:
    """An item's geometry without what only its reader needs (times of change tell dates), names of groups keyed."""
    return {
        name: deid.item_key(f"{item.modality}\0{value}") if name in extractor.keyed_geometry else value
        for name, value in item.geometry.items()
        if name not in extractor.private_geometry
    }


STAGE = Stage(
    "index",
    7,
    "pipelines.index:run",
    after=("scan", "group"),
    in_release=False,
    keys=("modalities", "deid", "buckets"),
    plan=plan,
)
