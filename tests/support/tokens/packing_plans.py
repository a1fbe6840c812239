"""A tree with timelines that the stages pack by one plan, for the tests of packing and of its gate."""

from pathlib import Path
from typing import Any

import polars as pl

from pipelines import pack, subset
from pipelines.engine.context import StageReport
from pipelines.profiles.plans import PlanConfig, plans_of
from pipelines.profiles.rules import ProfileConfig
from tests.support.tokens.packing_cases import CONTEXT, HEADER, timelines, unpacked
from warehouse.layout import ReleaseLayout
from warehouse.manifest import ProfileEntry, TaskEntry
from warehouse.parquet import write_table
from warehouse.schemas import SCHEME_SUBJECTS, TIMELINES, VOCABULARY
from warehouse.shards.file import read_shard
from warehouse.vocabulary import vocabulary_hash

FRACTION = {"train": 4, "tuning": 1, "held_out": 1}


def assigned_to(subjects: list[int]) -> pl.DataFrame:
    """Four of six subjects are in train; their order is not the order of the ids."""
    names = [name for name, number in FRACTION.items() for _ in range(number)]
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "split": [names[place % len(names)] for place in range(len(subjects))],
            "order": [(place * 7919 % 1009) / 1009 for place in range(len(subjects))],
        },
        schema={"subject_id": pl.Int64, "split": pl.String, "order": pl.Float64},
    )


class Case:
    """Timelines in a tree, in two buckets and two groups, packed by one plan."""

    def __init__(self, base: Path, lengths: list[int], config: PlanConfig, seed: int = 0, without: int = 0) -> None:
        self.tree, self.tokens = ReleaseLayout(base), timelines(lengths, seed)
        self.config = plans_of(CONTEXT, {"p": config})["p"]
        subjects = self.tokens["subject_id"].unique().sort().to_list()
        self.splits = assigned_to(subjects[: len(subjects) - without])
        write_table(self.tree.scheme_subjects("s"), self.splits, SCHEME_SUBJECTS, "subjects")
        self.files = []
        for bucket in range(2):
            half = self.tokens.filter(pl.col("subject_id") % 2 == bucket)
            write_table(self.tree.timeline("mehrt", bucket), half, TIMELINES, "timelines")
            self.files.append(str(self.tree.timeline("mehrt", bucket).relative_to(base)))
        self.pack("", HEADER.vocabulary_size)

    def pack(self, hashed: str, size: int) -> None:
        """Runs the stages with a vocabulary of that hash and size."""
        settings = self.config.model_dump(mode="json")
        shared = {"plan": "p", "scheme": "s", "settings": settings}
        self.budgets = []
        if self.config.budgets:
            given = {**shared, "profile": "mehrt", "timelines": self.files}
            self.budgets = subset.run(given, self.tree.path).counts["budgets"]
        header = {"profile": "mehrt", "token_dtype": "uint16", "vocabulary_hash": hashed,
                  "vocabulary_size": size, "stores": {}}  # fmt: skip
        shared |= {"header": header, "groups": 2}
        self.results = [
            pack.run({**shared, "group": group, "timelines": [self.files[group]]}, self.tree.path) for group in range(2)
        ]

    def read(self, split: str, numbers: range = range(100)) -> Any:
        """The contents of the shards of a split with these numbers, by subject."""
        found: dict[int, Any] = {}
        for number in numbers:
            path = self.tree.shard("mehrt", split, number, "p")
            if path.exists():
                header, packs = read_shard(path)
                assert (header.plan, header.mode, header.group) == ("p", self.config.mode, number)
                assert packs.pack_id.tolist() == [(number << 32) + row for row in range(len(packs))]
                assert packs.segments_per_pack.max(initial=0) <= header.max_segments
                subjects = unpacked(packs, header, whole=self.config.mode != "last_n")
                assert not set(subjects) & set(found)
                found |= subjects
        return found

    def of_split(self, split: str) -> pl.DataFrame:
        return self.tokens.join(self.splits.filter(pl.col("split") == split), on="subject_id", how="semi",
                                maintain_order="left")  # fmt: skip

    def dropped(self, split: str) -> dict[str, int]:
        total: dict[str, int] = {}
        for result in self.results:
            for reason, number in result.counts["splits"][split]["dropped"].items():
                total[reason] = total.get(reason, 0) + number
        return total


def release_of(case: Case) -> dict[str, ProfileEntry]:
    """The profiles of a manifest for the case; it also writes the case's vocabulary."""
    size = 2000  # the ids of a thousand tokens
    vocabulary = pl.DataFrame(
        {"token_id": range(size), "token": [f"T{number}" for number in range(size)]}
    ).with_columns(pl.lit("structured").alias("type"), pl.lit(1).alias("train_count"))
    write_table(case.tree.vocabulary("mehrt"), vocabulary, VOCABULARY, "vocabulary")
    case.pack(vocabulary_hash(vocabulary), size)
    profile = ProfileConfig(context=CONTEXT, plans={"p": case.config})
    packed, subsets = StageReport("pack"), StageReport("subset")
    for group, result in enumerate(case.results):
        for plan in ("p", "default"):
            packed.entries[f"mehrt.{plan}-{group:04d}"] = TaskEntry(fingerprint="", files={}, counts=result.counts)
    subsets.entries["mehrt.p"] = TaskEntry(fingerprint="", files={}, counts={"budgets": case.budgets})
    plans = pack.plan_entries("mehrt", profile, 2, packed, subsets)
    return {
        "mehrt": ProfileEntry(
            vocabulary_hash=vocabulary_hash(vocabulary),
            vocabulary_size=size,
            scheme="s",
            rules_hash="",
            plans={"p": plans["p"]},
        )
    }
