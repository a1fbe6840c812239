"""The modalities of items: one line each. Everything that names a modality, counts it or shows it reads this list."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Modality:
    """One kind of item.

    Attributes:
        name: in configurations, tables and folders: lower case letters and digits.
        number: on disk, and the modality's place in every vocabulary; it never changes.
        title: as reports show it.
        unit: what an encoder sees of an item at a time, in the singular.
        event: the code of the event that an item makes on its subject's timeline.
    """

    name: str
    number: int
    title: str
    unit: str
    event: str


MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality("ct", 0, title="CT", unit="slice", event="IMAGE/CT"),
        Modality("wsi", 1, title="slide", unit="tile", event="IMAGE/WSI"),
        Modality("ecg", 2, title="ECG", unit="window", event="IMAGE/ECG"),
        Modality("cxr", 3, title="chest x-ray", unit="view", event="IMAGE/CXR"),
        Modality("note", 4, title="note", unit="window", event="IMAGE/NOTE"),
    )
}
# Their names.
INDEXED: tuple[str, ...] = tuple(MODALITIES)


def title_of(name: str) -> str:
    """A modality as reports show it; an unknown one by its name."""
    return MODALITIES[name].title if name in MODALITIES else name
