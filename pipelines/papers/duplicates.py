"""duplicates: digests of every bucket → which items are copies of one another, and which are set aside.

Schema in: DIGESTS, and a scheme's splits. Schema out: COPIES. Copies that lie in two splits would let a model be tested
on what it was trained on: those outside the split that keeps its own are set aside. Pictures that only look alike are
told, and stay unless the configuration says otherwise: films of two patients may look alike.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from extractors.extractor import imported
from extractors.items import UnitRequest
from extractors.modalities import EXTRACTORS
from extractors.note.copies import BANDS, ROWS, U32, candidates_of, groups_of
from pipelines.clinifuse.perceptual import near_pairs
from pipelines.clinifuse.settings import DuplicatesConfig
from pipelines.engine.context import counts_of
from pipelines.engine.task import Result, Task, make_task
from pipelines.night import Night, Stage
from pipelines.papers.digests import compared, raw_params
from pipelines.stores import RawParams, raw_items
from warehouse.arrays import I64
from warehouse.files import sha256_file
from warehouse.layout import ReleaseLayout
from warehouse.manifest import DuplicatesEntry
from warehouse.parquet import read_frame, write_table
from warehouse.schemas import COPIES, SPLITS

EXACT, NEAR = "exact", "near"


class Counts(TypedDict):
    """What the task tells, by modality and method."""

    found: dict[str, dict[str, dict[str, int]]]


class Params(RawParams):
    """What the task is given: paths and settings."""

    scheme: str
    settings: dict[str, Any]
    digests: list[str]


def scheme_of(night: Night, scheme: str | None) -> str:
    """The scheme that is meant: CliniFuse's where the configuration has it, else the first."""
    splits = night.config.splits
    return scheme or ("clinifuse" if "clinifuse" in splits else night.config.primary_scheme)


def plan(night: Night) -> list[Task]:
    """One task over every bucket's digests."""
    config = night.config.duplicates
    if config is None:
        return []
    digests, folder = night.report("digests").hashes(), night.layout.digests
    night.report("split")
    scheme = scheme_of(night, config.scheme)
    return [
        make_task(
            STAGE,
            "all",
            night.context.staging,
            settings=[config.model_dump(mode="json"), scheme],
            inputs=[sorted(digests.values()), sha256_file(night.tree.scheme_subjects(scheme))],
            params=Params(
                **raw_params(night),
                scheme=scheme,
                settings=config.model_dump(mode="json"),
                digests=[str(folder / path) for path in sorted(digests)],
            ),
        )
    ]


def run(params: Params, base: Path) -> Result:
    """Finds copies, and sets aside those of other splits."""
    tree, config = ReleaseLayout(base), DuplicatesConfig.model_validate(params["settings"])
    splits = read_frame(tree.scheme_subjects(params["scheme"])).select("subject_id", "split")
    digests = pl.concat(map(read_frame, map(Path, params["digests"]))).join(splits, on="subject_id", how="left")
    made, counts = [], Counts(found={})
    for modality in compared(config):
        items = digests.filter(pl.col("modality") == modality).sort("item_key")
        counts["found"][modality] = {}
        for method, groups, left_out in _methods(params, modality, items, config):
            found = copies_of(items, groups, method, config)
            counts["found"][modality][method] = {"compared": len(items) - left_out, "left_out": left_out} | figures_of(
                found
            )
            made.append(found)
    empty = pl.from_arrow(COPIES.empty_table())
    assert isinstance(empty, pl.DataFrame)
    copies = pl.concat([empty, *(found.select(empty.columns) for found in made)], how="vertical_relaxed")
    rows = write_table(tree.copies, copies.sort("modality", "method", "group", "item_key"), COPIES, "copies")
    return Result({str(tree.copies.relative_to(base)): rows}, counts)


def _methods(
    params: Params, modality: str, items: pl.DataFrame, config: DuplicatesConfig
) -> Iterator[tuple[str, pl.Series, int]]:
    """By method, of each item (n,) a number that its copies have too, null where it is not compared; and how many are
    not."""
    exact = items["content"].rank("dense").cast(pl.Int64)
    yield EXACT, exact, exact.null_count()
    if EXTRACTORS[modality].tokens:
        places = np.flatnonzero(items["words"].is_not_null().to_numpy())
        near = near_texts(items["words"].drop_nulls(), _tokens_of(params, modality, items[places]), config.near)
    else:
        places = np.flatnonzero(items["look"].is_not_null().to_numpy())
        near = near_pictures(items["look"].drop_nulls().to_numpy(), config.near_bits)
    numbers = np.full(len(items), -1, np.int64)
    numbers[places] = near
    yield NEAR, pl.Series(numbers).replace(-1, None), len(items) - len(places)


def near_pictures(looks: Any, bits: int) -> I64:
    """Of each hash (n,) a number that those near it have too, and those near them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct, place = np.unique(looks, return_inverse=True)
    pairs = near_pairs(distinct, bits)
    ties = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(len(distinct),) * 2)
    numbers: I64 = connected_components(ties, directed=False)[1].astype(np.int64)[place]
    return numbers


def near_texts(words: pl.Series, tokens_of: Callable[[I64], Callable[[int], U32]], near: float) -> I64:
    """Of each text (n,) a number that those near it have too, by the Jaccard of their shingles, and those near them.

    Args:
        words: signatures.
        tokens_of: gives, for some places, what tells the tokens of one of them.
    """
    signatures: U32 = words.explode().to_numpy().reshape(len(words), BANDS * ROWS)
    wanted = np.unique(np.array(candidates_of(signatures), np.int64))
    return groups_of(signatures, tokens_of(wanted), near)


def _tokens_of(params: Params, modality: str, items: pl.DataFrame) -> Callable[[I64], Callable[[int], U32]]:
    tokens = imported(EXTRACTORS[modality].tokens)

    def of_some(places: I64) -> Callable[[int], U32]:
        keys = items["item_key"]
        raw = raw_items(params, modality, dict.fromkeys(keys.gather(places).to_list(), 0))

        def of_one(place: int) -> U32:
            item = raw[keys[place]]
            found: U32 = tokens(UnitRequest(item.root, item.paths, item.geometry))
            return found

        return of_one

    return of_some


def copies_of(items: pl.DataFrame, groups: pl.Series, method: str, config: DuplicatesConfig) -> pl.DataFrame:
    """A row for each item that has a copy; columns of COPIES.

    Args:
        items: subject_id, item_key, modality, split (null for a subject without), look.
        groups: of each item (n,) the number of its group; null where it was not compared.
    """
    order = SPLITS if config.keeps == "train" else SPLITS[::-1]
    rank = pl.col("split").replace_strict(dict(zip(order, range(len(order)), strict=True)), return_dtype=pl.Int8)
    are_pictures = bool(items["modality"].is_in(config.images).any())
    only_told = method == NEAR and are_pictures and config.look_alikes == "told"
    together = (
        items.with_columns(groups.alias("_group"), rank.alias("_rank"))
        .drop_nulls("_group")
        .with_columns(
            pl.len().over("_group").cast(pl.Int64).alias("members"),
            pl.col("item_key").min().over("_group").alias("group"),
            (pl.col("split").drop_nulls().n_unique().over("_group") > 1).alias("across"),
            (pl.col("subject_id").n_unique().over("_group") > 1).alias("of_several"),
        )
        .filter(pl.col("members") > 1)
    )
    other = (pl.col("_rank") > pl.col("_rank").min().over("_group")).fill_null(False)
    return together.with_columns(
        pl.lit(method).alias("method"), (pl.lit(not only_told) & pl.col("across") & other).alias("set_aside")
    )


def figures_of(copies: pl.DataFrame) -> dict[str, int]:
    """What is said of copies found by one method."""
    groups = copies.unique("group")
    return {
        "groups": len(groups),
        "copies": len(copies),
        "of_several_subjects": int(groups["of_several"].sum()),
        "across_splits": int(groups["across"].sum()),
        "set_aside": int(copies["set_aside"].sum()),
    }


def declare(night: Night) -> dict[str, Any]:
    """How many copies there are."""
    config = night.config.duplicates
    if config is None:
        return {}
    (entry,) = night.report(STAGE.name).entries.values()
    return {
        "duplicates": DuplicatesEntry(
            rules=config.model_dump(mode="json"),
            scheme=scheme_of(night, config.scheme),
            found=counts_of(entry, Counts)["found"],
        )
    }


STAGE = Stage(
    "duplicates",
    version=1,
    run="pipelines.papers.duplicates:run",
    after=("index", "split", "digests"),
    keys=("duplicates",),
    plan=plan,
    declare=declare,
    settings_are=("duplicates", "scheme"),
    inputs_are=("digests", "splits"),
)
