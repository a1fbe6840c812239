"""CT found file by file: a file's slice headers, or its volume, as JSON, and the items of what was read at different
times."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import numpy as np

from extractors.ct.header import Found, SliceHeader, examine
from extractors.ct.image_type import Derivation
from extractors.ct.index import beside as beside_each_other
from extractors.ct.index import items_of, rules_of, series_of
from extractors.ct.nifti import NiftiVolume
from extractors.ct.settings import CtSettings
from extractors.dicom.time import Moment
from extractors.extractor import Examined, Finding
from extractors.items import FoundItem
from extractors.trees import Entry

VOLUME = "volume"  # the key of a finding that is no slice header


def examine_file(settings: CtSettings, entry: Entry) -> Examined:
    """What one file holds: slices or a volume, each with its verdict, or what is neither."""
    found = examine(settings.path, [entry], settings.timezone)
    return Examined([_finding(each) for each in found.slices], found.foreign)


def beside(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a folder, in their order. Slices that were cut short before their series UID know the only series
    beside them, and volumes how many others look like them."""
    volumes = [place for place, finding in enumerate(findings) if VOLUME in finding.value]
    cut = any(
        finding.value.get("verdict", "").startswith("failed_") and not finding.value.get("series")
        for finding in findings
    )
    if not cut and len(volumes) < 2:
        return list(findings)
    slices = [place for place, finding in enumerate(findings) if VOLUME not in finding.value]
    found = beside_each_other([_found(findings[place]) for place in (*slices, *volumes)])
    with_others = dict(zip((*slices, *volumes), map(_finding, found), strict=True))
    return [with_others[place] for place in range(len(findings))]


def items(settings: CtSettings, findings: Iterable[Finding]) -> list[FoundItem]:
    """The items of whole series and studies."""
    return items_of(map(_found, findings), rules_of(settings))


def _finding(found: Found) -> Finding:
    if isinstance(found, NiftiVolume):
        return Finding({VOLUME: vars(found)}, series_of(found))
    return Finding(header_to_json(found), series_of(found), found.study)


def _found(finding: Finding) -> Found:
    if VOLUME in finding.value:
        return NiftiVolume(**finding.value[VOLUME])
    return header_from_json(finding.value)


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
