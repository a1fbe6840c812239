"""Which parts of a bucket a profile reads, and by which parents of its codes."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import polars as pl

from pipelines.carrying.subjects import usable_items
from pipelines.engine.context import RunContext
from pipelines.profiles.events import read_parts
from pipelines.profiles.lexicon import Ids, Lexicon, make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Chosen, choose
from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.files import seen_of, sha256_json
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame

# The hash of what the release before is not known to have: of no rules.
UNKNOWN = "unknown"


def parents_of(tree: ReleaseLayout, profile: ProfileConfig) -> pl.DataFrame | None:
    """metadata/codes.parquet where the profile asks for parents."""
    if not any(rule.parents for rule in profile.codes.values()) or not tree.codes.is_file():
        return None
    return read_frame(tree.codes).select("code", "parent_codes").drop_nulls("parent_codes")


def parents_hash_before(context: RunContext, bucket: int, parents: pl.DataFrame | None) -> str | None:
    """As `parents_hash`, of the codes that the bucket had in the release before; "unknown" where nobody can tell."""
    if parents is None:
        return None
    try:
        return parents_hash(context.former_tree, bucket, parents) if context.former_tree else UNKNOWN
    except TimeloomError:
        return UNKNOWN


def parents_hash(tree: ReleaseLayout, bucket: int, parents: pl.DataFrame | None) -> str | None:
    """A hash of the parents of a bucket's own codes."""
    if parents is None:
        return None
    parents_of_codes = read_frame(tree.codes_of(bucket)).select("code").join(parents, on="code").sort("code")
    return sha256_json([parents_of_codes["code"].to_list(), parents_of_codes["parent_codes"].to_list()])


def items_with_vectors(tree: ReleaseLayout, bucket: int, stores: Mapping[str, str]) -> pl.Series:
    """The keys of a bucket's items that have a vector; see `usable_items`."""
    return usable_items(read_frame(tree.items(bucket)), stores)["item_key"].unique(maintain_order=True)


def lexicon_of(
    tree: ReleaseLayout,
    bucket: int,
    profile: ProfileConfig,
    ids: Ids | None = None,
    former: ReleaseLayout | None = None,
) -> Lexicon:
    """What a bucket's codes lead to.

    Args:
        ids: the vocabulary, where it is known.
        former: a release whose bucket's codes, of which the same parents are known, are among them too.
    """
    releases = [tree] if former is None else [tree, former]
    codes = pl.concat([read_frame(each.codes_of(bucket))["code"] for each in releases]).unique().sort()
    whole = _of_release(tree, seen_of(tree.codes), profile.model_dump_json(), ids)
    # The release before may have codes that this one has no longer.
    found = whole.among(codes) if whole is not None else None
    return found or make_lexicon(codes, profile, parents_of(tree, profile), ids)


@lru_cache(maxsize=4)
def _of_release(tree: ReleaseLayout, seen: tuple[int, ...], profile: str, ids: Ids | None) -> Lexicon | None:
    """What the codes of a release lead to, worked out once by each process for all of its buckets; None where they are
    not listed.

    Args:
        seen: of metadata/codes.parquet.
        profile: its rules, JSON.
    """
    if not seen:
        return None
    rules = ProfileConfig.model_validate_json(profile)
    return make_lexicon(read_frame(tree.codes)["code"].unique().sort(), rules, parents_of(tree, rules), ids)


def ids_of(tree: ReleaseLayout, profile: str) -> Ids:
    """A profile's vocabulary, kept by each process for all buckets."""
    return _ids_of(tree.vocabulary(profile), seen_of(tree.vocabulary(profile)))


@lru_cache(maxsize=4)
def _ids_of(vocabulary: Path, _seen: tuple[int, ...]) -> Ids:
    return Ids(read_frame(vocabulary))


def chosen_parts(
    tree: ReleaseLayout,
    bucket: int,
    profile: ProfileConfig,
    stores: Mapping[str, str],
    ids: Ids | None = None,
    subjects: I64 | None = None,
    firsts: I64 | None = None,
    lexicon: Lexicon | None = None,
) -> Iterator[Chosen]:
    """A bucket's events that become tokens, some subjects at a time.

    Args:
        stores: by modality, the store whose vectors image tokens carry: an item without one there makes no token.
        ids: the vocabulary, where it is known.
        subjects: ids, ascending, of those who are wanted; all where not given.
        firsts: ids, ascending, that a part may begin at; every one where not given.
        lexicon: what the bucket's codes lead to, and maybe others; worked out where not given.
    """
    usable = items_with_vectors(tree, bucket, stores)
    lexicon = lexicon or lexicon_of(tree, bucket, profile, ids)
    values = profile.values != "codes_only" or any(rule.only_numeric for rule in profile.codes.values())
    for part in read_parts(tree.events(bucket), lexicon.codes, values=values, subjects=subjects, firsts=firsts):
        yield choose(part, lexicon, usable, profile)
