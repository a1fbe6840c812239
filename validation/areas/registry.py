"""The list of areas: the gate judges them, the report shows them and `verify` checks them in this order."""

from validation.areas import events, items, ledger, shards, splits
from validation.areas.area import Area

AREAS: tuple[Area, ...] = (events.AREA, ledger.AREA, items.AREA, splits.AREA, shards.AREA)
