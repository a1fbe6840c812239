"""What is measured of splits: whether they are those of the ledger, and how alike they are. Gives aggregates only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from pipelines.splitting.ledger import is_whole, read_freeze
from validation.measure.reading import collect, gather, scan
from warehouse.arrays import F64
from warehouse.errors import TimeloomError
from warehouse.layout import ReleaseLayout
from warehouse.schemas import SCHEME_SUBJECTS, SPLIT_LEDGER, SPLIT_QUARANTINE

FEWEST = 10  # subjects in each of two splits, below which they are not compared
LIKE_PAPER, PAPER_SUBJECTS, PAPER_Z = 0.02, 4000, 2.0  # how alike the splits of the MEHRT paper are
# Chance does not reach these in a lifetime of nights. No subject can move, so a release that is refused stays refused.
GROSS_Z = 5.0
GROSS_KS = 2.69  # coefficient of the two-sample Kolmogorov-Smirnov statistic at alpha = 1e-6
LEAST_KS, LEAST_POINTS = 0.01, 0.1  # smaller differences do not matter, however many subjects show them


def read_ledger(tree: ReleaseLayout, scheme: str) -> pl.DataFrame:
    """The scheme's ledger: everyone it ever knew."""
    return gather([tree.split_ledger(scheme)], SPLIT_LEDGER, SPLIT_LEDGER.names)


def read_assignments(tree: ReleaseLayout, scheme: str) -> pl.DataFrame:
    """`subject_id`, `split` of the release's subjects, without those that are set aside."""
    return gather([tree.scheme_subjects(scheme)], SCHEME_SUBJECTS, ["subject_id", "split"])


def read_set_aside(tree: ReleaseLayout, scheme: str) -> pl.DataFrame:
    """`subject_id`, `reason` of the release's subjects that have no split, because a merge spans two."""
    return gather([tree.split_quarantine(scheme)], SPLIT_QUARANTINE, SPLIT_QUARANTINE.names)


def disagreements(
    tree: ReleaseLayout,
    scheme: str,
    subjects: pl.DataFrame,
    *,
    primary: bool = True,
    before: ReleaseLayout | None = None,
) -> dict[str, int]:
    """Counts of subjects of the data without a split, in two, or published with another than the ledger's; of ledgers
    that are not what runs have written; of subjects with another split than in the release before.

    Args:
        subjects: `subject_id`, at least once for each subject of the data.
        primary: metadata/subject_splits.parquet has this scheme's splits.
    """
    present = subjects.select("subject_id").unique()
    ledger, aside = read_ledger(tree, scheme), read_set_aside(tree, scheme)
    assigned = read_assignments(tree, scheme).join(present, on="subject_id", how="semi")
    recorded = ledger.select("subject_id", "split").join(present, on="subject_id", how="semi")
    twice = (
        pl.concat([recorded, assigned]).unique().group_by("subject_id").len().filter(pl.col("len") > 1)
        if recorded.select("subject_id").is_duplicated().any() or assigned.select("subject_id").is_duplicated().any()
        else recorded.clear()
    )
    differing = [assigned.join(recorded, on=["subject_id", "split"], how="anti")]
    differing.append(assigned.join(aside, on="subject_id", how="semi"))
    if primary and tree.subject_splits.is_file():
        meds = collect(scan(tree.subject_splits).select("subject_id", "split"), tree.subject_splits)
        meds = meds.join(present, on="subject_id", how="semi")
        differing += [
            meds.join(assigned, on=meds.columns, how="anti"),
            assigned.join(meds, on=meds.columns, how="anti"),
        ]
    elif primary:
        differing.append(assigned)
    return {
        "subjects_without_split": present.join(assigned, on="subject_id", how="anti")
        .join(aside, on="subject_id", how="anti")
        .height,
        "subjects_in_two_splits": twice.height,
        # a subject in two splits is counted above, not a second time
        "published_differently": pl.concat(differing).join(twice, on="subject_id", how="anti")["subject_id"].n_unique(),
        "ledgers_changed": int(not _is_whole(tree, scheme, ledger)),
        "subjects_moved": _moved(ledger, before, scheme),
    }


def _is_whole(tree: ReleaseLayout, scheme: str, ledger: pl.DataFrame) -> bool:
    try:
        return is_whole(ledger, read_freeze(tree.split_freeze(scheme)))
    except TimeloomError:
        return False


def _moved(ledger: pl.DataFrame, before: ReleaseLayout | None, scheme: str) -> int:
    """Subjects of the ledger before that have another split, or none, in this one."""
    if before is None:
        return 0
    earlier = read_ledger(before, scheme).select("subject_id", "split")
    return earlier.join(ledger.select("subject_id", "split"), on=["subject_id", "split"], how="anti").height


def ks_statistic(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """The two-sample Kolmogorov-Smirnov distance of two samples (n,), (m,); 0 where one is empty."""
    if not len(first) or not len(second):
        return 0.0
    first, second = np.sort(first), np.sort(second)
    # Both distributions change at values of the samples alone.
    grid = np.concatenate([first, second])
    below = [np.searchsorted(sample, grid, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def smd(first: F64, second: F64) -> float:
    """The standardised mean difference of two samples (n,), (m,): of `second` against `first`, over the root of the
    mean of their variances; 0 where nothing varies or a sample has less than two values."""
    if len(first) < 2 or len(second) < 2:
        return 0.0
    spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    difference = second.mean() - first.mean()
    return float(difference / spread) if spread > 1e-12 * max(1.0, abs(float(first.mean()))) else 0.0


def measure_splits(
    subjects: pl.DataFrame,
    scheme: str,
    fractions: Mapping[str, float | None],
    disagreement: Mapping[str, int],
    set_aside: int = 0,
) -> pl.DataFrame:
    """One row per split of a scheme, in its order; compared with the first one, which is train.

    Columns: scheme, split, subjects, share, target, share_z (deviation in standard errors, null without a target);
    length_ks, length_smd (of the logarithm), interval_smd, modality_points (the largest difference of a modality set's
    share); their `_ratio` to what is gross, and match_ratio, the larger |SMD| to what is like the paper, null
    where a split has fewer than FEWEST subjects; set_aside and `disagreement` on every row.

    Args:
        subjects: `split`, `set`, `tokens`, `interval`.
        set_aside: subjects that have no split in this scheme.
    """
    total = max(subjects.filter(pl.col("split").is_not_null()).height, 1)
    parts = {name: subjects.filter(pl.col("split") == name) for name in fractions}
    train = next(iter(parts.values()))
    rows = []
    for name, part in parts.items():
        share, target = part.height / total, fractions[name]
        rows.append(
            {
                "scheme": scheme,
                "split": name,
                "subjects": part.height,
                "share": share,
                "target": target,
                "share_z": _share_deviation(share, target, total),
                **_compared(train, part),
                "set_aside": set_aside,
                **disagreement,
            }
        )
    ratios = ("length_ks_ratio", "length_smd_ratio", "interval_smd_ratio", "modality_ratio", "match_ratio")
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("target", "share_z", *ratios), pl.Float64))


def _compared(train: pl.DataFrame, part: pl.DataFrame) -> dict[str, float | None]:
    lengths, intervals = (
        [frame[column].drop_nulls().to_numpy().astype(np.float64) for frame in (train, part)]
        for column in ("tokens", "interval")
    )
    logs = [np.log(values.clip(1)) for values in lengths]
    differences: dict[str, float | None] = {
        "length_ks": ks_statistic(lengths[0], lengths[1]),
        "length_smd": smd(logs[0], logs[1]),
        "interval_smd": smd(intervals[0], intervals[1]),
    }
    points, modality_ratio = _modalities(train, part)
    bounds = {
        "length_ks": max(LEAST_KS, GROSS_KS * _standard_error(lengths)),
        "length_smd": max(LIKE_PAPER, GROSS_Z * _standard_error(logs)),
        "interval_smd": max(LIKE_PAPER, GROSS_Z * _standard_error(intervals)),
    }
    match = max(_match("length_smd", differences, logs), _match("interval_smd", differences, intervals))
    ratios: dict[str, float | None] = {f"{name}_ratio": abs(differences[name] or 0) / bounds[name] for name in bounds}
    ratios |= {"modality_ratio": modality_ratio, "match_ratio": match}
    judged = min(train.height, part.height) >= FEWEST
    return differences | {"modality_points": points} | (ratios if judged else dict.fromkeys(ratios))


def _standard_error(samples: list[F64]) -> float:
    """Of a standardised difference of two samples; infinite where one is too small to be compared."""
    sizes = [len(sample) for sample in samples]
    return float(np.sqrt(1 / sizes[0] + 1 / sizes[1])) if min(sizes) >= FEWEST else float("inf")


def _match(name: str, differences: Mapping[str, float | None], samples: list[F64]) -> float:
    """|SMD| over 0.02 in large splits, over two standard errors in small ones."""
    large = min(len(sample) for sample in samples) >= PAPER_SUBJECTS
    return abs(differences[name] or 0) / (LIKE_PAPER if large else PAPER_Z * _standard_error(samples))


def _share_deviation(share: float, target: float | None, total: int) -> float | None:
    """|z| of a share of `total` subjects against its target; None without a target."""
    if target is None:
        return None
    return abs(share - target) / max(float(np.sqrt(target * (1 - target) / total)), 1e-9)


def _modalities(train: pl.DataFrame, part: pl.DataFrame) -> tuple[float, float]:
    """The largest difference of a modality set's share, in points, and the largest over what is gross for its set;
    only sets of which both splits should have FEWEST are judged."""
    if not train.height or not part.height:
        return 0.0, 0.0
    counts = [dict(frame["set"].value_counts().iter_rows()) for frame in (train, part)]
    points, worst = 0.0, 0.0
    for kind in sorted({*counts[0], *counts[1]}):
        first, second = (count.get(kind, 0) for count in counts)
        difference = abs(100 * (first / train.height - second / part.height))
        points = max(points, difference)
        pooled = (first + second) / (train.height + part.height)
        if pooled * min(train.height, part.height) >= FEWEST:
            error = 100 * float(np.sqrt(pooled * (1 - pooled) * (1 / train.height + 1 / part.height)))
            worst = max(worst, difference / max(LEAST_POINTS, GROSS_Z * error))
    return points, worst
