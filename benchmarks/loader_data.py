"""A release for the readers' benchmarks: timelines with MEHRT's lengths, packed by the project's own functions.

Lengths are those of Table A1 (mean 677, standard deviation 1,515 tokens, log-normal), images those of Table A2: 3.6 %
of the subjects, mean 2,399 tokens, 18.7 images each, so 0.1 % of all tokens and 0.78 % of theirs. Tokens, types and
times are drawn at random; vectors too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.packing.lay import lay, row_groups
from pipelines.packing.timelines import Timelines
from warehouse.arrays import NO_TIME
from warehouse.embeddings.store import EmbeddingWriter
from warehouse.files import hash_file
from warehouse.hashing import bucket_of
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import (
    Deidentification,
    EncoderEntry,
    FileEntry,
    Manifest,
    PlanEntry,
    ProfileEntry,
    content_hash,
)
from warehouse.parquet import write_table
from warehouse.publish import publish
from warehouse.schemas import ITEMS, VOCABULARY
from warehouse.shards.file import ShardHeader, open_writer, row_group_rows
from warehouse.tokens import IMAGE_TOKENS, RESERVED, TYPE_NAMES, TokenType
from warehouse.vocabulary import vocabulary_hash

PROFILE, BUCKETS, GROUPS, TOKENS = "mehrt", 64, 4, 30_000
DIMS = {"ct": 1024, "wsi": 1536}
IMAGING_SHARE, IMAGES_EACH, WSI_SHARE = 0.036, 18.7, 0.108


@dataclass(frozen=True)
class Kind:
    """The items of a modality.

    Attributes:
        width: of their vectors.
        share: of all items.
        units: of each item's sequence, a third fewer at random; 0 for one vector an item.
    """

    width: int
    share: float
    units: int = 0


KINDS = {"wsi": Kind(DIMS["wsi"], WSI_SHARE), "ct": Kind(DIMS["ct"], 1 - WSI_SHARE)}
MINUTE_US = 60_000_000


def _lengths(random: np.random.Generator, subjects: int, mean: float, deviation: float) -> npt.NDArray[np.int64]:
    sigma = np.sqrt(np.log1p((deviation / mean) ** 2))
    return np.maximum(4, random.lognormal(np.log(mean) - sigma**2 / 2, sigma, subjects)).astype(np.int64)


def timelines(tokens: int, first_subject: int, seed: int, kinds: Mapping[str, Kind] = KINDS) -> Timelines:
    """About `tokens` tokens of whole subjects."""
    random = np.random.default_rng(seed)
    subjects = int(tokens / 740)  # 677 tokens, and the longer records of those with images
    lengths = _lengths(random, subjects, 677, 1515)
    imaging = random.random(subjects) < IMAGING_SHARE
    lengths[imaging] = _lengths(random, int(imaging.sum()), 2399, 2720)
    total = int(lengths.sum())
    starts = np.cumsum(lengths) - lengths
    ids = random.integers(len(RESERVED) + 2, TOKENS, total, dtype=np.uint16)
    types = np.full(total, TokenType.STRUCTURED, dtype=np.uint8)
    times = np.cumsum(random.integers(0, 40, total)) * MINUTE_US
    # [BOS] and three demographic tokens without a time.
    for place in range(4):
        types[starts + place] = TokenType.DEMOGRAPHIC if place else TokenType.SPECIAL
        times[starts + place] = NO_TIME
    ids[starts] = 1
    of_imaging = np.repeat(imaging, lengths) & (types == TokenType.STRUCTURED)
    places = np.flatnonzero(of_imaging & (random.random(total) < IMAGES_EACH / 2399))
    ends = np.cumsum([kind.share for kind in kinds.values()])
    drawn = np.searchsorted(ends / ends[-1], random.random(len(places)), side="right")
    ids[places] = np.array([IMAGE_TOKENS[name] for name in kinds], np.uint16)[drawn]
    types[places] = TokenType.IMAGE
    keys = pa.array([f"{seed:02d}{number:030x}" for number in range(len(places))], pa.string())
    return Timelines(
        subjects=np.arange(first_subject, first_subject + subjects, dtype=np.int64),
        lengths=lengths,
        offsets=np.zeros(subjects, dtype=np.int64),
        token_id=ids,
        token_type=types,
        time=times.astype(np.int64),
        image_place=places,
        image_key=keys,
    )


def _write(path: Path, made: Timelines, header: dict[str, object], context: int, group: int, plan: str) -> None:
    layout = lay(made, "packed", context)
    whole = ShardHeader(
        **header,  # type: ignore[arg-type]
        group=group,
        context=context,
        plan=plan,
        time_unit_us=layout.times.unit_us,
        time_dtype=layout.times.dtype,
    )
    with open_writer(path, whole) as writer:
        for packs in row_groups(made, layout, group, context, row_group_rows(context)):
            writer.write(packs)


def _items(made: Timelines, kinds: Mapping[str, Kind]) -> pl.DataFrame:
    """The items of the image tokens, columns of ITEMS, and the bucket of each."""
    owner = np.repeat(made.subjects, made.lengths)[made.image_place]
    names = {IMAGE_TOKENS[name]: name for name in kinds}
    filled = {
        "subject_id": owner,
        "item_key": made.image_key.to_pylist(),
        "modality": [names[token] for token in made.token_id[made.image_place].tolist()],
        "time": pl.Series(made.time[made.image_place]).cast(pl.Datetime("us")),
        "bucket": bucket_of(owner, BUCKETS),
    }
    same = {"verdict": "ok", "store": "random", "units_encoded": 1, "units_failed": 0, "artificial_link": True}
    literals = [pl.lit(same.get(name)).alias(name) for name in ITEMS.names if name not in filled]
    return pl.DataFrame(filled).with_columns(literals)


def _store(layout: Layout, items: pl.DataFrame, kinds: Mapping[str, Kind], random: np.random.Generator) -> None:
    """Vectors of every image, in the store of its subject's bucket."""
    for (modality, bucket), part in items.sort("modality", "bucket").group_by(
        "modality", "bucket", maintain_order=True
    ):
        kind = kinds[str(modality)]
        with EmbeddingWriter(layout.embedding_bucket(str(modality), "random", int(str(bucket)))) as writer:
            writer.put_many([(key, _vector(kind, random), 8) for key in part["item_key"]])


def _vector(kind: Kind, random: np.random.Generator) -> npt.NDArray[np.floating]:
    if not kind.units:
        return random.standard_normal(kind.width, dtype=np.float32)
    units = kind.units - int(random.integers(kind.units // 3 + 1))
    return random.standard_normal((units, kind.width), dtype=np.float32).astype(np.float16)


def make(root: Path, tokens: int, context: int, kinds: Mapping[str, Kind] = KINDS) -> None:
    """Publishes a release of about `tokens` tokens under `root`: plans `default` (everybody) and `imaging`."""
    layout = Layout(root)
    tree = ReleaseLayout(layout.work / "bench" / "release")
    names = [*RESERVED, *((f"LOINC/{number}", TokenType.STRUCTURED) for number in range(len(RESERVED), TOKENS))]
    vocabulary = pl.DataFrame(
        {
            "token_id": range(len(names)),
            "token": [token for token, _ in names],
            "type": [TYPE_NAMES[kind] for _, kind in names],
            "train_count": [1] * len(names),
        }
    )
    hashed = vocabulary_hash(vocabulary)
    write_table(tree.vocabulary(PROFILE), vocabulary, VOCABULARY, "vocabulary")
    header: dict[str, object] = {
        "profile": PROFILE,
        "split": "train",
        "token_dtype": "uint16",
        "vocabulary_hash": hashed,
        "vocabulary_size": len(vocabulary),
        "stores": dict.fromkeys(kinds, "random"),
    }
    random = np.random.default_rng(99)
    items = []
    for group in range(GROUPS):
        made = timelines(tokens // GROUPS, 1 + group * 10_000_000, group, kinds)
        _write(tree.shard(PROFILE, "train", group), made, header, context, group, "default")
        imaging = made.of_subjects(made.images_per_subject() > 0)
        _write(tree.shard(PROFILE, "train", group, "imaging"), imaging, header, context, group, "imaging")
        items.append(_items(made, kinds))
    every = pl.concat(items)
    _store(layout, every, kinds, random)
    for (bucket,), part in every.group_by("bucket"):
        write_table(tree.items(int(str(bucket))), part, ITEMS, "items")
    files = {}
    for path in sorted(path for path in tree.path.rglob("*") if path.is_file()):
        strong, fast = hash_file(path)
        files[path.relative_to(tree.path).as_posix()] = FileEntry(
            sha256=strong, xxh3=fast, bytes=path.stat().st_size, rows=pq.read_metadata(path).num_rows
        )
    plan = PlanEntry(context=context, groups=GROUPS)
    manifest = Manifest(
        release_id="bench",
        parent=None,
        created_at="2026-01-01T00:00:00Z",
        run_id="bench",
        buckets=BUCKETS,
        deid=Deidentification(mode="synthetic", subject_ids="none", dates="none", key_fingerprint=""),
        config_hash="",
        split_scheme=PROFILE,
        split_hash="",
        encoders={
            name: (EncoderEntry(label="random", store="random", dim=kind.width),) for name, kind in kinds.items()
        },
        profiles={
            PROFILE: ProfileEntry(
                vocabulary_hash=hashed,
                vocabulary_size=len(vocabulary),
                scheme=PROFILE,
                rules_hash="",
                plans={"default": plan, "imaging": plan.model_copy(update={"subjects": "imaging"})},
            )
        },
        stages={},
        sources={},
        verdicts={},
        content_hash=content_hash(files),
        tasks={},
        files=files,
    )
    publish(layout, tree.path, manifest)
