"""Which parts of a bucket a profile reads, and by which parents of its codes."""

from collections.abc import Iterator, Mapping

import polars as pl

from pipelines.profiles.events import read_parts
from pipelines.profiles.lexicon import Ids, make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Chosen, choose
from warehouse.files import sha256_json
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_frame


def parents_of(tree: ReleaseLayout, profile: ProfileConfig) -> pl.DataFrame | None:
    """metadata/codes.parquet where the profile asks for parents."""
    if not any(rule.parents for rule in profile.codes.values()) or not tree.codes.is_file():
        return None
    return read_frame(tree.codes).select("code", "parent_codes").drop_nulls("parent_codes")


def parents_hash(tree: ReleaseLayout, bucket: int, parents: pl.DataFrame | None) -> str | None:
    """A hash of the parents of a bucket's own codes."""
    if parents is None:
        return None
    parents_of_codes = read_frame(tree.codes_of(bucket)).select("code").join(parents, on="code").sort("code")
    return sha256_json([parents_of_codes["code"].to_list(), parents_of_codes["parent_codes"].to_list()])


def items_with_vectors(tree: ReleaseLayout, bucket: int, stores: Mapping[str, str]) -> pl.Series:
    """The keys of a bucket's items that have a vector.

    Args:
        stores: by modality, the store that it must lie in; of a modality that is not named any will do.
    """
    wanted = pl.col("modality").replace_strict(stores, default=pl.col("store"), return_dtype=pl.String)
    usable = read_frame(tree.items(bucket)).filter(pl.col("verdict") == "ok")
    return (usable.filter(pl.col("store") == wanted) if stores else usable)["item_key"].unique(maintain_order=True)


def chosen_parts(
    tree: ReleaseLayout, bucket: int, profile: ProfileConfig, stores: Mapping[str, str], ids: Ids | None = None
) -> Iterator[Chosen]:
    """A bucket's events that become tokens, some subjects at a time.

    Args:
        stores: by modality, the store whose vectors image tokens carry: an item without one there makes no token.
    """
    usable = items_with_vectors(tree, bucket, stores)
    codes = read_frame(tree.codes_of(bucket))["code"].sort()
    lexicon = make_lexicon(codes, profile, parents_of(tree, profile), ids)
    values = profile.values != "codes_only" or any(rule.only_numeric for rule in profile.codes.values())
    for part in read_parts(tree.events(bucket), codes, values=values):
        yield choose(part, lexicon, usable, profile)
