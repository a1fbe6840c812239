"""`timeloom repair`: what is damaged is made anew from the export, or taken from the release before; what is lost is
said."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import polars as pl

from embedders.running.salvage import is_readable, salvage
from extractors.deid import load_key
from flows.runs.paths import root_of
from flows.runs.record import lineage_path, record_lineage
from flows.runs.root import read_root, root_settings
from flows.runs.run import Run, RunOutcome, open_run
from flows.runs.settings import RunSettings
from pipelines.config import RunConfig, load_config
from pipelines.engine.run_stage import load_record
from validation.damage import RESTORE_KEY, Damage, Root, find_damage, of_older
from warehouse.embeddings.bucket_lease import sole_writer
from warehouse.errors import TimeloomError
from warehouse.files import put_in_place
from warehouse.layout import Layout, ReleaseLayout
from warehouse.manifest import Manifest, read_manifest
from warehouse.progress import Progress
from warehouse.publish import exclusive, point_at
from warehouse.sealed import is_whole, write_sealed

T = TypeVar("T")


@dataclass
class Repaired:
    """What a repair did.

    Attributes:
        release: the current one now.
        published: the repair made it, as any night publishes what it makes.
        damaged: files that were damaged or missing, stores of vectors with them.
        taken: what could not be made anew, and where it was taken from.
        lost: what is not as it was, in words; counts, no patient's value.
        left: files that are damaged still.
    """

    release: str = ""
    published: bool = False
    damaged: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        if self.left:
            return 1
        return 2 if self.lost else 0


def repair(settings: RunSettings, progress: Progress | None = None) -> Repaired:
    """Mends a root: first what a night stands on, then by a night, then older releases.

    Raises:
        TimeloomError: nothing was published there, another run is at work, or what a night would stop at.
    """
    config = load_config(settings.config)
    layout = Layout(root_of(config, settings.root))
    if not layout.releases.is_dir() or not any(layout.releases.iterdir()):
        raise TimeloomError(
            f"{layout.root.name} holds no release",
            remedy="run `timeloom run`; a root of `timeloom meds` is made anew: delete it and run that again",
        )
    done = Repaired()
    with exclusive(layout):
        root = Root(layout)
        found = find_damage(layout)
        done.damaged = [damage.name for damage in found]
        if any(name.endswith("/deid.key") for name in done.damaged):
            raise TimeloomError("the de-identification key is damaged", remedy=RESTORE_KEY)
        _mend_root(root, config, done)
        _forget_damaged(layout, found)
        _mend_lineage(Root(layout), found, config, done)
        _mend_stores(root, done)
    before = current_name(layout)
    with open_run(replace(settings, limit=read_root(layout).get("limit")), progress, repair=True) as run:
        for name, step in run.steps:
            run.carry_out(name, step)
        outcome = run.outcome()
    _say(run, outcome, layout.releases / before, done)
    with exclusive(layout):
        _set_aside(layout, outcome.release, done)
        _mend_older(layout, done)
    done.release, done.published = outcome.release, outcome.published
    done.left = [damage.name for damage in find_damage(layout)]
    return done


def current_name(layout: Layout) -> str:
    """The id of the release that `current` points at."""
    return layout.current.resolve().name


def _mend_root(root: Root, config: RunConfig, done: Repaired) -> None:
    """The pointer, which points at the latest release that can be opened; root.json, as a manifest has it."""
    layout = root.layout
    whole = [name for name, manifest in root.releases.items() if manifest is not None]
    if root.current is None:
        if not whole:
            raise TimeloomError(
                f"no release of {layout.root.name} has a manifest that can be read",
                remedy="restore one from backup, or start another root",
            )
        if layout.current.is_dir() and not layout.current.is_symlink():
            _aside(layout, layout.current, done)
        point_at(layout, whole[-1])
        done.taken.append(f"`current` points at {whole[-1]}, the latest release that can be opened")
    if not is_whole(layout.settings, older=True):
        manifest = root.releases[whole[-1]] if whole else None
        if manifest is not None and manifest.root is not None:
            write_sealed(layout.settings, manifest.root)
            done.taken.append(f"root.json is what release {manifest.release_id} says of it")
        else:
            write_sealed(layout.settings, root_settings(config, None, load_key(config.deid, layout.private)))
            done.lost.append("root.json, which no manifest holds: it is what the configuration says")


def _forget_damaged(layout: Layout, found: list[Damage]) -> None:
    """Removes what is damaged and is made anew where it is missing, records whose files are damaged, those of segments
    that go on from a damaged one among them, and segments without a record."""
    for damage in found:
        top, _, rest = damage.name.partition("/")
        path = layout.private / rest if top == "private" else layout.root / damage.name
        if top in ("segments", "embeddings") or path.parent in layout.private_records:
            path.unlink(missing_ok=True)
            if top != "embeddings":
                path.with_suffix(".json").unlink(missing_ok=True)
    damaged, named = {damage.name for damage in found}, set[str]()
    for path in sorted(layout.segments.glob("*.json")):
        record = load_record(path)
        names = set(record.files) if record is not None else set()
        if any(f"segments/{name}" in damaged for name in names):
            path.unlink()
        else:
            named |= names
    for path in sorted(layout.segments.glob("*")):
        if path.is_file() and path.name not in named and not path.with_suffix(".json").exists():
            path.unlink()


def _mend_lineage(root: Root, found: list[Damage], config: RunConfig, done: Repaired) -> None:
    """Records of runs, as far as the manifests of their releases know them."""
    layout = root.layout
    known = {lineage_path(layout, manifest): manifest for manifest in root.releases.values() if manifest is not None}
    for damage in found:
        path = layout.root / damage.name
        if not damage.name.startswith("lineage/"):
            continue
        if path in known:
            record_lineage(layout, known[path], config.name, [])
            done.lost.append(f"{damage.name}: how long each step of that run took; the rest is remade")
        else:
            path.unlink(missing_ok=True)
            done.lost.append(f"{damage.name}: the record of a run whose release is gone")


def _mend_stores(root: Root, done: Repaired) -> None:
    """Stores that cannot be walked through are made anew of the vectors in them that are whole; the night makes the
    rest of them."""
    top = root.layout.root
    for path in sorted(top.glob("embeddings/*/*/*.lmdb")):
        if _apart(is_readable, path) or (path.is_file() and _apart(is_readable, path)):
            continue
        name = path.relative_to(top).as_posix()
        done.damaged.append(name)
        fresh = path.with_suffix(".fresh")
        keys = list(_keys_of(root, path))
        with sole_writer(path) as lease, lease.turn():
            saved = _apart(salvage, path, fresh, keys) if path.stat().st_size else None
            for old in (path, path.with_name(f"{path.name}-lock"), fresh.with_name(f"{fresh.name}-lock")):
                old.unlink(missing_ok=True)
            if saved:
                fresh.replace(path)
            fresh.unlink(missing_ok=True)
        done.taken.append(f"{name}: {saved or 0} of {len(keys)} vectors were whole; the others are made anew")


def _keys_of(root: Root, store: Path) -> Iterator[str]:
    """The items of the releases that a store should hold."""
    modality, folder, bucket = store.parts[-3], store.parts[-2], int(store.stem)
    seen: set[str] = set()
    for name, manifest in root.releases.items():
        path = ReleaseLayout(root.layout.releases / name).items(bucket)
        entry = manifest.files.get(f"items/{path.name}") if manifest is not None else None
        if entry is None or not root.is_of(path, entry):
            continue
        items = pl.read_parquet(path, columns=["item_key", "modality", "store", "verdict"])
        of_store = (pl.col("modality") == modality) & (pl.col("store") == folder) & (pl.col("verdict") == "ok")
        for key in items.filter(of_store)["item_key"]:
            if key not in seen:
                seen.add(key)
                yield key


def _apart(function: Callable[..., T], *arguments: object) -> T | None:
    """What a function gives in a process of its own; None where the process dies."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def _say(run: Run, outcome: RunOutcome, before: Path, done: Repaired) -> None:
    """What the night took from older releases, and what of the release before is not as it was."""
    done.damaged += [name for name in outcome.damaged if not any(known.endswith(name) for known in done.damaged)]
    for name, release in run.context.taken.items():
        where = "is drawn anew from the export" if release is None else f"goes on from release {release}"
        done.taken.append(f"{name} {where}")
    after = run.layout.releases / outcome.release
    manifest = read_manifest(after / "manifest.json")
    if not is_whole(before / "manifest.json", older=True):
        parent = manifest.parent
        done.taken.append(
            f"the release goes on from {parent}" if parent else "the release is drawn anew from the export"
        )
        changed = [
            name
            for name, entry in manifest.files.items()
            if not name.startswith("quality/") and not entry.is_of(before / name)
        ]
        if changed:
            done.lost.append(f"{len(changed)} files of release {before.name} are not as they were")
    elif run.context.taken:
        done.lost += [f"{name} as release {before.name} had it" for name in run.context.taken]
    done.lost += _moved(ReleaseLayout(before), ReleaseLayout(after), manifest)


def _moved(before: ReleaseLayout, after: ReleaseLayout, manifest: Manifest) -> Iterator[str]:
    """Patients who have another split than before, scheme by scheme; where that cannot be told any more, that."""
    for scheme in dict.fromkeys([manifest.split_scheme, *(entry.scheme for entry in manifest.profiles.values())]):
        try:
            old, new = (pl.read_parquet(tree.scheme_subjects(scheme)) for tree in (before, after))
            both = old.join(new, on="subject_id", suffix="_now")
            moved = both.filter(pl.col("split") != pl.col("split_now")).height
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            yield f"what split each patient had in scheme {scheme}: it cannot be compared any more"
            continue
        if moved:
            yield f"the split of {moved} patients in scheme {scheme}: they have another one now"


def _set_aside(layout: Layout, current: str, done: Repaired) -> None:
    """Releases that cannot be opened, out of the way of what reads `releases/`."""
    for path in sorted(layout.releases.iterdir()):
        if path.name != current and not is_whole(path / "manifest.json", older=True):
            _aside(layout, path, done)


def _aside(layout: Layout, path: Path, done: Repaired) -> None:
    layout.set_aside.mkdir(exist_ok=True)
    number = sum(1 for _ in layout.set_aside.iterdir())
    target = layout.set_aside / f"{path.name}.{number}"
    path.rename(target)
    done.taken.append(f"{path.name} cannot be opened and lies in {target.parent.name}/{target.name}: delete it at will")


def _mend_older(layout: Layout, done: Repaired) -> None:
    """Files of older releases that another release has whole."""
    root = Root(layout)
    for damage in list(of_older(root)):
        _, name, relative = damage.name.split("/", 2)
        manifest = root.releases[name]
        lender = _lender(root, relative, manifest.files[relative].sha256) if manifest is not None else None
        if lender is not None:
            put_in_place(lender, layout.root / damage.name)
        else:
            done.lost.append(f"{damage.name}, which no other release has")


def _lender(root: Root, relative: str, sha256: str) -> Path | None:
    for name, manifest in root.releases.items():
        entry = manifest.files.get(relative) if manifest is not None else None
        path = root.layout.releases / name / relative
        if entry is not None and entry.sha256 == sha256 and root.is_of(path, entry):
            return path
    return None


def print_repaired(done: Repaired, say: Callable[[str], None]) -> None:
    """The same for a person."""
    if not done.damaged:
        say("nothing was damaged")
    for name in done.damaged:
        say(f"damaged: {name}")
    for text in done.taken:
        say(text)
    for text in done.lost:
        say(f"lost: {text}")
    for name in done.left:
        say(f"still damaged: {name}")
    if not done.left:
        made = "was published and is the current one; it" if done.published else "is the current one; it"
        say(f"release {done.release} {made} is whole{'' if done.lost else ', and nothing is lost'}")
