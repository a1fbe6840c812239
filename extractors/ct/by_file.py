"""CT found file by file: a file's slice headers as JSON, and the items of headers that were read at different times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np

from extractors.ct.header import SliceHeader, examine
from extractors.ct.image_type import Derivation
from extractors.ct.index import adopted, items_of, rules_of, series_of
from extractors.ct.settings import CtSettings
from extractors.dicom.time import Moment
from extractors.extractor import Examined, Finding
from extractors.items import FoundItem
from extractors.trees import Entry


def examine_file(settings: CtSettings, entry: Entry) -> Examined:
    """What one file holds: slices, each with its verdict, or what is no DICOM."""
    found = examine(settings.path, [entry], settings.timezone)
    return Examined([_finding(header) for header in found.slices], found.foreign)


def beside(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a folder; slices that were cut short before their series UID know the only series beside them."""
    if not any(
        found.value.get("verdict", "").startswith("failed_") and not found.value.get("series") for found in findings
    ):
        return list(findings)
    return [_finding(header) for header in adopted([header_from_json(found.value) for found in findings])]


def items(settings: CtSettings, findings: Iterable[Finding]) -> list[FoundItem]:
    """The items of whole series and studies."""
    return items_of((header_from_json(found.value) for found in findings), rules_of(settings))


def _finding(header: SliceHeader) -> Finding:
    return Finding(header_to_json(header), series_of(header), header.study)


def header_to_json(header: SliceHeader) -> dict[str, Any]:
    """What of a header is not as in one of which nothing is known, as JSON."""
    known = {}
    for name, default in _DEFAULTS:
        value = getattr(header, name)
        if value is not default and (isinstance(value, np.ndarray) or value != default):
            known[name] = _plain(value)
    return known


def header_from_json(value: dict[str, Any]) -> SliceHeader:
    """A header that `header_to_json` gave."""
    return SliceHeader(**{name: _READ.get(name, _as_is)(part) for name, part in value.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Moment):
        return [value.rank, value.time.isoformat(), value.source, value.precision, value.utc_offset_minutes]
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _moments(parts: list[list[Any]]) -> tuple[Moment, ...]:
    return tuple(Moment(rank, datetime.fromisoformat(time), *others) for rank, time, *others in parts)


def _as_is(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_DEFAULTS = [(field.name, field.default) for field in fields(SliceHeader)]
_READ: dict[str, Callable[[Any], Any]] = {
    "moments": _moments,
    "plane": np.array,
    "position": np.array,
    "derivation": Derivation,
}
