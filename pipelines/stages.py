"""THE list of stages, in the order in which a night runs them. A stage is one file and one line in this list.

Runs, `timeloom meds`, the versions in a manifest, the steps of the scheduler and docs/stages.md are made from it.
"""

from pipelines import (
    align,
    count,
    embed,
    encode,
    group,
    index,
    lags,
    meds,
    metadata,
    pack,
    scan,
    split,
    subset,
    texts,
    tokenize,
    vectors,
    vocabulary,
)
from pipelines.night import Stage
from pipelines.papers import derive, digests, duplicates, graphs, labels, triplets

STAGES: tuple[Stage, ...] = (
    meds.STAGE,
    scan.STAGE,
    group.STAGE,
    index.STAGE,
    vectors.STAGE,
    encode.STAGE,
    embed.STAGE,
    texts.STAGE,
    lags.STAGE,
    align.STAGE,
    metadata.STAGE,
    split.STAGE,
    derive.STAGE,
    labels.STAGE,
    count.STAGE,
    vocabulary.STAGE,
    tokenize.STAGE,
    subset.STAGE,
    pack.STAGE,
    digests.STAGE,
    duplicates.STAGE,
    triplets.STAGE,
    graphs.STAGE,
)
