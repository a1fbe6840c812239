"""Who gave an id: two hospitals may give one id to two patients (IssuerOfPatientID, HL7's assigning authority)."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from extractors.items import FoundItem

SEPARATOR = "^^^"  # as in HL7's CX: the id, two components that are left out, the authority


def spelt(issuer: str) -> str:
    """An issuer's name in one spelling."""
    return " ".join(issuer.upper().split())


def with_issuers(found: Iterable[FoundItem], issuers: Collection[str]) -> list[FoundItem]:
    """Items of which those whose id is another issuer's than the tables' have it behind their id: `504^^^CLINIC`.

    Args:
        issuers: whose ids the tables have. Where none is named, an id that one issuer gave is the tables', and one that
            several gave is nobody's but their own.
    """
    items = list(found)
    known = {spelt(issuer) for issuer in issuers}
    foreign = _ambiguous(items) if not known else None
    return [
        replace(item, raw_subject=f"{item.raw_subject}{SEPARATOR}{item.issuer}")
        if item.issuer
        and item.raw_subject is not None
        and (item.raw_subject in foreign if foreign is not None else item.issuer not in known)
        else item
        for item in items
    ]


def _ambiguous(items: Sequence[FoundItem]) -> set[str]:
    """Ids that several issuers gave."""
    issuers: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.raw_subject is not None and item.issuer:
            issuers[item.raw_subject].add(item.issuer)
    return {subject for subject, names in issuers.items() if len(names) > 1}
