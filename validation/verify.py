"""`verify`: whether a published release is still what was published, and whether what it points at is there.

Nothing is believed: every checksum is recomputed and every reference followed. Damage gives findings, never an
exception; a finding names files, counts and checks, and no patient.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from validation.measure.annotations import (
    FAULTS,
    NO_MARKS,
    changed_lags,
    count_marks,
    uncounted_conflicts,
    unlisted_rows,
)
from validation.measure.events import event_subjects, meds_breaks, misplaced_subjects
from validation.measure.items import read_items
from validation.measure.ledger import balance, read_ledger
from validation.measure.reading import existing
from validation.measure.shards import measure_shards
from validation.measure.splits import disagreements
from validation.measure.stores import check_store
from warehouse.errors import TimeloomError
from warehouse.files import hash_file
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import FileEntry, Manifest, content_hash, read_manifest
from warehouse.progress import Progress
from warehouse.publish import current_release

NAMED = 5  # files that a finding names before it counts the rest


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        ok: nothing is wrong.
        detail: a sentence with counts and file names, no patient's value.
    """

    check: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class _Release:
    layout: Layout
    tree: ReleaseLayout
    manifest: Manifest
    progress: Progress


def _named(files: Sequence[str]) -> str:
    rest = len(files) - NAMED
    return ", ".join(files[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _files(release: _Release) -> Finding:
    """Every file of the manifest is there with its bytes."""
    missing, changed = [], []
    entries = release.manifest.files
    for done, (name, entry) in enumerate(entries.items(), 1):
        path = release.tree.path / name
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != entry.bytes or not _same(path, entry):
            changed.append(name)
        release.progress("files", done, len(entries))
    parts = [f"{what}: {_named(names)}" for what, names in (("missing", missing), ("changed", changed)) if names]
    return Finding("files", not parts, "; ".join(parts) or f"{len(entries)} files have their checksums")


def _same(path: Path, entry: FileEntry) -> bool:
    strong, fast = hash_file(path)
    return strong == entry.sha256 and entry.xxh3 in (None, fast)


def _strangers(release: _Release) -> Finding:
    """No file lies in the release that the manifest does not name, but for the report."""
    root = release.tree.path
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    own = {"manifest.json"} | {name for name in found if name.startswith("quality/")}
    strange = sorted(found - own - set(release.manifest.files))
    return Finding("strangers", not strange, f"not in the manifest: {_named(strange)}" if strange else "none")


def _content(release: _Release) -> Finding:
    same = content_hash(release.manifest.files) == release.manifest.content_hash
    return Finding("content hash", same, "is that of the files" if same else "the manifest does not add up to its hash")


def _schemas(release: _Release) -> Finding:
    broken = meds_breaks(release.tree, release.manifest.buckets)
    return Finding("MEDS schemas", not broken, f"broken in {_named(broken)}" if broken else "every file keeps its own")


def _buckets(release: _Release) -> Finding:
    wrong = misplaced_subjects(event_subjects(release.tree, release.manifest.buckets), release.manifest.buckets)
    return Finding("buckets", not wrong, _counted(wrong, "subjects in no bucket of theirs, or in several"))


def _splits(release: _Release) -> Finding:
    """Every scheme that is in use: the one that MEDS tools see, and those of profiles."""
    subjects = event_subjects(release.tree, release.manifest.buckets)
    primary = release.manifest.split_scheme
    schemes = dict.fromkeys([primary, *(profile.scheme for profile in release.manifest.profiles.values())])
    counts = [disagreements(release.tree, name, subjects, primary=name == primary) for name in schemes]
    changed = [name for name, of in zip(schemes, counts, strict=True) if of.pop("ledgers_changed")]
    if changed:
        return Finding("splits", False, f"the ledger of {_named(changed)} is not what runs have written")
    wrong = sum(sum(of.values()) for of in counts)
    return Finding("splits", not wrong, _counted(wrong, "subjects without a split, in two, or published in another"))


def _ledger(release: _Release) -> Finding:
    tables = balance(read_ledger(release.tree))
    wrong = tables.filter(pl.col("difference") != 0)["table"].to_list()
    fine = f"raw = events + static + reference + quarantined in {tables.height} tables"
    return Finding("ledger", not wrong, f"rows are missing in {_named(wrong)}" if wrong else fine)


def _quarantine(release: _Release) -> Finding:
    wrong = unlisted_rows(release.tree, read_ledger(release.tree)).filter(pl.col("quarantine_unlisted") > 0)
    tables = sorted(wrong["table"].to_list())
    fine = "every row that the ledger counts is listed"
    return Finding("quarantine", not tables, f"not what the ledger counts in {_named(tables)}" if tables else fine)


def _marks(release: _Release) -> Finding:
    """Availability, flags and conflicts of events are known ones, where they may stand, and counted."""
    buckets = range(release.manifest.buckets)
    paths = existing(release.tree.events(bucket) for bucket in buckets)
    marks = pl.concat([NO_MARKS, *(count_marks(path) for path in paths)])
    wrong = int(marks.select(pl.sum_horizontal(pl.col(FAULTS).sum())).item())
    wrong += uncounted_conflicts(marks, read_ledger(release.tree))
    return Finding(
        "marks", not wrong, _counted(wrong, "availabilities, flags or conflicts that are unknown or uncounted")
    )


def _lags(release: _Release) -> Finding:
    """Usual delays are those of the release before, as long as that one is kept."""
    parent = release.manifest.parent
    before = ReleaseLayout(release.layout.releases / parent) if parent else None
    if before is None or not before.lags.is_file():
        return Finding("lags", True, "no release before to compare with")
    wrong = changed_lags(release.tree, before)
    return Finding("lags", not wrong, _counted(wrong, "usual delays that differ from the release before"))


def _shards(release: _Release) -> Finding:
    """Timelines and shards hold the same tokens of the same subjects, and image places point at their usable items."""
    items = read_items(release.tree, release.manifest.buckets)
    table = measure_shards(release.tree, release.manifest.profiles, release.manifest.buckets, items)
    if table.is_empty():
        return Finding("shards", True, "the release has none")
    words = {
        "token_difference": "tokens that shards and timelines do not share",
        "drop_difference": "tokens left out that no plan declares",
        "misplaced_segments": "pieces of timelines out of place",
        "changed_subjects": "subjects with other tokens than in their timelines",
        "misplaced_tiers": "subjects in another token budget than theirs",
        "budget_differences": "token budgets that are not what the manifest says",
        "foreign_subjects": "subjects in another split's shards",
        "malformed_packs": "malformed packs",
        "ids_out_of_range": "tokens outside the vocabulary",
        "misplaced_images": "images that are not where their tokens are",
        "dangling_images": "images that are no usable item",
        "foreign_images": "images of another subject or modality",
    }
    sums = table.select(list(words)).sum().row(0, named=True)
    wrong = [f"{count:,} {words[name]}" for name, count in sums.items() if count]
    fine = f"{table['tokens_shards'].sum():,} tokens, {table['image_places'].sum():,} image places, none astray"
    return Finding("shards", not wrong, "; ".join(wrong) or fine)


def _counted(wrong: int, what: str) -> str:
    return f"{wrong:,} {what}" if wrong else f"no {what}"


def _vectors(release: _Release) -> Finding:
    """Every usable item has its vector, whole and of the right width.

    Stores are read in a process of its own: a page that points past a truncated file's end kills whoever reads it.
    """
    items = read_items(release.tree, release.manifest.buckets).filter(pl.col("verdict") == "ok")
    stores = items.partition_by("modality", "store", "bucket", as_dict=True, maintain_order=True)
    total = {"missing": 0, "damaged": 0, "dim": 0}
    bad: list[str] = []
    pool = _pool()
    for done, ((modality, store, bucket), part) in enumerate(stores.items(), 1):
        path = release.layout.embedding_bucket(str(modality), str(store), int(bucket))
        keys, dims = part["item_key"].to_list(), part["dim"].fill_null(-1).to_list()
        try:
            counts = pool.submit(check_store, path, keys, dims).result()
        except BrokenProcessPool:
            counts = {"missing": 0, "damaged": len(keys), "dim": 0}
            pool = _pool()
        total = {name: total[name] + counts[name] for name in total}
        if any(counts.values()):
            bad.append("/".join(path.parts[-3:]))
        release.progress("vectors", done, len(stores))
    pool.shutdown()
    if not bad:
        return Finding("vectors", True, f"{items.height:,} usable items have theirs, checksums right")
    words = {"missing": "missing", "damaged": "damaged", "dim": "of another width"}
    counted = ", ".join(f"{count:,} {words[name]}" for name, count in total.items() if count)
    return Finding("vectors", False, f"{counted}; see {_named(bad)}")


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))


CHECKS: tuple[tuple[str, Callable[[_Release], Finding]], ...] = (
    ("files", _files),
    ("strangers", _strangers),
    ("content hash", _content),
    ("MEDS schemas", _schemas),
    ("buckets", _buckets),
    ("splits", _splits),
    ("ledger", _ledger),
    ("quarantine", _quarantine),
    ("marks", _marks),
    ("lags", _lags),
    ("shards", _shards),
    ("vectors", _vectors),
)


def _findings(release: _Release) -> Iterator[Finding]:
    for name, check in CHECKS:
        release.progress(name, 0, 0)
        try:
            yield check(release)
        except TimeloomError as error:
            yield Finding(name, False, f"could not be checked: {error.message}")
        except (Exception, pl.exceptions.PanicException) as error:  # damaged bytes can raise anything
            yield Finding(name, False, f"could not be checked: {type(error).__name__}")


def _silent(check: str, done: int, total: int) -> None:
    return None


def verify_release(root: Path, progress: Progress | None = None) -> list[Finding]:
    """Checks the published release under `root`, in the order of CHECKS; changes nothing.

    Args:
        progress: called with the check's name, what is done and of how much; (name, 0, 0) when a check begins.

    Raises:
        TimeloomError: nothing has been published under `root`.
    """
    layout = Layout(root)
    try:
        tree = current_release(layout)
        if tree is None:
            raise TimeloomError(f"{root.name} holds no release", remedy="run `timeloom run` first")
        manifest = read_manifest(tree.manifest)
    except TimeloomError as error:
        if not layout.current.is_symlink():
            raise
        return [Finding("manifest", False, error.message)]
    release = _Release(layout, tree, manifest, progress or _silent)
    return [Finding("manifest", True, f"release {manifest.release_id}"), *_findings(release)]
