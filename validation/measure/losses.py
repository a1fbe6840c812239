"""What a release holds less of than the releases before it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from pipelines.limits import LimitsConfig
from warehouse.errors import TimeloomError
from warehouse.layout import Layout
from warehouse.manifest import ContentEntry, LossEntry, Manifest, read_manifest

Key = tuple[str, str, str]
COMPARED = {
    "table": ("rows", "events", "subjects"),
    "source": ("rows", "events", "subjects"),
    "modality": ("items", "subjects"),
    "namespace": ("events",),
    "tokens": ("tokens",),
}
# What may never go unseen, however little there was of it: the measure says that nothing is left.
WHOLE = {"table": "rows", "source": "rows", "modality": "items"}
LOSSES = pl.Schema(
    {
        "kind": pl.String,
        "name": pl.String,
        "within": pl.String,
        "option": pl.String,
        "measure": pl.String,
        "before": pl.Int64,
        "now": pl.Int64,
        "share": pl.Float64,
        "release": pl.String,
        "lost": pl.Int64,
        "accepted": pl.Int64,
    }
)


@dataclass(frozen=True)
class Earlier:
    """A published release that this one is compared with.

    Attributes:
        rules: by profile, the hash of the rules that made its tokens.
        accepted: parts whose loss was agreed to when it was published: what was before does not count for them.
    """

    release: str
    contents: Sequence[ContentEntry]
    rules: dict[str, str]
    accepted: frozenset[Key] = frozenset()

    @classmethod
    def of(cls, manifest: Manifest, contents: Sequence[ContentEntry] | None = None) -> "Earlier":
        """Args:
        contents: of a release whose manifest does not count them.
        """
        return cls(
            manifest.release_id,
            contents if contents is not None else manifest.contents,
            {name: profile.rules_hash for name, profile in manifest.profiles.items()},
            frozenset(loss.key for loss in manifest.accepted_losses),
        )

    def forgets(self, key: Key) -> bool:
        """Whether a part is no longer compared with what was before this release."""
        kind, name, within = key
        if kind == "namespace":
            return key in self.accepted or any(
                _joined(entry) == within for entry in self.accepted if entry[0] == "table"
            )
        if kind == "source":
            return key in self.accepted or any(entry[0] == "table" and entry[2] == name for entry in self.accepted)
        # A table's tokens cannot be told from another's.
        return key in self.accepted or (kind == "tokens" and bool(self.accepted))


def _joined(key: Key) -> str:
    return f"{key[2]}/{key[1]}" if key[2] else key[1]


def releases_before(layout: Layout, parent: Manifest, window: int) -> list[Manifest]:
    """The releases behind the parent that are still kept and count what they hold, the latest first; `window` with it.

    A damaged one ends the list: `timeloom verify` is what looks for damage.
    """
    found: list[Manifest] = []
    manifest = parent
    while manifest.parent is not None and len(found) < window - 1:
        try:
            manifest = read_manifest(layout.releases / manifest.parent / "manifest.json")
        except TimeloomError:
            break
        if not manifest.contents:
            break
        found.append(manifest)
    return found


def named_parts(contents: Sequence[ContentEntry]) -> set[str]:
    """Every name by which a loss can be agreed to."""
    return {name for entry in contents for name in (entry.name, _joined(entry.key)) if entry.kind in COMPARED}


def names_of_several(contents: Sequence[ContentEntry]) -> dict[str, list[str]]:
    """Names that tables of several sources have: by name, `source/table` of each."""
    found: dict[str, set[str]] = {}
    for entry in contents:
        if entry.kind == "table":
            found.setdefault(entry.name, set()).add(_joined(entry.key))
    return {name: sorted(tables) for name, tables in found.items() if len(tables) > 1}


def measure_losses(
    contents: Sequence[ContentEntry],
    earlier: Sequence[Earlier],
    rules: dict[str, str],
    accepted: Collection[str],
    limits: LimitsConfig,
) -> pl.DataFrame:
    """One row per part and measure that was more in the releases before, LOSSES; parts that lost too much come first.

    A part is compared with the most that it held in the releases of the window, as far back as no loss of it was agreed
    to. Tokens are compared where their profile has the same rules. `lost`: 1 where the loss is beyond the limit;
    `accepted` instead of `lost`: 1 where a person agreed to it. `option`: the name by which to agree to it alone.

    Args:
        earlier: the parent first.
        accepted: names of tables, sources, modalities or namespaces, `source/table` too.
    """
    held = {entry.key: entry.counts for entry in contents}
    most: dict[tuple[Key, str], tuple[int, str]] = {}
    closed: set[Key] = set()
    for release in earlier:
        entries = [entry for entry in release.contents if entry.kind in COMPARED and entry.key not in closed]
        for entry in entries:
            if entry.kind == "tokens" and rules.get(entry.within) != release.rules.get(entry.within):
                continue
            for measure in COMPARED[entry.kind]:
                before = entry.counts.get(measure, 0)
                if before > most.get((entry.key, measure), (0, ""))[0]:
                    most[entry.key, measure] = before, release.release
        closed |= {entry.key for entry in entries if release.forgets(entry.key)} | release.accepted
    tables = names_of_several([*contents, *(entry for release in earlier for entry in release.contents)])
    rows = []
    for (key, measure), (before, source) in most.items():
        now = held.get(key, {}).get(measure, 0)
        if now < before:
            gone = now == 0 and WHOLE.get(key[0]) == measure
            beyond = gone or (before >= limits.fewest and (before - now) / before > limits.loss)
            option = _joined(key) if key[1] in tables and key[0] == "table" else key[1]
            rows.append((*key, option, measure, before, now, (before - now) / before, source, int(beyond), 0))
    frame = pl.DataFrame(rows, schema=LOSSES, orient="row")
    agreed = _agreed(frame, frozenset(accepted))
    place = pl.col("kind").replace_strict({kind: place for place, kind in enumerate(COMPARED)}, return_dtype=pl.Int64)
    return frame.with_columns(
        (pl.col("lost") * agreed).alias("accepted"), (pl.col("lost") * (1 - agreed)).alias("lost")
    ).sort(-(pl.col("lost") + pl.col("accepted")), place, "within", "name", maintain_order=True)


def _agreed(losses: pl.DataFrame, names: frozenset[str]) -> pl.Series:
    """1 where a loss is one that a person agreed to, or follows from it.

    Who agrees to a table's loss agrees to that of its namespaces, of its source as a whole and of tokens.
    """
    tables = {
        (name, within)
        for kind, name, within in losses.filter(pl.col("lost") == 1).select("kind", "name", "within").iter_rows()
        if kind == "table" and not names.isdisjoint({name, _joined((kind, name, within)), within})
    }
    joined = {_joined(("table", name, within)) for name, within in tables}
    sources = {within for _, within in tables}
    images = set(losses.filter((pl.col("kind") == "modality") & (pl.col("lost") == 1))["name"])
    # A table's tokens, or a modality's, cannot be told from another's.
    tokens = bool(tables) or not names.isdisjoint(images)
    found = []
    for kind, name, within in losses.select("kind", "name", "within").iter_rows():
        given = not names.isdisjoint({name, _joined((kind, name, within))})
        follows = {
            "table": (name, within) in tables,
            "source": name in sources,
            "namespace": within in joined,
            "tokens": tokens,
        }
        found.append(int(given or follows.get(kind, False)))
    return pl.Series("agreed", found, dtype=pl.Int64)


def loss_entries(losses: pl.DataFrame) -> tuple[LossEntry, ...]:
    """The losses that a person agreed to."""
    accepted = losses.filter(pl.col("accepted") == 1)
    return tuple(
        LossEntry(**row)
        for row in accepted.select("kind", "name", "within", "measure", "before", "now").iter_rows(named=True)
    )
