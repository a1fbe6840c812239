"""Made-up populations for splits, and the ledger of their first night."""

import numpy as np
import polars as pl

from pipelines.split import SPLITS, assign
from pipelines.splitting.ledger import Freeze, no_ledger
from pipelines.splitting.strata import quartiles
from warehouse.hashing import splitmix64
from warehouse.modalities import INDEXED

SCHEMES = {
    "mehrt": (0.85, 0.05, 0.10),
    "multimodal": (0.8, 0.1, 0.1),
    "clinifuse": (0.95, 0.025, 0.025),
    "thirds": (1 / 3, 1 / 3, 1 / 3),
    "no tuning": (0.9, 0.0, 0.1),
    "train alone": (1.0, 0.0, 0.0),
    "no held_out": (0.7, 0.3, 0.0),
}
Fractions = tuple[float, float, float]


def population(number: int, seed: int = 0, first: int = 1) -> pl.DataFrame:
    """Subjects with lognormal lengths, intervals and images in 15 %, as the simulated hospital has."""
    rng = np.random.default_rng(seed)
    image = rng.random(number)
    events = rng.lognormal(5, 1.2, number).astype(np.int64) + 1
    others = {name: np.zeros(number, np.int64) for name in INDEXED if name not in ("ct", "wsi")}
    return pl.DataFrame(
        {
            "subject_id": splitmix64(np.arange(first, first + number)).view(np.int64) >> 1,
            "events": events,
            "static_events": np.ones(number, dtype=np.int64),
            "ct": (image < 0.12).astype(np.int64),
            "wsi": ((image > 0.06) & (image < 0.15)).astype(np.int64),
            **others,
            "mean_interval_days": rng.lognormal(2, 1, number),
        }
    ).with_columns(pl.when(pl.col("events") > 2).then("mean_interval_days").alias("mean_interval_days"))


def frozen(subjects: pl.DataFrame, fractions: Fractions = SCHEMES["mehrt"], scheme: str = "mehrt") -> Freeze:
    return Freeze(scheme, dict(zip(SPLITS, fractions, strict=True)), quartiles(subjects))


def freeze_all(subjects: pl.DataFrame, fractions: Fractions = SCHEMES["mehrt"]) -> tuple[pl.DataFrame, Freeze]:
    """Ledger and freeze of a first night."""
    ledger, aside, freeze = assign(subjects, no_ledger(), frozen(subjects, fractions))
    assert aside.is_empty()
    return ledger, freeze
