"""The list of areas: the gate judges them, the report shows them and `verify` checks them in this order."""

from validation.areas import (
    contents,
    encoders,
    events,
    graphs,
    items,
    labels,
    ledger,
    probes,
    shards,
    splits,
    subjects,
    tokens,
    triplets,
    values,
)
from validation.areas.area import Area

# What a run says of a refusal is the first that failed: causes stand before what follows from them.
AREAS: tuple[Area, ...] = (
    contents.AREA,
    subjects.AREA,
    tokens.AREA,
    events.AREA,
    ledger.AREA,
    values.AREA,
    items.AREA,
    encoders.AREA,
    splits.AREA,
    shards.AREA,
    labels.AREA,
    probes.AREA,
    graphs.AREA,
    triplets.AREA,
)
