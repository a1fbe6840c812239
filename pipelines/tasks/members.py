"""Which codes of a release belong to which lists, worked out once a night by each process that needs it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.tasks.codes import CodeList, edges_of, read_mappings, resolve
from pipelines.tasks.settings import LabelsConfig
from warehouse.errors import TimeloomError
from warehouse.files import sha256_json, signature_of
from warehouse.layout import ReleaseLayout
from warehouse.parquet import read_columns, read_frame


@dataclass(frozen=True)
class LabelCodes:
    """Lists of codes over a release's codes.

    Attributes:
        tree: the release, with its metadata and the codes of each bucket.
        lists: by name.
        mappings: files of the site.
        parents_of_none: namespaces whose codes are no fact of their parents' kind.
    """

    tree: ReleaseLayout
    lists: Mapping[str, CodeList]
    mappings: tuple[Path, ...] = ()
    parents_of_none: tuple[str, ...] = ()

    @classmethod
    def of(cls, tree: ReleaseLayout, config: LabelsConfig) -> "LabelCodes":
        return cls(tree, config.all_lists(), config.mappings, config.parents_of_none)

    @classmethod
    def of_params(cls, params: Mapping[str, Any], tree: ReleaseLayout) -> "LabelCodes":
        """As `params` gives it. What a process works out of a release's codes serves all of its buckets."""
        files = [str(tree.codes), *params["mappings"]]
        seen = json.dumps([signature_of(Path(path).stat()) for path in files if Path(path).exists()])
        return _worked_out(json.dumps(dict(params), sort_keys=True), tree.path, seen)

    @property
    def params(self) -> dict[str, Any]:
        """What a task needs to know of it, as JSON."""
        return {
            "lists": {name: entry.model_dump(mode="json") for name, entry in self.lists.items()},
            "mappings": [str(path) for path in self.mappings],
            "parents_of_none": list(self.parents_of_none),
        }

    @cached_property
    def codes(self) -> pl.DataFrame:
        """`code`, `parent_codes` of the release."""
        return read_frame(self.tree.codes).select("code", "parent_codes")

    @cached_property
    def edges(self) -> pl.DataFrame:
        """`code`, `parent` of every tie that counts."""
        return edges_of(self.codes, read_mappings(self.mappings), self.parents_of_none)

    @cached_property
    def members(self) -> pl.DataFrame:
        """`code`, `list`, `node` of the whole release, for every list."""
        return resolve(self.lists, self.lists, self.codes["code"], self.edges)

    @cached_property
    def _of_derived(self) -> dict[tuple[tuple[str, ...], str], pl.DataFrame]:
        """By lists and code what was asked for of codes of derived events, of which all buckets have the same few."""
        return {}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """By hash of the lists and codes that were asked for, the hash of their members."""
        return {}

    def members_of(
        self,
        bucket: int,
        names: Sequence[str],
        derived: pl.Series | None = None,
        tree: ReleaseLayout | None = None,
    ) -> pl.DataFrame:
        """`code`, `list`, `node` of one bucket's codes, for some lists.

        Args:
            derived: codes of the bucket's derived events, where they are wanted too.
            tree: the release whose bucket is asked for; this one where not given. Of another one this one's metadata
                must say the same of its codes, as `hash_before` tells.
        """
        of_bucket = (tree or self.tree).codes_of(bucket)
        codes = pl.Series("code", read_columns(of_bucket, ["code"])["code"], dtype=pl.String)
        whole: pl.DataFrame | None = self.__dict__.get("members")
        if whole is None:
            found = resolve(names, self.lists, codes, self.edges)
        else:
            found = whole.filter(pl.col("list").is_in(list(names)) & pl.col("code").is_in(codes.implode()))
        further = self._members_among(derived, tuple(names)) if derived is not None else []
        return pl.concat([found, *further]).sort("code", "list", "node")

    def _members_among(self, derived: pl.Series, names: tuple[str, ...]) -> list[pl.DataFrame]:
        codes = derived.to_list()
        for code in codes:
            if (names, code) not in self._of_derived:
                alone = pl.Series("code", [code], dtype=pl.String)
                self._of_derived[names, code] = resolve(names, self.lists, alone, self.edges.clear())
        return [self._of_derived[names, code] for code in codes]

    def hash_of(self, bucket: int, names: Sequence[str]) -> str:
        """A hash of `members_of`, worked out of the whole release's."""
        return self._hash_of(self.tree.codes_of(bucket), names)

    def hash_before(self, former: ReleaseLayout | None, bucket: int, names: Sequence[str]) -> str | None:
        """As `hash_of`, of the codes that the bucket had in another release; None where nobody can tell."""
        try:
            return self._hash_of(former.codes_of(bucket), names) if former is not None else None
        except TimeloomError:
            return None

    def _hash_of(self, codes_of_bucket: Path, names: Sequence[str]) -> str:
        codes = pl.Series("code", read_columns(codes_of_bucket, ["code"])["code"], dtype=pl.String)
        # Most nights leave most buckets their codes: what both releases have is worked out once.
        asked = sha256_json([list(names), codes.to_list()])
        if asked not in self._hashes:
            held = pl.col("list").is_in(list(names)) & pl.col("code").is_in(codes.implode())
            found = self.members.filter(held).sort("code", "list", "node")
            self._hashes[asked] = sha256_json([column.to_list() for column in found])
        return self._hashes[asked]


@lru_cache(maxsize=2)
def _worked_out(params: str, tree: Path, _seen: str) -> LabelCodes:
    """As `params` gives it, with the members of the whole release.

    Args:
        _seen: what the file system says of the files that it is made of: others are read anew.
    """
    given = json.loads(params)
    lists = {name: CodeList.model_validate(entry) for name, entry in given["lists"].items()}
    made = LabelCodes(ReleaseLayout(tree), lists, tuple(map(Path, given["mappings"])), tuple(given["parents_of_none"]))
    _ = made.members
    return made
