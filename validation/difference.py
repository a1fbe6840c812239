"""How two releases differ: patients, events, splits, vocabularies, shards, images, settings.

A file that has the same SHA-256 in both manifests is not read. Of the others one bucket at a time is in memory, its
rows as hashes. Counts of 1 to 10 are hidden, and what they could be worked out from, as in the report.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from validation.report.cells import LARGEST_SMALL, WITHHELD, Cell, Cells, Hidden
from validation.report.page import OPEN_MODE
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.manifest import Manifest
from warehouse.progress import Progress
from warehouse.readers.pinned import PinnedRelease
from warehouse.schemas import EVENTS, SPLITS

Row = dict[str, Any]
# Names of tokens that are given out, at most.
NAMED = 20
# What stands for the codes of a table that few events have.
RARE = "codes of few events"
_KEY = ["subject_id", "source", "code", "row"]


def difference(before: PinnedRelease, after: PinnedRelease, progress: Progress) -> dict[str, Any]:
    """What `after` has otherwise than `before`, as JSON; hidden counts are null, and `withheld` names them.

    Raises:
        TimeloomError: the releases have different buckets, or a file of one is gone or damaged.
    """
    if before.manifest.buckets != after.manifest.buckets:
        raise TimeloomError("the releases have different buckets", remedy="compare releases of one root")
    modes = {before.manifest.deid.mode, after.manifest.deid.mode}
    cells = Cells(open=modes == {OPEN_MODE})
    subjects, events, read = _of_buckets(before, after, progress)
    if not cells.open:
        events = _with_rare_as_one(events, before, after)
    old, new = before.manifest, after.manifest
    return {
        "before": old.release_id,
        "after": new.release_id,
        "same": old.content_hash == new.content_hash,
        "files": _files(old, new),
        "event_files_read": read,
        "subjects": _row({}, {name: cells.count(subjects[name]) for name in ("added", "withdrawn", "changed")}),
        "tables": tables_of(events, cells),
        "codes": _codes(events, cells),
        "splits": list(_splits(before, after, cells)),
        "vocabularies": list(_vocabularies(before, after, cells)),
        "shards": _shards(old, new),
        "items": _items(old, new, cells),
        "encoders": _named(_stores(old), _stores(new)),
        "stages": _named(old.stages, new.stages),
        "keys": _named(old.keys, new.keys) if old.keys and new.keys else [],
    }


def _row(names: Mapping[str, Any], shown: Mapping[str, Any]) -> Row:
    hidden = {name: cell.label for name, cell in shown.items() if isinstance(cell, Hidden)}
    row = {**names, **{name: None if name in hidden else cell for name, cell in shown.items()}}
    return row | ({"withheld": "; ".join(f"{name}: {label}" for name, label in hidden.items())} if hidden else {})


def _files(old: Manifest, new: Manifest) -> dict[str, int]:
    """Files of data, the report's apart: those that both have, and that one alone has or has otherwise."""
    had, has = (
        {name: entry.sha256 for name, entry in each.files.items() if not name.startswith("quality/")}
        for each in (old, new)
    )
    both = had.keys() & has.keys()
    same = sum(had[name] == has[name] for name in both)
    return {"same": same, "changed": len(both) - same, "added": len(has) - len(both), "gone": len(had) - len(both)}


def _of_buckets(
    before: PinnedRelease, after: PinnedRelease, progress: Progress
) -> tuple[Counter[str], pl.DataFrame, int]:
    """Patients by what became of them; events added and removed by source and code; and how many files were read."""
    subjects: Counter[str] = Counter()
    events = [pl.DataFrame(schema={"source": pl.String, "code": pl.String, "added": pl.Int64, "removed": pl.Int64})]
    read = 0
    buckets = after.manifest.buckets
    for bucket in range(buckets):
        progress("buckets", bucket, buckets)
        paths = [release.files.events(bucket) for release in (before, after)]
        entries = [
            release.manifest.files.get(release.relative(path))
            for release, path in zip((before, after), paths, strict=True)
        ]
        if entries[0] is not None and entries[1] is not None and entries[0].sha256 == entries[1].sha256:
            continue
        read += sum(entry is not None for entry in entries)
        had, has = (
            _rows(release.checked(path)) if entry is not None else _rows(None)
            for release, path, entry in zip((before, after), paths, entries, strict=True)
        )
        other = had.join(has, on=_KEY, how="full", coalesce=True, suffix="_now").with_columns(
            pl.col("len", "len_now").fill_null(0).cast(pl.Int64)
        )
        other = other.filter(pl.col("len") != pl.col("len_now"))
        by_code = other.group_by("source", "code").agg(
            (pl.col("len_now") - pl.col("len")).clip(0).sum().alias("added"),
            (pl.col("len") - pl.col("len_now")).clip(0).sum().alias("removed"),
        )
        events.append(by_code)
        known = [set(rows["subject_id"].unique()) for rows in (had, has)]
        changed = set(other["subject_id"].unique()) & known[0] & known[1]
        subjects["added"] += len(known[1] - known[0])
        subjects["withdrawn"] += len(known[0] - known[1])
        subjects["changed"] += len(changed)
    progress("buckets", buckets, buckets)
    total = pl.concat(events).group_by("source", "code").agg(pl.col("added", "removed").sum())
    return subjects, total.sort("source", "code"), read


def _rows(path: Path | None) -> pl.DataFrame:
    """The rows of a bucket, each as a hash, and how often it stands there."""
    whole = pl.scan_parquet(path) if path is not None else _no_events()
    row = pl.struct(EVENTS.names).hash(seed=0).alias("row")
    return whole.select("subject_id", "source", "code", row).group_by(_KEY).len().collect(engine="streaming")


def _no_events() -> pl.LazyFrame:
    frame = pl.from_arrow(EVENTS.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def _with_rare_as_one(events: pl.DataFrame, *releases: PinnedRelease) -> pl.DataFrame:
    """The same with one row of a table for its codes that few events have, in either release: a rare code's name alone
    may say whom it is about."""
    frequent = set[str]()
    for release in releases:
        paths = release.checked_all(release.files.codes_of(bucket) for bucket in range(release.manifest.buckets))
        if not paths:
            continue
        counted = pl.scan_parquet(paths).group_by("code").agg(pl.col("events").sum())
        frequent |= set(counted.filter(pl.col("events") > LARGEST_SMALL).collect()["code"])
    name = pl.when(pl.col("code").is_in(frequent)).then("code").otherwise(pl.lit(RARE)).alias("code")
    merged = events.group_by("source", name).agg(pl.col("added", "removed").sum())
    return merged.sort("source", "code")


def _codes(events: pl.DataFrame, cells: Cells) -> list[Row]:
    """Events by table and code: the parts of what `_tables` says of each table."""
    rows = []
    for part in events.partition_by("source", maintain_order=True):
        added, removed = (cells.parts(part[name].to_list()) for name in ("added", "removed"))
        rows += [
            _row({"table": source, "code": code}, {"added": more, "removed": less})
            for source, code, more, less in zip(part["source"], part["code"], added, removed, strict=True)
        ]
    return rows


def tables_of(events: pl.DataFrame, cells: Cells) -> list[Row]:
    """Events by table: source, code, added, removed in, sorted by source."""
    return [
        _row({"table": part["source"][0]}, {name: _total(part[name].to_list(), cells) for name in ("added", "removed")})
        for part in events.partition_by("source", maintain_order=True)
    ]


def _total(parts: Sequence[int], cells: Cells) -> Cell:
    """What the codes of a table add up to; withheld where each of them is, as every patient may have one event of each:
    18 events of three such codes are six patients."""
    counted = [cell for cell, number in zip(cells.parts(parts), parts, strict=True) if number]
    total = cells.count(sum(parts))
    return WITHHELD if len(counted) > 1 and all(isinstance(cell, Hidden) for cell in counted) else total


def _schemes(manifest: Manifest) -> dict[str, str]:
    """By scheme, the hash of its subjects' splits."""
    ending = "/" + ReleaseLayout(Path()).scheme_subjects("").name
    return {
        name.split("/")[1]: entry.sha256
        for name, entry in manifest.files.items()
        if name.startswith("splits/") and name.endswith(ending)
    }


def _splits(before: PinnedRelease, after: PinnedRelease, cells: Cells) -> Iterator[Row]:
    """By scheme and split, the patients who came, went, and moved to another split; none of whom may."""
    had, has = _schemes(before.manifest), _schemes(after.manifest)
    for scheme in sorted(had.keys() & has.keys()):
        if had[scheme] == has[scheme]:
            continue
        both = before.splits(scheme).join(after.splits(scheme), on="subject_id", how="full", coalesce=True, suffix="_")
        came = both.filter(pl.col("split").is_null())["split_"].value_counts()
        went = both.filter(pl.col("split_").is_null())["split"].value_counts()
        moved = both.filter(pl.col("split") != pl.col("split_"))["split"].value_counts()
        counted = [
            cells.parts([dict(found.iter_rows()).get(split, 0) for split in SPLITS]) for found in (came, went, moved)
        ]
        for split, added, withdrawn, away in zip(SPLITS, *counted, strict=True):
            yield _row({"scheme": scheme, "split": split}, {"added": added, "withdrawn": withdrawn, "moved_away": away})
    for scheme in sorted(had.keys() ^ has.keys()):
        yield {"scheme": scheme, "is": "gone" if scheme in had else "new"}


def _vocabularies(before: PinnedRelease, after: PinnedRelease, cells: Cells) -> Iterator[Row]:
    """By profile, tokens that came and went. Those of few events are counted and not named."""
    had, has = before.manifest.profiles, after.manifest.profiles
    for profile in sorted(had.keys() & has.keys()):
        if had[profile].vocabulary_hash == has[profile].vocabulary_hash:
            continue
        old, new = (_vocabulary(release, profile) for release in (before, after))
        added = new.join(old, on="token", how="anti")
        frequent = added.filter((pl.col("train_count") > LARGEST_SMALL) | cells.open).sort(
            "train_count", descending=True
        )
        renumbered = old.join(new, on="token", suffix="_now").filter(pl.col("token_id") != pl.col("token_id_now"))
        yield {
            "profile": profile,
            "tokens": len(new),
            "added": len(added),
            "gone": len(old.join(new, on="token", how="anti")),
            "renumbered": len(renumbered),
            "most_frequent": frequent["token"].head(NAMED).to_list(),
        }
    for profile in sorted(had.keys() ^ has.keys()):
        yield {"profile": profile, "is": "gone" if profile in had else "new"}


def _vocabulary(release: PinnedRelease, profile: str) -> pl.DataFrame:
    return pl.read_parquet(
        release.checked(release.files.vocabulary(profile)), columns=["token_id", "token", "train_count"]
    )


def _shards(old: Manifest, new: Manifest) -> list[Row]:
    """By plan and split, how many shard files are the same, are others, came and went."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    for name in sorted(old.files.keys() | new.files.keys()):
        parts = Path(name).parts
        if parts[0] != "shards":
            continue
        had, has = old.files.get(name), new.files.get(name)
        state = "added" if had is None else "gone" if has is None else "same" if had.sha256 == has.sha256 else "changed"
        counted.setdefault((parts[1], parts[2]), Counter())[state] += 1
    states = ("same", "changed", "added", "gone")
    return [
        {"plan": plan, "split": split} | {state: found[state] for state in states}
        for (plan, split), found in counted.items()
    ]


def _items(old: Manifest, new: Manifest, cells: Cells) -> list[Row]:
    """By modality and verdict, how many more images there are, or fewer."""
    rows = []
    for modality in sorted(old.verdicts.keys() | new.verdicts.keys()):
        had, has = old.verdicts.get(modality, {}), new.verdicts.get(modality, {})
        verdicts = sorted(verdict for verdict in had.keys() | has.keys() if had.get(verdict) != has.get(verdict))
        more = cells.parts([has.get(verdict, 0) - had.get(verdict, 0) for verdict in verdicts])
        rows += [
            _row({"modality": modality, "verdict": verdict}, {"more": cell})
            for verdict, cell in zip(verdicts, more, strict=True)
        ]
    return rows


def _stores(manifest: Manifest) -> dict[str, str]:
    return {
        f"{modality}/{entry.name}": entry.store for modality, entries in manifest.encoders.items() for entry in entries
    }


def _named(old: Mapping[str, Any], new: Mapping[str, Any]) -> Sequence[Row]:
    """What is named in both with another value, or in one alone; values apart."""
    return [
        {"name": name, "is": "new" if name not in old else "gone" if name not in new else "other"}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
