"""Strata of subjects, and the line in which a stratum's subjects are dealt.

The line runs through the stratum by length and, turning back and forth, by interval, so that each split gets every part
of the distribution in its quota (systematic sampling). A block of the line is turned like a dial from a start that
hangs on a hash, and hashes break ties: a length or an interval does not tell which split a subject is in.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from warehouse.arrays import I64
from warehouse.hashing import salt_of, splitmix64

QUANTILES = (0.25, 0.5, 0.75)
BLOCK = 20  # subjects of the line that are turned together
NO_MODALITY = "none"
STATISTICS = ("subject_id", "events", "static_events", "mean_interval_days")
STRATIFIED = ("events", "mean_interval_days")


def modalities_of(subjects: pl.DataFrame) -> list[str]:
    """The modalities that SUBJECTS counts images of: every column that is no statistic."""
    return sorted(set(subjects.columns) - set(STATISTICS))


def quartiles(subjects: pl.DataFrame) -> dict[str, list[float]]:
    """The edges between strata: quartiles of length and of mean interval, fixed at the first freeze."""
    return {
        column: [float(subjects[column].fill_null(0).quantile(q, "linear") or 0.0) for q in QUANTILES]
        for column in STRATIFIED
    }


def strata(subjects: pl.DataFrame, edges: dict[str, list[float]]) -> pl.Series:
    """The stratum of each subject, such as `ct+wsi|3|0`: modalities it has, quarter of length, quarter of interval.

    An enumeration of the strata that occur, in the order of their names.
    """
    modalities = modalities_of(subjects)
    has = [(pl.col(name) > 0).fill_null(False).cast(pl.Int64) * (1 << bit) for bit, name in enumerate(modalities)]
    length, interval = (
        pl.sum_horizontal((pl.col(column).fill_null(0) > edge).cast(pl.Int64) for edge in edges[column])
        for column in STRATIFIED
    )
    of_set = pl.sum_horizontal([pl.lit(0, pl.Int64), *has])
    coded = subjects.select((of_set * 16 + length * 4 + interval).alias("code"))["code"].to_numpy()
    # Few kinds of subjects: each is named once.
    kinds = np.flatnonzero(np.bincount(coded)).tolist()
    named = {kind: _name(modalities, kind >> 4, kind >> 2 & 3, kind & 3) for kind in kinds}
    names = sorted(named.values())
    places = np.zeros(max(kinds, default=0) + 1, np.uint32)
    places[kinds] = [names.index(named[kind]) for kind in kinds]
    return pl.Series("stratum", places[coded]).cast(pl.Enum(names))


def _name(modalities: list[str], of_set: int, length: int, interval: int) -> str:
    present = [name for bit, name in enumerate(modalities) if of_set >> bit & 1]
    return f"{'+'.join(present) or NO_MODALITY}|{length}|{interval}"


def lined_up(subjects: pl.DataFrame, stratum: pl.Series, salt: int) -> pl.DataFrame:
    """`subject_id`, `stratum` and `place` in the stratum's line, from 0; by stratum and place.

    The result does not depend on the order of the rows.

    Args:
        subjects: columns of SUBJECTS, a subject once.
        stratum: (n,) of each, an enumeration.
        salt: of the hashes, another one in each scheme.
    """
    names = stratum.cat.get_categories()
    hashed = splitmix64(subjects["subject_id"].to_numpy(), salt)  # one to one: no two subjects share it
    by_hash = np.argsort(hashed)
    code = stratum.to_physical().to_numpy()[by_hash].astype(np.int64)
    length = subjects["events"].fill_null(0).to_numpy()[by_hash].clip(0, 2**32 - 1)
    interval = subjects["mean_interval_days"].fill_null(0.0).to_numpy()[by_hash]
    size = np.bincount(code, minlength=len(names))
    start = np.cumsum(size) - size

    # A stratum of n subjects has √(n / BLOCK) bins of length, and as many blocks of intervals in each.
    order = _sorted(code, length)
    rank = np.arange(len(code)) - start[code[order]]
    bins = np.ceil(np.sqrt(size / BLOCK)).astype(np.int64)
    first_bin = np.cumsum(bins) - bins
    stratum_of = code[order]
    part = rank * bins[stratum_of] // size[stratum_of]
    # The bits of a positive float stand in the order of the floats.
    bits = interval[order].clip(0).astype(np.float32).view(np.uint32).astype(np.int64)
    turned = np.where(part % 2 == 1, 2**32 - 1 - bits, bits)
    order = order[_sorted(first_bin[stratum_of] + part, turned)]

    # A block's subjects stand by length, and the block is turned: in a run of blocks, each of its places meets every
    # part of the lengths.
    block = rank // BLOCK
    blocks = -(-size // BLOCK)
    first_block = np.cumsum(blocks) - blocks
    order = order[_sorted(first_block[code[order]] + block, length[order])]
    stratum_of = code[order]
    dial = splitmix64(np.array([salt_of(name) >> 1 for name in names], np.int64), salt).astype(np.uint32)[stratum_of]
    held = np.minimum(BLOCK, size[stratum_of] - block * BLOCK)
    turn = (spread(block) ^ dial).astype(np.int64) * held >> 32
    place = block * BLOCK + (rank % BLOCK + turn) % held
    lined = np.empty_like(order)
    lined[start[stratum_of] + place] = by_hash[order]
    return pl.DataFrame(
        {
            "subject_id": subjects["subject_id"].to_numpy()[lined],
            "stratum": pl.Series(stratum_of.astype(np.uint32)).cast(stratum.dtype),
            "place": rank,
        }
    )


def _sorted(first: I64, second: I64) -> I64:
    """The stable order (n,) by two keys, the second below 2**32."""
    return np.argsort(first << 32 | second, kind="stable")


def spread(places: I64) -> npt.NDArray[np.uint32]:
    """Numbers (n,) below 2**32, their bits in reverse: places in a row are spread evenly (van der Corput, 1935)."""
    bits = places.astype(np.uint32)
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        kept, step = np.uint32(mask), np.uint32(shift)
        bits = (bits >> step & kept) | ((bits & kept) << step)
    return bits >> np.uint32(16) | bits << np.uint32(16)
