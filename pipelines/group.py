"""group: findings of whole series and studies → the items that they make, each with its verdict.

Schema in: SCANNED. Schema out: GROUPED, in the private folder. What belongs together is judged together, wherever in
the tree it lies; a task has some thousand findings, and one whose findings are as they were has nothing to do.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from extractors.crosswalk import read_crosswalk
from extractors.extractor import KEPT, Finding, ModalitySettings, imported
from extractors.items import FoundItem, item_from_json, item_to_json
from extractors.modalities import tree_reader
from pipelines.engine.context import counts_of
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import RawFile, Result, Task
from pipelines.night import Night, Stage
from pipelines.scan import OF_SUBJECTS, earlier_files, settings_of
from pipelines.scan import Counts as ScanCounts
from pipelines.trees import trees_of
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_json, xxh3_file

# An item as JSON, without what only its reader needs, and that: its paths, and the private part of its geometry.
GROUPED = pa.schema([("item", pa.string()), ("reading", pa.string())])
RULES = "rules"  # in the files' metadata: by which rules a whole tree was judged
FINDINGS = 1 << 13
_LOW = (1 << 32) - 1


class Counts(TypedDict):
    """What a task tells: how many items it found, and the files that it left for their reader, with their XXH3-128.

    `modality` is the name of the tree.
    """

    modality: str
    items: int
    kept: dict[str, str]


class Params(TypedDict):
    """What a task is given: files of findings, and the hashes of the series that it judges (all where None); or for a
    whole tree the rules of its judgement, and the files of items that were found by the same rules."""

    modality: str
    settings: dict[str, Any]
    scanned: list[str]
    series: list[int] | None
    rules: str
    known: list[str]
    workers: int | None
    out: str


def plan(night: Night) -> list[Task]:
    """Tasks of some thousand findings; one task, of the whole tree, where items are not found file by file.

    Raises:
        TimeloomError: a crosswalk is missing.
    """
    tasks = []
    for modality, extractor, block, _ in trees_of(night.config):
        crosswalk = block.crosswalk
        if crosswalk is not None and not crosswalk.file.is_file():
            raise TimeloomError(
                f"the crosswalk of {modality} does not exist", remedy=f"mend modalities.{modality}.crosswalk.file"
            )
        if extractor.by_file is None:
            tasks.append(_whole_tree(night, modality, block))
        else:
            tasks += _by_series(night, modality, block)
    return tasks


def _whole_tree(night: Night, modality: str, block: ModalitySettings) -> Task:
    fingerprints, crosswalk = night.fingerprints, block.crosswalk
    tables, raw_tables = _tables(night, modality, block)
    inputs = [Fingerprints.of_tree(block.path), fingerprints.of(crosswalk.file) if crosswalk else None, *tables]
    raw_files = fingerprints.planned(crosswalk.file, f"the crosswalk of {modality}") if crosswalk else {}
    rules = sha256_json([STAGE.name, STAGE.version, modality, settings_of(block, *OF_SUBJECTS), *tables])
    raw_files = raw_files | raw_tables
    task = _task(night, modality, block, [settings_of(block), inputs], raw_files=raw_files, rules=rules)
    if fingerprints.rehash:
        Path(task.record).unlink(missing_ok=True)
    elif not Path(task.record).is_file():
        known = [str(path) for path in earlier_files(night.layout.grouped, modality) if _rules_of(path) == rules]
        task = replace(task, params={**task.params, "known": known})
    return task


def _rules_of(path: Path) -> str:
    metadata: dict[bytes, bytes] = pq.read_metadata(path).metadata or {}
    return metadata.get(RULES.encode(), b"").decode()


def _by_series(night: Night, modality: str, block: ModalitySettings) -> Iterator[Task]:
    """One task per part of the series. It is known by the sum of its findings' digests, in whatever files they lie."""
    scanned = [
        str(night.layout.scanned / path)
        for entry in night.report("scan").entries.values()
        if counts_of(entry, ScanCounts)["modality"] == modality
        for path in entry.files
    ]
    if not scanned:
        return
    # Whose items they are, and when, a crosswalk may say in the end; that there is one is all that counts here.
    tables, raw = _tables(night, modality, block)
    settings = [settings_of(block, *OF_SUBJECTS), block.crosswalk is not None, *tables]
    findings = pl.scan_parquet(scanned, include_file_paths="path").filter(pl.col("series").is_not_null())
    parts = _parts(findings.select("series", "study").unique().collect(engine="streaming"), findings)
    if parts["part"].n_unique() <= 1:
        digests = _digests(findings.with_columns(pl.lit(0).alias("part")))
        inputs = [settings, digests[0][1]] if digests else [settings]
        yield _task(night, modality, block, inputs, scanned=scanned, raw_files=raw)
        return
    series = dict(parts.group_by("part").agg(pl.col("series").sort()).iter_rows())
    for part, digest, paths in _digests(findings.join(parts.lazy(), on="series")):
        yield _task(night, modality, block, [settings, digest], scanned=paths, series=series[part], raw_files=raw)


def _tables(night: Night, modality: str, block: ModalitySettings) -> tuple[list[str], dict[str, RawFile]]:
    """The hashes of a modality's tables, and what they are held against after they were read."""
    hashes = [night.fingerprints.of(path) for path in block.tables.values()]
    planned = [night.fingerprints.planned(path, f"a table of {modality}") for path in block.tables.values()]
    return hashes, {path: file for files in planned for path, file in files.items()}


def _parts(ties: pl.DataFrame, findings: pl.LazyFrame) -> pl.DataFrame:
    """Of each series (columns series, part) the part that judges it: series of one study have the same."""
    number = findings.select(pl.len()).collect(engine="streaming").item()
    parts = 1 << max(0, (number - 1) // FINDINGS).bit_length()
    studies = ties.drop_nulls("study")
    linked = _linked(studies)
    together = studies.group_by("series").agg(pl.col("study").min())
    old, new = (pl.Series(numbers, dtype=pl.UInt64) for numbers in (list(linked), list(linked.values())))
    together = together.with_columns(pl.col("study").replace(old, new))
    return (
        ties.select("series")
        .unique()
        .join(together, on="series", how="left")
        .select("series", (pl.coalesce("study", "series") % parts).alias("part"))
        .sort("series")
    )


def _linked(studies: pl.DataFrame) -> dict[int, int]:
    """Studies that one series names by mistake, each with the study that stands for all of them."""
    several = studies.filter(pl.col("study").n_unique().over("series") > 1)
    stands: dict[int, int] = {}

    def root(study: int) -> int:
        while (above := stands.setdefault(study, study)) != study:
            study = above
        return study

    for _, names in several.group_by("series").agg("study").iter_rows():
        roots = {root(study) for study in names}
        for found in roots:
            stands[found] = min(roots)
    return {study: root(study) for study in stands}


def _digests(findings: pl.LazyFrame) -> list[tuple[int, list[int], list[str]]]:
    """Of each part the sum of its findings' digests, with their number, and the files that they lie in."""
    halves = [(pl.col("digest") & _LOW).sum().alias("low"), (pl.col("digest") // (_LOW + 1)).sum().alias("high")]
    each = findings.group_by("part", "path").agg(*halves, pl.len()).collect(engine="streaming")
    summed = each.group_by("part").agg(pl.col("low", "high", "len").sum(), pl.col("path").sort()).sort("part")
    return [(part, [low, high, number], paths) for part, low, high, number, paths in summed.iter_rows()]


def _task(
    night: Night,
    modality: str,
    block: ModalitySettings,
    inputs: list[Any],
    *,
    scanned: list[str] | None = None,
    series: list[int] | None = None,
    raw_files: dict[str, RawFile] | None = None,
    rules: str = "",
) -> Task:
    fingerprint = sha256_json([STAGE.name, STAGE.version, modality, inputs])
    name = f"{modality}-{fingerprint[:24]}"
    return Task(
        stage=STAGE.name,
        function=STAGE.run,
        key=name,
        base=str(night.layout.grouped),
        record=str(night.layout.grouped / f"{name}.json"),
        params=Params(
            modality=modality,
            settings=settings_of(block),
            scanned=scanned or [],
            series=series,
            rules=rules,
            known=[],
            workers=night.config.workers,
            out=f"{name}.parquet",
        ),
        fingerprint=fingerprint,
        intact="pipelines.group:has_kept" if tree_reader(modality, settings_of(block))[0].keeps else None,
        raw_files=raw_files or {},
    )


def run(params: Params, base: Path) -> Result:
    """Judges what belongs together."""
    modality = params["modality"]
    extractor, settings = tree_reader(modality, params["settings"])
    if extractor.by_file is None:
        crosswalk = settings.crosswalk
        key = f"modalities.{modality}.crosswalk"
        links = read_crosswalk(crosswalk, key, settings.subject_ids) if crosswalk else None
        known = [item for path in params["known"] for item in whole_items(Path(path))]
        kept = _kept(params, base)
        shutil.rmtree(kept, ignore_errors=True)  # with what a run that was killed left half written
        found = extractor.index_items(settings, links, workers=params["workers"], known=known, kept=kept)
    else:
        found = imported(extractor.by_file.items)(settings, _findings(params))
    schema = GROUPED.with_metadata({RULES: params["rules"]})
    with atomic_write(base / params["out"]) as temporary, pq.ParquetWriter(
        temporary, schema, compression="zstd", write_page_checksum=True
    ) as writer:  # fmt: skip
        for start in range(0, len(found), FINDINGS) or (0,):  # a file has columns without any row, too
            rows = [_row(item, extractor.private_geometry) for item in found[start : start + FINDINGS]]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return Result({params["out"]: len(found)}, Counts(modality=modality, items=len(found), kept=_hashes(params, base)))


def _kept(params: Params, base: Path) -> Path:
    """The folder in which an index may leave what its items' reader needs."""
    return (base / params["out"]).with_suffix("")


def _hashes(params: Params, base: Path) -> dict[str, str]:
    folder = _kept(params, base)
    return {path.name: xxh3_file(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def has_kept(params: Params, base: Path) -> bool:
    """Whether what a task left for its items' reader is still there, byte for byte."""
    entry = load_record((base / params["out"]).with_suffix(".json"))
    return entry is not None and counts_of(entry, Counts)["kept"] == _hashes(params, base)


def _findings(params: Params) -> Iterator[Finding]:
    wanted = None if params["series"] is None else pl.Series(params["series"], dtype=pl.UInt64)
    for path in params["scanned"]:
        found = pl.read_parquet(path, columns=["series", "value"]).drop_nulls("series")
        if wanted is not None:
            found = found.filter(pl.col("series").is_in(wanted.implode()))
        yield from (Finding(**json.loads(value)) for value in found["value"])


def _row(item: FoundItem, private: frozenset[str]) -> dict[str, str]:
    public = {name: value for name, value in item.geometry.items() if name not in private}
    hidden = {name: value for name, value in item.geometry.items() if name in private}
    if KEPT in hidden:  # without its folder, so that a root can be moved
        hidden[KEPT] = Path(hidden[KEPT]).name
    public_part = item_to_json(item) | {"paths": [], "geometry": public}
    reading = {"paths": item.paths, "geometry": hidden}
    return {"item": json.dumps(public_part, sort_keys=True), "reading": json.dumps(reading, sort_keys=True)}


def read_items(path: Path) -> list[FoundItem]:
    """The items of a file, without what only their reader needs."""
    return [item_from_json(json.loads(text)) for text in pl.read_parquet(path, columns=["item"])["item"]]


def _some_rows(path: Path, rows: list[int]) -> pl.DataFrame:
    """Some rows of a file, in the order in which they are asked for; not more than its parts are held at a time."""
    wanted = pl.LazyFrame({"row": rows}, schema={"row": pl.UInt32})
    found = pl.scan_parquet(path).with_row_index("row").join(wanted.unique(), on="row", how="semi")
    kept = found.collect(engine="streaming")
    return wanted.join(kept.lazy(), on="row", how="left", maintain_order="left").collect().drop("row")


def whole_items(path: Path, rows: list[int] | None = None) -> list[FoundItem]:
    """Some items of a file, by their rows (all where None), with all that is known of them."""
    found = pl.read_parquet(path) if rows is None else _some_rows(path, rows)
    items = []
    for public_part, hidden in found.iter_rows():
        item, reading = json.loads(public_part), json.loads(hidden)
        geometry = item["geometry"] | reading["geometry"]
        if KEPT in geometry:
            geometry[KEPT] = str(path.with_suffix("") / geometry[KEPT])
        items.append(item_from_json(item | {"paths": reading["paths"], "geometry": geometry}))
    return items


STAGE = Stage("group", 5, "pipelines.group:run", after=("scan",), in_release=False, keys=("modalities",), plan=plan)
