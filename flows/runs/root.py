"""What a root is made with and keeps."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from extractors.deid import SYNTHETIC_KEY, Deidentifier, load_key
from extractors.events.joins import SCRATCH
from pipelines.config import RunConfig
from pipelines.night import exports_of, raw_files
from warehouse.errors import REPAIR, TimeloomError
from warehouse.layout import Layout
from warehouse.sealed import NotWholeError, read_sealed, write_sealed

# Compressed raw bytes that make a bucket of a few hundred thousand events: enough that a task's own few milliseconds do
# not count, few enough that it fits into a gigabyte.
BUCKET_BYTES = 6 << 20
MOST_BUCKETS = 1024
# And of a pack group: some ten million tokens, a quarter of a gigabyte while they are packed.
GROUP_BYTES = 16 * BUCKET_BYTES
# Files of plain text, and to what part of itself gzip brings the text of a hospital.
TEXTS, TEXT_PACKED = (".csv", ".tsv", ".txt"), 8
# A change would move subjects, give them other ids, or mix a trial with the whole.
FIXED = {
    "name": "`name` in the configuration",
    "buckets": "number of buckets",
    "pack_groups": "number of pack groups",
    "limit": "--limit (a trial keeps to a root of its own)",
    "subject_ids": "deid.subject_ids",
    "dates": "deid.dates",
    "key": "de-identification key",
}


def forget_scratch(layout: Layout) -> None:
    """Removes what a killed run left under names that are taken only while something is written; beside the root also
    rows that asked a large lookup: they are raw. Whoever calls it holds the root's lock.

    A store's folder is left alone: a worker that holds no lock of the root may write there.
    """
    for folder in layout.private.glob(f"{SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for place in (layout.root, layout.segments, layout.lineage, layout.private, *layout.private.glob("*/")):
        for path in (*place.glob(".*.part"), *place.glob(".current.*")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def with_numbers(config: RunConfig, base: Path, layout: Layout, *, unnamed: bool = False) -> RunConfig:
    """The configuration with a number of buckets and of pack groups, where it leaves them open: what a root was made
    with, or what suits the export.

    Args:
        unnamed: it leaves the number of buckets open also where it says nothing.

    Raises:
        TimeloomError: root.json is missing or damaged.
    """
    left_open = set(config.left_open)
    if unnamed and "buckets" not in config.model_fields_set:
        left_open.add("buckets")
    if not left_open:
        return config
    if layout.settings.exists():
        found = read_root(layout)
        return config.model_copy(update={name: found[name] for name in left_open})
    packed = [_packed_bytes(path) for path in raw_files(exports_of(config, base))]
    named = 1 if "pack_groups" in left_open else config.pack_groups
    buckets = max(suitable_buckets(packed), named) if "buckets" in left_open else config.buckets
    groups = min(suitable_groups(packed), buckets) if "pack_groups" in left_open else named
    return config.model_copy(update={"buckets": buckets, "pack_groups": groups})


def suitable_buckets(packed_bytes: Iterable[float]) -> int:
    """How many buckets suit files of so many bytes, as they are when they are compressed: an even number, so that two
    cores end together."""
    return min(MOST_BUCKETS, max(2, 2 * math.ceil(sum(packed_bytes) / BUCKET_BYTES / 2)))


def suitable_groups(packed_bytes: Iterable[float]) -> int:
    """How many pack groups suit files of so many bytes, as they are when they are compressed."""
    return max(1, math.ceil(sum(packed_bytes) / GROUP_BYTES))


def _packed_bytes(path: Path) -> float:
    return path.stat().st_size / (TEXT_PACKED if path.suffix.lower() in TEXTS else 1)


def root_settings(config: RunConfig, limit: int | None, key: bytes) -> dict[str, Any]:
    """What root.json says, and every manifest too."""
    return {
        "name": config.name,
        "buckets": config.buckets,
        "pack_groups": config.pack_groups,
        "limit": limit,
        "subject_ids": config.deid.subject_ids,
        "dates": config.deid.dates,
        "key": Deidentifier(config.deid, key).key_fingerprint,
    }


def read_root(layout: Layout) -> dict[str, Any]:
    """What root.json says.

    Raises:
        TimeloomError: it is missing or damaged.
    """
    try:
        return read_sealed(layout.settings, older=True)
    except (OSError, NotWholeError) as error:
        state = "damaged" if layout.settings.is_file() else "missing"
        raise TimeloomError(f"root.json of {layout.root.name} is {state}", remedy=REPAIR) from error


def is_used(layout: Layout) -> bool:
    """Whether something was published or converted in a root: what it is made with is then fixed."""
    return (layout.releases.is_dir() and any(layout.releases.iterdir())) or layout.conversion.is_dir()


def bind_root(layout: Layout, config: RunConfig, limit: int | None, *, new: bool) -> None:
    """Writes down what a new root is made with, or holds a run against it; a new root gets its key.

    Raises:
        TimeloomError: the run asks for something else, root.json is missing or damaged, or the key is lost.
    """
    if new:
        write_sealed(layout.settings, root_settings(config, limit, load_key(config.deid, layout.private, create=True)))
        return
    fixed = read_root(layout)
    # Those of older versions do not say whose they are.
    if fixed.setdefault("name", config.name) != config.name:
        raise TimeloomError(
            f"{layout.root.name} is the root of {fixed['name']}, and not of {config.name}",
            remedy="use another --root; where the site alone has a new name, keep the old `name` in the configuration",
        )
    synthetic = Deidentifier(config.deid, SYNTHETIC_KEY).key_fingerprint
    if fixed.get("key") == synthetic and config.deid.mode != "synthetic":
        raise TimeloomError(
            f"{layout.root.name} was made with deid.mode: synthetic", remedy="keep it, or use another root"
        )
    for name, value in root_settings(config, limit, load_key(config.deid, layout.private)).items():
        if fixed.get(name) != value:
            raise TimeloomError(
                f"{layout.root.name} was made with another {FIXED[name]}", remedy="keep it, or use another root"
            )
