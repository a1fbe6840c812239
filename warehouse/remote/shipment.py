"""What stands in a place: objects named by what they hold, a shipment for each release, whose it is, and `current`.

```
place.json                the root that pushes here: its name, and an id of what it was made with
objects/ab/ab12…          a file of releases, a pack of vectors or its index, named by the SHA-256 of its bytes
releases/<id>.json        a Shipment: which objects make a release
current.json              the id of the release that readers open
```

Names hold hashes, the numbers of releases and nothing else. The last two are written when all objects are there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from warehouse.errors import REPAIR, TimeloomError
from warehouse.files import sha256_json
from warehouse.layout import Layout
from warehouse.remote.place import Place
from warehouse.sealed import NotWholeError, read_sealed, sealed, unsealed

FORMAT_VERSION = 1
PLACE, CURRENT, OBJECTS, RELEASES = "place.json", "current.json", "objects", "releases"

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def object_name(sha256: str) -> str:
    """Where an object stands."""
    return f"{OBJECTS}/{sha256[:2]}/{sha256}"


def shipment_name(release: str) -> str:
    """Where the shipment of a release stands."""
    return f"{RELEASES}/{release}.json"


class ObjectEntry(BaseModel):
    """An object: the SHA-256 of its bytes is its name."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    bytes: int


class BucketVectors(BaseModel):
    """The vectors that a release has in one bucket of one store.

    Attributes:
        content: SHA-256 over keys and checksums; equal for equal vectors, however they lie in packs.
        index: which entry lies in which pack.
        packs: together the entries, each in one of them.
        bytes: of the entries as they lie in a store.
    """

    model_config = ConfigDict(frozen=True)
    content: str
    index: ObjectEntry
    packs: tuple[ObjectEntry, ...]
    bytes: int


class Shipment(BaseModel):
    """All that makes a release in a place, beside the files that its manifest lists.

    Attributes:
        root: what the root was made with, as root.json has it.
        manifest: manifest.json.
        beside: files of the root outside of the release, by their paths in the root: the record of its run, and what
            stands beside its vectors.
        vectors: by `modality/store` and bucket.
    """

    model_config = ConfigDict(frozen=True)
    format_version: int = FORMAT_VERSION
    release_id: str
    root: dict[str, Any]
    manifest: ObjectEntry
    beside: dict[str, ObjectEntry]
    vectors: dict[str, dict[int, BucketVectors]]

    def objects(self) -> dict[str, int]:
        """Bytes by hash of every object that the shipment names itself."""
        entries = [self.manifest, *self.beside.values()]
        for buckets in self.vectors.values():
            for bucket in buckets.values():
                entries += [bucket.index, *bucket.packs]
        return {entry.sha256: entry.bytes for entry in entries}


@dataclass(frozen=True)
class Origin:
    """The root that a place belongs to.

    Attributes:
        name: of its configuration.
        id: of what it was made with: name, buckets, key, how subjects and dates are treated.
    """

    name: str
    id: str

    @classmethod
    def of(cls, settings: Mapping[str, Any], otherwise: str) -> "Origin":
        """That of a root.json; `otherwise` is the name where it has none, as in a root of an older timeloom."""
        return cls(str(settings.get("name", otherwise)), sha256_json(dict(settings))[:16])

    def refuse(self, other: "Origin", what: str) -> None:
        """Raises TimeloomError where another root is the one that `what` belongs to."""
        if self == other:
            return
        named = f"the root {other.name}" if other.name != self.name else f"another root of the name {other.name}"
        raise TimeloomError(
            f"{what} belongs to {named} ({other.id}), and not to {self.name} ({self.id})",
            remedy="give each root a place of its own, another prefix say",
        )


def settings_of(layout: Layout) -> dict[str, Any]:
    """root.json.

    Raises:
        TimeloomError: it is missing or damaged.
    """
    try:
        return read_sealed(layout.settings, older=True)
    except (OSError, NotWholeError) as error:
        raise TimeloomError(f"root.json of {layout.root.name} is missing or damaged", remedy=REPAIR) from error


def _unsealed(place: Place, name: str) -> dict[str, Any] | None:
    text = place.read(name)
    if text is None:
        return None
    try:
        return unsealed(text, name)
    except (NotWholeError, ValueError) as error:
        raise TimeloomError(
            f"{name} in {place} is damaged", remedy=f"remove {name} there, and push again from the root"
        ) from error


def origin_at(place: Place) -> Origin | None:
    """The root that a place belongs to; None where nothing was pushed.

    Raises:
        TimeloomError: the place cannot be read, or its name is damaged.
    """
    found = _unsealed(place, PLACE)
    if found is None:
        return None
    if found.get("format_version", 0) > FORMAT_VERSION:
        raise TimeloomError(f"{place} has a newer format", remedy="upgrade timeloom")
    return Origin(str(found.get("name")), str(found.get("id")))


def claim(place: Place, origin: Origin) -> None:
    """Makes a place that of a root, if it is nobody's yet.

    Raises:
        TimeloomError: it is another root's, or cannot be written.
    """
    said = sealed({"format_version": FORMAT_VERSION, "name": origin.name, "id": origin.id})
    place.create(PLACE, said)
    check_claim(place, origin)


def check_claim(place: Place, origin: Origin) -> None:
    """Raises TimeloomError where a place is another root's."""
    found = origin_at(place)
    if found is not None:
        origin.refuse(found, str(place))


def current_at(place: Place) -> str | None:
    """The release that a place names as current; None where none is.

    Raises:
        TimeloomError: it cannot be read, or is damaged.
    """
    found = _unsealed(place, CURRENT)
    return None if found is None else str(found.get("release"))


def point_at(place: Place, release: str) -> None:
    """Makes a release the current one, by one object."""
    place.write(CURRENT, sealed({"release": release}))


def write_shipment(place: Place, shipment: Shipment) -> None:
    """Writes which objects make a release; they are all there."""
    place.write(shipment_name(shipment.release_id), sealed(shipment.model_dump(mode="json")))


def read_shipment(place: Place, release: str) -> Shipment:
    """Which objects make a release.

    Raises:
        TimeloomError: the place has no such release, or what it says is damaged.
    """
    found = _unsealed(place, shipment_name(release)) if _ID.fullmatch(release) else None
    if found is None:
        names = [name for name in place.sizes(RELEASES) if not name.startswith(".")]
        known = sorted((name.removesuffix(".json") for name in names), reverse=True)
        raise TimeloomError(
            f"there is no release {release} in {place}", remedy=f"the latest are: {', '.join(known[:3]) or 'none'}"
        )
    if found.get("format_version", 0) > FORMAT_VERSION:
        raise TimeloomError(f"release {release} in {place} has a newer format", remedy="upgrade timeloom")
    try:
        shipment = Shipment.model_validate(found)
        names = [*shipment.beside, *shipment.vectors]
        if shipment.release_id != release or not all(map(is_inside, names)):
            raise ValueError("a name leads elsewhere")
        if not all(map(_SHA256.fullmatch, shipment.objects())):
            raise ValueError("a name is no hash")
    except (ValidationError, ValueError) as error:
        raise TimeloomError(
            f"{shipment_name(release)} in {place} is damaged", remedy="push the release again from its root"
        ) from error
    return shipment


def is_inside(name: str) -> bool:
    """Whether a relative path stays inside the folder that it is put into."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def corrupt(place: Place, name: str, sha256: str) -> TimeloomError:
    """The error for an object whose bytes are not those that its name says."""
    return TimeloomError(
        f"{name} is corrupt in {place}: object {sha256[:16]} is not what its name says",
        remedy="`timeloom push --check` from the root sends it again",
    )


def absent(place: Place, name: str, sha256: str) -> TimeloomError:
    """The error for an object that a shipment names and the place does not have."""
    said = f"{name} is missing in {place}: there is no object {sha256[:16]}"
    return TimeloomError(said, remedy="`timeloom push` from the root sends it")
