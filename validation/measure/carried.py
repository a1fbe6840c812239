"""Measures of a bucket, mended by those subjects alone whose rows changed.

What is measured of a bucket is a sum over its subjects, or a row for each of them. So it is what it was, without what
the changed subjects gave to it, and with what they give now: both are measured as a whole bucket is, of trees that hold
these subjects' rows and no others. Who changed is told from the files (`pipelines.carrying.compared`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.carrying.compared import SubjectsFile, among, changed_subjects
from pipelines.engine.former import Former
from validation.measure.tasks import ORDERS, Params, Tables, area_of, measured, place_of
from warehouse.arrays import I64
from warehouse.files import seen_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import empty_frame, read_columns, read_frame, read_shared
from warehouse.schemas import MEASURES

# Of more changed subjects than this both parts cost more than all of tonight's.
_MOST = 0.4
# A bucket of fewer events is measured in the time that it takes to look who changed.
FEWEST_ROWS = 150_000
# By area what a row is of, where rows of one bucket's subjects are summed.
_SUMMED = {
    "counts": ["measure", "of", "within", "split"],
    "keys": ["item_key"],
    "gaps": ["population", "split", "seconds"],
}


@dataclass(frozen=True)
class SubjectsAlone(ReleaseLayout):
    """Files of a release with the rows of some subjects; those that are about no subject are the release's."""

    whole: ReleaseLayout

    @property
    def codes(self) -> Path:
        return self.whole.codes

    def vocabulary(self, profile: str) -> Path:
        return self.whole.vocabulary(profile)


def carried(
    parts: Sequence[Params], inputs: Sequence[str], tree: ReleaseLayout, former: Former, scratch: Path
) -> Tables | None:
    """What is measured of a bucket; None where it must be measured anew, as not its subjects alone changed, or many.

    Args:
        inputs: the files that are read, relative to both trees.
        scratch: a folder for files that are gone when this is done.
    """
    try:
        return _carried(parts, inputs, tree, former, scratch)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's word, of a full disk say
        return None  # whoever measures anew says which file is damaged


def _carried(
    parts: Sequence[Params], inputs: Sequence[str], tree: ReleaseLayout, former: Former, scratch: Path
) -> Tables | None:
    files = _both(inputs, tree, former.tree) if _is_large(parts[0], tree) else None
    if files is None:
        return None
    schemes = {scheme for params in parts for scheme in schemes_of(params)}
    changed = _changed(files, schemes, tree, former.tree)
    everybody = max((len(now.subjects) for now, _ in files.values()), default=0)
    if changed is None or len(changed) > _MOST * everybody:
        return None
    with TemporaryDirectory(dir=scratch, prefix="subjects-") as folder:
        some = [
            _alone(
                {name: both[side] for name, both in files.items()}, changed, schemes, release, Path(folder) / str(side)
            )
            for side, release in enumerate((tree, former.tree))
        ]
        if _shared_items(some, files, changed):
            return None
        tables: Tables = {}
        for params in parts:
            now, before = (measured(params, each) for each in some)
            mended = _mended(params, former, before, now, changed)
            if mended is None:
                return None
            tables |= mended
    return tables


def schemes_of(params: Params) -> list[str]:
    """Whose splits of the bucket's subjects a task reads."""
    intervals = params.get("intervals")
    return [*params.get("schemes", []), *([intervals] if intervals is not None else [])]


def _is_large(params: Params, tree: ReleaseLayout) -> bool:
    try:
        return int(pq.read_metadata(tree.events(params["bucket"])).num_rows) >= FEWEST_ROWS
    except (OSError, pa.ArrowException):
        return False


Both = dict[str, tuple[SubjectsFile, SubjectsFile]]


def _both(inputs: Sequence[str], tree: ReleaseLayout, former: ReleaseLayout) -> Both | None:
    """Each file now and before; None where one of them cannot be read, or a subject's rows may stand apart in it."""
    files: Both = {}
    try:
        for name in inputs:
            files[name] = SubjectsFile.read(tree.path / name), SubjectsFile.read(former.path / name)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        # Whoever measures anew says what is wrong with it.
        return None
    # Of items, which stand by key, no measure depends on the order.
    loose = {name for name, both in files.items() if not all(file.ordered for file in both)}
    return files if all(Path(name).parent.name == "items" for name in loose) else None


def _changed(files: Both, schemes: set[str], tree: ReleaseLayout, former: ReleaseLayout) -> I64 | None:
    """Ids, ascending, of those whose rows or splits are not what they were."""
    found = [np.zeros(0, np.int64)]
    for now, before in files.values():
        changed = changed_subjects(now, before)
        if changed is None:
            return None
        found.append(changed)
    there = np.unique(np.concatenate([file.subjects for both in files.values() for file in both]))
    for scheme in sorted(schemes):
        paths = tree.scheme_subjects(scheme), former.scheme_subjects(scheme)
        others = _other_splits(*((path, seen_of(path)) for path in paths))
        found.append(np.intersect1d(there, others, assume_unique=True))
    return np.unique(np.concatenate(found))


@lru_cache(maxsize=4)
def _other_splits(now: tuple[Path, tuple[int, ...]], before: tuple[Path, tuple[int, ...]]) -> I64:
    """The subjects of a scheme, of all buckets, whose splits differ."""
    frames = [read_shared(path).select("subject_id", "split") for path, _ in (now, before)]
    alone = [frames[a].join(frames[b], on=frames[a].columns, how="anti") for a, b in ((0, 1), (1, 0))]
    return np.unique(pl.concat(alone)["subject_id"].drop_nulls().to_numpy())


def _alone(
    files: Mapping[str, SubjectsFile], subjects: I64, schemes: set[str], release: ReleaseLayout, folder: Path
) -> SubjectsAlone:
    """Writes a tree of some subjects' rows."""
    tree = SubjectsAlone(folder, release)
    for name, file in files.items():
        path = tree.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, file.schema, compression="none", write_statistics=["subject_id"]) as writer:
            for table in file.rows_of(subjects):
                writer.write_table(table)
    for scheme in schemes:
        path = tree.scheme_subjects(scheme)
        path.parent.mkdir(parents=True, exist_ok=True)
        splits = read_shared(release.scheme_subjects(scheme))
        splits.filter(pl.Series(among(splits["subject_id"].to_numpy(), subjects))).write_parquet(path)
    return tree


def _shared_items(some: Sequence[SubjectsAlone], files: Both, subjects: I64) -> bool:
    """Whether a row of another subject names an item of some subjects: by their events it is judged."""
    named = [name for name, (now, _) in files.items() if "item_key" in now.schema.names]
    columns = [read_columns(tree.path / name, ["item_key"])["item_key"] for tree in some for name in named]
    keys = [column.cast(pa.string()).combine_chunks().drop_null() for column in columns]
    items = pa.concat_arrays([pa.array([], pa.string()), *keys]).unique()
    return len(items) > 0 and any(not among(files[name][0].naming("item_key", items), subjects).all() for name in named)


def _mended(params: Params, former: Former, before: Tables, now: Tables, subjects: I64) -> Tables | None:
    """A part's tables of the release before, without what some subjects gave and with what they give now; None where
    more was given than there was."""
    tables: Tables = {}
    for area in area_of(params):
        place = (area, *place_of(params)[1:])
        path = former.tree.measures(*place)
        known = str(path.relative_to(former.tree.path)) in former.files
        if not known and (place == place_of(params) or place in before):
            return None
        if not known and place not in now:
            continue
        empty = empty_frame(MEASURES[area])
        kept = read_frame(path) if known else empty
        frame = _mend(area, kept, before.get(place, empty), now.get(place, empty), subjects)
        if frame is None:
            return None
        if area != "keys" or frame.height:
            tables[place] = frame
    return tables


def _mend(area: str, kept: pl.DataFrame, before: pl.DataFrame, now: pl.DataFrame, subjects: I64) -> pl.DataFrame | None:
    names = MEASURES[area].names
    if area in ORDERS:
        others = kept.filter(pl.Series(~among(kept["subject_id"].to_numpy(), subjects)))
        return pl.concat([others, now.select(names)], how="vertical_relaxed").sort(ORDERS[area])
    keys = _SUMMED[area]
    numbers = [name for name in names if name not in keys]
    parts = [kept, now.select(names), before.select(*keys, *(-pl.col(name) for name in numbers))]
    summed = pl.concat(parts, how="vertical_relaxed").group_by(keys).agg(pl.col(numbers).sum()).sort(keys)
    if summed.select((pl.col(numbers) < 0).any()).row(0) != (False,) * len(numbers):
        return None
    return summed.filter(pl.col(numbers[0]) != 0)
