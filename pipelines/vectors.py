"""vectors: a modality's items and imported vectors → which vectors each item has, by the name that both are known by.

Schema in: GROUPED items and vectors, and the index's segment. Schema out: VECTORS in the segments; which file an item's
vectors lie in stands in the private folder. Vectors that no item asks for, and items without any, are counted.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from extractors.items import OK, FoundItem
from extractors.vectors.judge import KEY
from extractors.vectors.settings import BY_FOLDER, BY_NAME, BY_PATH, VECTORS, ImportedConfig
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.run_stage import load_record
from pipelines.engine.task import Result, Task
from pipelines.group import whole_items
from pipelines.index import files_of_tree, foreign_of_tree
from pipelines.items import private_paths
from pipelines.night import Night, Stage
from pipelines.trees import Import, imports_of
from warehouse.files import atomic_write, hash_file, sha256_json
from warehouse.manifest import FileEntry

if TYPE_CHECKING:
    from embedders.running.importing import ItemToImport

# One row for each usable item of the index: what of its vectors says whether its store has them.
VECTORS_OF_ITEMS = pa.schema(
    [
        ("item_key", pa.string()),
        ("bucket", pa.uint16()),
        ("verdict", pa.string()),
        ("digest", pa.string()),  # SHA-256 of the vectors; empty where the verdict is not ok
    ]
)
# Which file of an import's folder an item's vectors lie in, and where in it, as JSON: names need not be UTF-8.
VECTOR_PLACES = {"item_key": pl.String, "place": pl.String}
# Endings of raw files: what another program called its vectors is the name without one of them.
_RAW_ENDINGS = (
    ".nii.gz", ".svs", ".svslide", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".czi", ".tif", ".tiff", ".dcm",
    ".dicom", ".jpg", ".jpeg", ".png", ".hea", ".dat", ".xml", ".nii", ".txt",
)  # fmt: skip


class Counts(TypedDict):
    """What a task tells.

    Attributes:
        verdicts: of the usable items, by what became of their vectors.
        strangers: vectors that no item asks for, and files of another format, by verdict.
        unknown: of the vectors that are taken, those whose file does not say where units lie, or how they were cut.
        squeezed: of the same, those with a leading axis of length 1.
        repeated: of the same, those whose vectors are another one's, too, under another name.
        sha256: over the SHA-256 of the files that are taken.
        places: of the file that it leaves in the private folder what a FileEntry says.
    """

    modality: str
    store: str
    verdicts: dict[str, int]
    strangers: dict[str, int]
    unknown: dict[str, int]
    squeezed: int
    repeated: int
    sha256: str
    places: dict[str, Any]


class Params(TypedDict):
    """What a task is given: paths and settings. `items` and `vectors` are files of GROUPED."""

    modality: str
    store: str
    imported: dict[str, Any]
    items: list[str]
    vectors: list[str]
    foreign: int
    segment: str
    places: str
    private: str
    out: str


def plan(night: Night) -> list[Task]:
    """One task for each set of imported vectors."""
    return [_task(night, each) for each in imports_of(night.config)]


def _task(night: Night, each: Import) -> Task:
    layout, group = night.layout, night.report("group")
    items, vectors = files_of_tree(group, each.modality), files_of_tree(group, each.tree)
    segment, segment_hash = segment_of(night.report("index"), each.modality)
    # Those of a modality's own tree were counted by its index.
    foreign = foreign_of_tree(night.report("scan"), each.tree)[0] if each.tree != each.modality else 0
    fingerprint = sha256_json(
        [STAGE.name, STAGE.version, each.modality, each.store, each.declared.match, items, vectors, foreign]
        + [segment_hash, night.config.deid.model_dump()]
    )
    name = f"vectors-{each.modality}-{each.store}-{fingerprint[:24]}"
    return Task(
        stage=STAGE.name,
        function=STAGE.run,
        key=f"{each.modality}/{each.store}",
        base=str(layout.segments),
        record=str(layout.segments / f"{name}.json"),
        params=Params(
            modality=each.modality,
            store=each.store,
            imported=each.declared.model_dump(mode="json"),
            items=[str(layout.grouped / path) for path, _ in items],
            vectors=[str(layout.grouped / path) for path, _ in vectors],
            foreign=foreign,
            segment=str(layout.segments / segment),
            places=str(private_paths(layout.private, segment)),
            private=str(layout.private),
            out=f"{name}.parquet",
        ),
        fingerprint=fingerprint,
        intact="pipelines.vectors:has_places",
    )


def segment_of(index: StageReport, modality: str) -> tuple[str, str]:
    """The segment of a modality's items, and its hash."""
    return next((path, file.sha256) for path, file in index.entries[modality].files.items())


def run(params: Params, base: Path) -> Result:
    """Finds each usable item's vectors."""
    imported = ImportedConfig.model_validate(params["imported"])
    vectors = [item for path in params["vectors"] for item in whole_items(Path(path))]
    by_key = {item.names[KEY]: item for item in vectors}
    asked = _asked(params["items"], imported, by_key)
    claimed = _claimed(asked.values())
    places = pl.read_parquet(params["places"])
    rows = places.select("item_key", pl.col("grouped") + "/" + pl.col("row").cast(pl.String)).iter_rows()
    taken = {key: _taken(asked[place].names, claimed, by_key) for key, place in rows}
    used = {key: found for key, (verdict, found) in taken.items() if found is not None and verdict == OK}
    frame = pl.DataFrame(
        [(key, verdict, used[key].geometry["digest"] if key in used else "") for key, (verdict, _) in taken.items()],
        schema={"item_key": pl.String, "verdict": pl.String, "digest": pl.String},
        orient="row",
    )
    buckets = pl.read_parquet(params["segment"], columns=["item_key", "bucket"])
    frame = frame.join(buckets, on="item_key", how="left").sort("item_key").select(VECTORS_OF_ITEMS.names)
    with atomic_write(base / params["out"]) as temporary:
        pq.write_table(frame.to_arrow().cast(VECTORS_OF_ITEMS), temporary, compression="zstd", write_page_checksum=True)
    lying = [(key, json.dumps([item.paths[0], item.geometry["member"]])) for key, item in sorted(used.items())]
    private = private_paths(Path(params["private"]), params["out"])
    with atomic_write(private) as temporary:
        kept = pl.DataFrame(lying, schema=VECTOR_PLACES, orient="row").to_arrow()
        pq.write_table(kept, temporary, compression="zstd", write_page_checksum=True)
    strong, fast = hash_file(private)
    entry = FileEntry(sha256=strong, bytes=private.stat().st_size, rows=len(lying), xxh3=fast)
    counts = Counts(
        modality=params["modality"],
        store=params["store"],
        verdicts=dict(sorted(Counter(verdict for verdict, _ in taken.values()).items())),
        strangers=_strangers(vectors, claimed, params["foreign"]),
        unknown=_unknown(used.values()),
        squeezed=sum(bool(item.geometry["squeezed"]) for item in used.values()),
        repeated=_repeated(used.values()),
        sha256=_files_of(used.values()),
        places=entry.model_dump(mode="json"),
    )
    return Result({params["out"]: len(frame)}, counts)


def has_places(params: Params, base: Path) -> bool:
    """Whether the private folder still says where the vectors of a segment lie, as it was written."""
    record = load_record((base / params["out"]).with_suffix(".json"))
    if record is None:
        return False
    places = FileEntry.model_validate(counts_of(record, Counts)["places"])
    return places.is_of(private_paths(Path(params["private"]), params["out"]))


class _Asked(NamedTuple):
    """Names of vectors that an item asks for. An item that is found twice is one, by its identity."""

    names: frozenset[str]
    identity: str
    usable: bool


def _asked(paths: Iterable[str], imported: ImportedConfig, by_key: Mapping[str, FoundItem]) -> dict[str, _Asked]:
    """Of each item, by where it stands (file and row), the names of its vectors among those that there are."""
    asked = {}
    for path in paths:
        for row, item in enumerate(whole_items(Path(path))):
            names = frozenset(names_of(item, imported)) & by_key.keys()
            asked[f"{Path(path).name}/{row}"] = _Asked(names, item.identity, item.verdict == OK)
    return asked


def _claimed(asked: Iterable[_Asked]) -> dict[str, int]:
    """Of each name that any item asks for, how many usable items do."""
    claims: dict[str, set[str]] = defaultdict(set)
    for item in asked:
        for name in item.names:
            claims[name].update([item.identity] if item.usable else [])
    return {name: len(identities) for name, identities in claims.items()}


def names_of(item: FoundItem, imported: ImportedConfig) -> Iterator[str]:
    """What the vectors of an item may be called: its name whole, and without the ending of a raw file."""
    if KEY in item.names:
        yield item.names[KEY]
    elif imported.match in (BY_NAME, BY_PATH, BY_FOLDER):
        for path in item.paths[:1]:
            whole = PurePosixPath(path)
            if imported.match == BY_FOLDER:
                yield whole.parent.as_posix()
                continue
            name = whole.name if imported.match == BY_NAME else path
            yield name
            ending = next((ending for ending in _RAW_ENDINGS if name.lower().endswith(ending)), "")
            yield name[: len(name) - len(ending)]
    elif item.names.get(imported.match):
        yield item.names[imported.match]


def _taken(
    names: frozenset[str], claimed: Mapping[str, int], by_key: Mapping[str, FoundItem]
) -> tuple[str, FoundItem | None]:
    """The vectors of an item that asks for some names, and a verdict. Nobody chooses between two."""
    if not names:
        return "failed_no_vectors", None
    if len(names) > 1:
        return "failed_duplicate_vectors", None
    (name,) = names
    if claimed[name] > 1:
        return "failed_shared_vectors", None
    return by_key[name].verdict, by_key[name]


def _strangers(vectors: Iterable[FoundItem], claimed: Mapping[str, int], foreign: int) -> dict[str, int]:
    """Vectors that no item asks for, usable or not, by verdict, and files that are no vectors."""
    found = Counter(
        "refused_no_item" if item.verdict == OK else item.verdict for item in vectors if item.names[KEY] not in claimed
    )
    if foreign:
        found[VECTORS.foreign] = foreign
    return dict(sorted(found.items()))


def _unknown(used: Iterable[FoundItem]) -> dict[str, int]:
    counted = Counter[str]()
    for item in used:
        counted["coords"] += not item.geometry["coords"]
        counted["patching"] += item.geometry["patching"] == "unknown"
    return dict(sorted(counted.items()))


def _repeated(used: Iterable[FoundItem]) -> int:
    digests = Counter(str(item.geometry["digest"]) for item in used)
    return sum(number for number in digests.values() if number > 1)


def _files_of(used: Iterable[FoundItem]) -> str:
    return sha256("\n".join(sorted({str(item.geometry["sha256"]) for item in used})).encode()).hexdigest()


def described(counts: Counts) -> str:
    """A set of imported vectors as a line of a log: numbers alone."""
    verdicts = ", ".join(f"{number} {verdict}" for verdict, number in counts["verdicts"].items()) or "no items"
    strangers = "".join(f", {number} {verdict} of no item" for verdict, number in counts["strangers"].items())
    said = {
        "without coordinates": counts["unknown"].get("coords", 0),
        "without a word on their patches": counts["unknown"].get("patching", 0),
        "with a leading axis of 1": counts["squeezed"],
        "with the vectors of another": counts["repeated"],
    }
    of_these = "".join(f"; {number} {what}" for what, number in said.items() if number)
    return f"imported vectors of {counts['modality']}: {verdicts}{strangers}{of_these}"


def check(report: StageReport, night: Night) -> None:
    """Says in the log what became of the vectors."""
    for entry in report.entries.values():
        night.log(described(counts_of(entry, Counts)))


class Tied(TypedDict):
    """What the stage `vectors` found for one store.

    Attributes:
        segment: its VECTORS_OF_ITEMS.
        strangers: vectors without an item, by verdict.
    """

    segment: str
    strangers: dict[str, int]


def tied_stores(vectors: StageReport, segments: Path) -> dict[str, Tied]:
    """What was found for each store, by `modality/store`."""
    return {
        key: Tied(segment=str(segments / next(iter(entry.files))), strangers=counts_of(entry, Counts)["strangers"])
        for key, entry in vectors.entries.items()
    }


def bucket_hashes(tied: Mapping[str, Tied]) -> dict[int, list[Any]]:
    """Per bucket, the vectors of its items: all that its stores depend on. What has no item is told by bucket 0."""
    hashes: dict[int, list[Any]] = {}
    for key, each in sorted(tied.items()):
        rows = pl.read_parquet(each["segment"]).sort("item_key")
        row = pl.concat_list("item_key", "verdict", "digest")
        for bucket, found in rows.group_by("bucket", maintain_order=True).agg(row.alias("rows")).iter_rows():
            hashes.setdefault(bucket, []).append([key, found])
        if each["strangers"]:
            hashes.setdefault(0, []).append([key, each["strangers"]])
    return hashes


def items_to_import(tied: Tied, items: pl.DataFrame, private: Path | None = None) -> "list[ItemToImport]":
    """A bucket's usable items, in their order, with what is known of their vectors.

    Args:
        private: the private folder, where it must be known in which files they lie.
    """
    from embedders.running.importing import ItemToImport

    segment = Path(tied["segment"])
    found = items.select("item_key", pl.col("units_expected").fill_null(0)).join(
        pl.read_parquet(segment).drop("bucket"), on="item_key", how="left", maintain_order="left"
    )
    places: dict[str, str] = {}
    if private is not None:
        places = dict(pl.read_parquet(private_paths(private, segment.name)).select(list(VECTOR_PLACES)).iter_rows())
    rows = found.select("item_key", "digest", "verdict", "units_expected").iter_rows()
    return [ItemToImport(*row, *json.loads(places.get(row[0], '["", ""]'))) for row in rows]


def strangers_of(tied: Mapping[str, Tied]) -> pl.DataFrame:
    """One item for each verdict of vectors without an item, which `units_expected` counts."""
    rows = [
        (sha256(f"{key}\0{verdict}".encode()).hexdigest()[:32], key.partition("/")[0], verdict, number)
        for key, each in sorted(tied.items())
        for verdict, number in sorted(each["strangers"].items())
    ]
    schema = {"item_key": pl.String, "modality": pl.String, "verdict": pl.String, "units_expected": pl.Int32}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.lit("{}").alias("geometry"), pl.lit(False).alias("artificial_link")
    )


def files_sha256(vectors: StageReport) -> dict[str, str]:
    """By `modality/store`, the hash over the files whose vectors were taken."""
    return {key: counts_of(entry, Counts)["sha256"] for key, entry in vectors.entries.items()}


STAGE = Stage(
    "vectors",
    version=1,
    run="pipelines.vectors:run",
    after=("scan", "group", "index"),
    in_release=False,
    keys=("modalities", "deid"),
    plan=plan,
    check=check,
)
