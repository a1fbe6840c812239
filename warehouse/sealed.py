"""JSON files that carry a checksum of themselves, so that one changed byte is told from what was written.

The first line holds the XXH3-128 of every byte behind it, the key `checksum` of an otherwise plain JSON object.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from warehouse.files import atomic_write

_HEAD = b'{\n "checksum": "'
_DIGEST = 32


class NotWholeError(ValueError):
    """A file is not what was written, or never had a checksum."""


def write_sealed(path: Path, value: Mapping[str, Any], *, sync: bool = True) -> None:
    """Writes a JSON object with sorted keys and the checksum of its text, atomically.

    Args:
        sync: see warehouse.files.atomic_write.
    """
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(sealed(value))


def sealed(value: Mapping[str, Any]) -> bytes:
    """A JSON object with sorted keys as text that carries its checksum."""
    text = json.dumps(dict(value), indent=1, sort_keys=True, default=str).encode("ascii")
    rest = b'"' + (b"," if value else b"") + text[1:] + b"\n"
    return _HEAD + xxhash.xxh3_128_hexdigest(rest).encode("ascii") + rest


def read_sealed(path: Path, *, older: bool = False) -> dict[str, Any]:
    """What `write_sealed` was given.

    Args:
        older: an older timeloom may have written the file, without a checksum.

    Raises:
        OSError: it cannot be read.
        NotWholeError: a byte of it was changed, or it has no checksum.
    """
    return unsealed(path.read_bytes(), path.name, older=older)


def unsealed(text: bytes, name: str, *, older: bool = False) -> dict[str, Any]:
    """What `sealed` was given; `name` is what an error calls it.

    Raises:
        NotWholeError: as `read_sealed`.
    """
    found: dict[str, Any] = json.loads(_checked(text, name, older=older))
    found.pop("checksum", None)
    return found


def sealed_bytes(path: Path, *, older: bool = False) -> bytes:
    """The text that `write_sealed` wrote; arguments and errors are those of `read_sealed`."""
    return _checked(path.read_bytes(), path.name, older=older)


def _checked(text: bytes, name: str, *, older: bool) -> bytes:
    digest, rest = text[len(_HEAD) : len(_HEAD) + _DIGEST], text[len(_HEAD) + _DIGEST :]
    fits = xxhash.xxh3_128_hexdigest(rest).encode("ascii") == digest
    if text.startswith(_HEAD) and fits:
        return text
    # With the right checksum, a changed byte is in what stands before it.
    if older and not fits and not text.startswith(_HEAD) and _is_object(text):
        return text
    raise NotWholeError(f"{name} is not what was written")


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def is_whole(path: Path, *, older: bool = False) -> bool:
    """Whether a file that `write_sealed` wrote is there, every byte of it."""
    try:
        sealed_bytes(path, older=older)
    except (OSError, NotWholeError):
        return False
    return True
