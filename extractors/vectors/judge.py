"""Vectors file by file: what a file holds of which item, with a verdict, and the items of a whole tree."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from extractors.extractor import Examined, Finding
from extractors.items import BESIDE_FILES, OK, FoundItem, VerdictError, file_fingerprint, identity_of, nobodys_item
from extractors.trees import Entry
from extractors.vectors.files import Array, Held, VectorFile, blocks_of, open_vectors, places_of, units_of
from extractors.vectors.settings import ENDINGS, ImportedConfig, VectorSettings, key_of_file
from warehouse.errors import TimeloomError
from warehouse.files import sha256_file

LOCK = ".lock"  # beside a file that another program still writes
UNFINISHED, TWICE = "failed_unfinished", "failed_duplicate_vectors"
KEY = "*"  # of FoundItem.names: what vectors are called; what an item is called that is no raw file


def examine(settings: VectorSettings, entry: Entry) -> Examined:
    """What one file holds: a finding for each item; a lock tells that the file beside it is not finished."""
    imported = settings.imported
    if entry.kind != "file":
        return Examined([_finding(entry.path, entry.path, BESIDE_FILES[entry.kind])], [])
    name = entry.path or settings.path.name
    if name.lower().endswith(LOCK):
        key = key_of_file(name[: -len(LOCK)], imported)
        return Examined([_finding(key, entry.path, UNFINISHED, lock=True)], [])
    path = settings.path / entry.path
    if not name.lower().endswith(ENDINGS[imported.format]):
        try:
            return Examined([], [file_fingerprint(path)])
        except OSError:
            return Examined([], [entry.path])
    key = key_of_file(name, imported)
    try:
        digest = sha256_file(path)
        with open_vectors(path, imported) as opened:
            found = [
                _judged(opened, held, held.key if imported.many else key, entry.path, imported, digest)
                for held in opened.held()
            ]
    except VerdictError as error:
        return Examined([_finding(key, entry.path, error.verdict)], [])
    except (MemoryError, TimeloomError):
        raise
    except Exception:  # whatever a damaged file makes a library raise is the file's verdict, not the night's end
        return Examined([_finding(key, entry.path, "failed_unreadable")], [])
    return Examined(found or [_finding(key, entry.path, "failed_empty_bag")], [])


def beside(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of a folder, those of a file beside which a lock lies marked. The mark goes with the lock."""
    locks = {finding.value["path"][: -len(LOCK)] for finding in findings if finding.value["lock"]}
    marked = []
    for finding in findings:
        path = finding.value["path"]
        locked = path in locks or path.rpartition(".")[0] in locks
        same = finding.value["locked"] == locked
        marked.append(finding if same else replace(finding, value={**finding.value, "locked": locked}))
    return marked


def items(settings: VectorSettings, findings: Iterable[Finding]) -> list[FoundItem]:
    """One item for each name that files give, by all that files say of it.

    Two files of one name that differ are nobody's: none of them is taken.
    """
    by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for finding in findings:
        by_key[finding.value["key"]].append(finding.value)
    return [
        _item(settings, key, sorted(found, key=lambda value: (value["path"], value["member"])))
        for key, found in sorted(by_key.items())
    ]


def _item(settings: VectorSettings, key: str, found: list[dict[str, Any]]) -> FoundItem:
    files = [value for value in found if not value["lock"] and not value["locked"]]
    verdict, value = UNFINISHED, (files or found)[0]
    if len(files) == len(found):
        verdict = TWICE if len(files) > 1 else value["verdict"]
    usable = verdict == OK
    geometry = {name: value[name] for name in ("digest", "coords", "patching", "squeezed") if usable}
    return nobodys_item(
        modality=settings.modality,
        # The name is part of it: two notes of one text are two items.
        identity=identity_of([f"vectors:{key}", str(value["digest"])]),
        paths=(value["path"],),
        verdict=verdict,
        units_expected=value["units"],
        geometry=geometry | {"key": key, "member": value["member"], "sha256": value["sha256"]},
        # A name that is no UTF-8 can stand in no crosswalk.
        names={KEY: key, "path": os.fsencode(key).decode("utf-8", "replace")},
    )


def _finding(key: str, path: str, verdict: str, **others: Any) -> Finding:
    empty: dict[str, Any] = dict.fromkeys(("digest", "units", "coords", "patching", "squeezed", "sha256"))
    said = {"key": key, "path": path, "verdict": verdict, "member": "", "lock": False, "locked": False}
    return Finding(empty | said | others, key)


def _judged(opened: VectorFile, held: Held, key: str, path: str, imported: ImportedConfig, sha256: str) -> Finding:
    """What a file holds of one item: all of it is read, so that every fault is known before anything is stored."""
    said = {"member": held.member, "sha256": sha256}
    try:
        units = units_of(held, imported)
        digest = Digest()
        for block in blocks_of(opened, held, imported):
            digest.add(block, imported.width)
        digest.add_places(places_of(opened, held, units))
    except VerdictError as error:
        return _finding(key, path, error.verdict, **said)
    except MemoryError:
        raise
    except Exception:  # of one item in a file of many: the others may be whole
        return _finding(key, path, "failed_unreadable", **said)
    usual = 2 if imported.shape == "units" else 1
    return _finding(
        key,
        path,
        OK,
        digest=digest.hex,
        units=units,
        coords=held.coords is not None,
        patching=dict(held.patching) if held.patching else "unknown",
        squeezed=len(held.shape) > usual,
        **said,
    )


class Digest:
    """SHA-256 of an item's vectors and of where its units lie, whatever file and format they stand in."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._begun = False

    def add(self, block: Array, width: int) -> None:
        """The next vectors (n, width).

        Raises:
            VerdictError: failed_vector_width, failed_not_finite.
        """
        if block.shape[1] != width:
            raise VerdictError("failed_vector_width")
        if not np.isfinite(block).all():
            raise VerdictError("failed_not_finite")
        little = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
        if not self._begun:
            self._digest.update(f"{little.dtype.str}{width};".encode())
            self._begun = True
        self._digest.update(little.data)

    def add_places(self, places: Array) -> None:
        """Where the units lie (n, k) int32; the last that is added."""
        self._digest.update(f"{places.shape};".encode())
        self._digest.update(np.ascontiguousarray(places, "<i4").data)

    @property
    def hex(self) -> str:
        return self._digest.hexdigest()
