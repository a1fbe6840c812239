"""Which parts of a bucket a profile reads, and by which parents of its codes."""

from collections.abc import Iterator, Mapping

import polars as pl

from pipelines.carrying.subjects import usable_items
from pipelines.engine.context import RunContext
from pipelines.profiles.events import read_parts
from pipelines.profiles.lexicon import Ids, Lexicon, make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Chosen, choose
from warehouse.arrays import I64
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json
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
    codes = pl.concat([read_frame(each.codes_of(bucket))["code"] for each in releases])
    return make_lexicon(codes.unique().sort(), profile, parents_of(tree, profile), ids)


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
