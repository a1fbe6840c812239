"""Items: what an image extractor finds. One item is one CT volume or one slide, with a verdict from one vocabulary."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import xxhash

TimePrecision = Literal["us", "s", "min", "day"]

# Of the geometry of items that encoders cut into units in different ways: the way that is taken, and by name each way,
# with its `units`.
CUT, CUTS = "cut", "cuts"

OK = "ok"
TWO_SUBJECTS = "failed_two_subjects"
WAITING = "waiting_for_vector"
ABSENT = "failed_missing_file"

# Every verdict with its meaning; docs/verdicts.md says more, and a test holds the two together.
VERDICTS: Mapping[str, str] = {
    OK: "usable",
    WAITING: "usable, and not encoded yet: a next night has its vector",
    # not the modality: nothing is wrong, there is nothing to embed
    "refused_not_dicom": "files of the tree that are neither DICOM nor NIfTI (one item counts them all)",
    "refused_not_ct": "DICOM of another kind: MR, PET, RT, SEG, SR, dose report, private SOP class",
    "refused_localizer": "a CT localizer (scout, surview)",
    "refused_secondary_capture": "a secondary capture or screen save",
    "refused_calculated": "pixels calculated from many slices or scans: MIP, rendering, subtraction, perfusion map",
    "refused_burned_in": "the header says that annotations are burned into the pixels",
    "refused_nested_archive": "an archive inside an archive",
    "refused_not_hu": "pixels that do not rescale to Hounsfield units, or values that cannot be any",
    "refused_several_volumes": "a NIfTI of several volumes: times, channels",
    "refused_monochrome1": "an inverted grey scale (MONOCHROME1)",
    "refused_lossy_jpeg": "8- or 12-bit lossy JPEG, whose decoders disagree on Hounsfield units",
    "refused_not_axial": "a coronal or sagittal reformat",
    "refused_not_rgb": "an OME-TIFF whose pages are single channels, or of more than 8 bits",
    "refused_not_image": "files that are neither DICOM, JPEG nor PNG (one item counts them all)",
    "refused_not_cxr": "DICOM of another kind than CR, DX and RF",
    "refused_for_processing": "a detector's raw signal (For Processing), whose picture is another file",
    "refused_not_chest": "an x-ray of another part of the body, by its header",
    "refused_not_grey": "a picture in colours, or in black and white alone",
    "refused_several_frames": "several frames, where one view is meant",
    "refused_too_small": "fewer rows or columns than an x-ray for an encoder has",
    "refused_view": "a view that the configuration leaves out",
    "refused_dark_field": "a dark-field or fluorescence slide, light on dark",
    "refused_not_ecg": "files of an ECG tree that are none: another kind of waveform, or no ECG format at all",
    "refused_not_note": "files beside notes that are none: no table with a column of text (one item counts them all)",
    "refused_empty": "a note in which no letter and no digit stands: blanks, lines and marks of what was taken out",
    "refused_other_summary": "a summary of a visit of which a later one is kept",
    "refused_no_item": "imported vectors that no item of the site asks for (one item counts them all)",
    "refused_not_vectors": "files of a folder of vectors that are of another format (one item counts them all)",
    "refused_other_reconstruction": "a reconstruction of an acquisition of which a better one is kept",
    "refused_linked_folder": "a link to a folder, which is not followed",
    # the modality, but damaged or incomplete
    "failed_unreadable": "a file that cannot be parsed or decoded, or is cut short",
    "failed_unlisted_folder": "a folder that cannot be listed: what it holds is not known",
    "failed_archive_limits": "an archive that unpacks out of all proportion",
    "failed_changed": "a file that changed after it was indexed",
    ABSENT: "a file that the manifest names and the tree lacks",
    "failed_missing_geometry": "slices without position, orientation or spacing",
    "failed_no_orientation": "a NIfTI that does not say how it lies in the patient (both form codes are 0)",
    "failed_forms_disagree": "a NIfTI whose two forms put it at two places, where the configuration refuses that",
    "failed_implausible_size": "a matrix larger than any scanner makes",
    "failed_implausible_pixel_size": "pixels of a physical size that no scanner makes",
    "failed_blank": "next to nothing but one grey value, or padding alone",
    "failed_too_few_slices": "three slices or fewer; of NIfTI, fewer than the configuration wants",
    "failed_too_many_units": "more slices or tiles than an item may have",
    "failed_duplicate_position": "two different slices at one position",
    "failed_missing_slice": "a gap where a slice should be",
    "failed_inconsistent_geometry": "slices at irregular distances",
    "failed_gantry_tilt": "slices of a tilted gantry, where `geometry: strict` wants a volume that is not sheared",
    "failed_sheared": "slices that drift sideways as no gantry makes them drift",
    "failed_mixed_subjects": "slices of one series that name different patients",
    TWO_SUBJECTS: "the same pixels are tied to two patients, and nobody can say whose they are",
    "failed_no_time": "no date of acquisition, series or study (CT, x-ray) or of collection (slide)",
    "failed_no_subject": "no patient identifier, or none in the crosswalk",
    "failed_no_mpp": "no physical pixel size in the file or the manifest",
    "failed_mpp_too_coarse": "a slide scanned too coarsely for the encoder's scale",
    "failed_no_tissue": "no tile with tissue",
    "failed_out_of_focus": "more of the tissue tiles than allowed are blurred",
    "failed_pen_marks": "more of the tiles than allowed have a marker's ink",
    "failed_too_many_bad_tiles": "more of the tissue tiles than allowed cannot be decoded",
    "failed_missing_leads": "an ECG without a lead that is asked for and cannot be derived",
    "failed_duplicate_leads": "an ECG in which two channels have one lead's name",
    "failed_lead_mismatch": "limb leads that contradict one another: names or electrodes exchanged",
    "failed_mixed_rates": "leads of one ECG at different rates or of different lengths",
    "failed_no_rate": "no sampling rate in an ECG's file, or an impossible one",
    "failed_uncalibrated": "no gain in an ECG's file, so that its values are no millivolts",
    "failed_wrong_units": "an ECG in a unit that is no voltage",
    "failed_implausible_gain": "an ECG whose swing no heart makes: a thousandfold too large or too small",
    "failed_no_rhythm": "an ECG file with a median beat and no rhythm",
    "failed_truncated": "an ECG with fewer samples than its header says",
    "failed_checksum": "an ECG whose samples do not add up to the header's checksum",
    "failed_too_short": "an ECG shorter than the site asks for",
    "failed_missing_samples": "more samples of a lead missing than allowed",
    "failed_flat_lead": "more of a lead without any change than allowed",
    "failed_clipped_lead": "more of a lead at its highest or lowest value than allowed",
    "failed_not_finite": "an encoder output, or an imported vector, that is not a finite number",
    # vectors that another program made
    "failed_no_vectors": "an item without imported vectors",
    "failed_unfinished": "vectors beside whose file a lock says that it is still written",
    "failed_pickled": "an .npy file of pickled objects, which are never read",
    "failed_vector_width": "imported vectors of another length than declared",
    "failed_vector_dtype": "imported vectors of another type than declared",
    "failed_vector_shape": "imported vectors of a shape that is neither one vector nor one for each unit, as declared",
    "failed_empty_bag": "imported vectors of no unit at all",
    "failed_coords": "places of units that are not as many as their vectors, or are no whole numbers",
    "failed_duplicate_vectors": "two files, or rows, with an item's vectors, and nobody can say which are right",
    "failed_shared_vectors": "imported vectors that two items ask for",
}

# What a folder holds besides files, by `extractors.trees.Entry.kind`.
BESIDE_FILES: Mapping[str, str] = {"closed": "failed_unlisted_folder", "link": "refused_linked_folder"}


class VerdictError(Exception):
    """An item ends with a verdict other than ok. Carries the verdict and nothing of the patient."""

    def __init__(self, verdict: str) -> None:
        if verdict not in VERDICTS or verdict == OK:
            raise ValueError(f"no such verdict: {verdict}")
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True)
class FoundItem:
    """One item of a tree, before de-identification: subject, identity and paths are the hospital's own."""

    modality: str
    raw_subject: str | None
    identity: str  # hex; of the content, whatever the names, folders and dates of its files
    paths: tuple[str, ...]  # relative to the tree's root; a CT volume's in slice order
    time: datetime | None  # naive, the hospital's wall clock
    time_source: str  # the winning DICOM tag, or "manifest"; empty where there is no time
    time_precision: TimePrecision
    available_time: datetime | None  # None: as `time`
    verdict: str
    units_expected: int | None  # slices, tissue tiles, windows
    geometry: dict[str, Any] = field(default_factory=dict)  # JSON, without identifiers
    content: str = ""  # hex; the same for the same pixels, whatever ids and dates stand beside them; else `identity` is
    issuer: str = ""  # who gave `raw_subject`, where the files say so: two issuers may give one id to two patients
    names: Mapping[str, str] = field(default_factory=dict)  # what else a crosswalk may match, by the key `match`

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"no such verdict: {self.verdict}")


@dataclass(frozen=True)
class UnitBatch:
    """Some units of one item as an encoder's preprocessing takes them, and how many of them could not be read.

    `pixels`: CT (n, rows, columns) float32 HU; slides (n, tile, tile, 3) uint8 RGB; chest x-rays (n, rows, columns)
    uint16, 0 black. `indices`: (n,) int64, each unit's number in its item, rising. `places`: (n, k) int32, where each
    unit lies: a tile's x and y in level-0 pixels, a slice's number from the feet.
    """

    pixels: npt.NDArray[Any]
    indices: npt.NDArray[np.int64]
    places: npt.NDArray[np.int32]
    failed: int = 0


@dataclass(frozen=True)
class UnitRequest:
    """What a reader of units needs to know of an item, and which of its units are wanted: `start` up to `stop`."""

    root: Path
    paths: tuple[str, ...]
    geometry: Mapping[str, Any]
    start: int = 0
    stop: int | None = None


def cut_in(geometry: Mapping[str, Any], way: str) -> dict[str, Any]:
    """An item's geometry for who takes it cut in one way, without the others.

    Raises:
        KeyError: it is not cut in this way.
    """
    return {**geometry, CUT: way, CUTS: {way: geometry[CUTS][way]}}


def foreign_number(fingerprint: str) -> int:
    """A number of a file that is none of the modality; their sum tells such files, in whatever order they come."""
    return xxhash.xxh3_64_intdigest(fingerprint.encode())


def nobodys_item(
    modality: str,
    identity: str,
    paths: tuple[str, ...],
    verdict: str,
    units_expected: int | None = None,
    **known: Any,
) -> FoundItem:
    """An item whose files name neither subject nor time: a crosswalk or a table does.

    Args:
        known: further fields of the item.
    """
    return FoundItem(modality, None, identity, paths, None, "", "day", None, verdict, units_expected, **known)


def unread_item(modality: str, path: str, verdict: str) -> FoundItem:
    """A file that has no more than a verdict."""
    return nobodys_item(modality, identity_of([f"unread:{path}"]), (path,), verdict)


def foreign_item(modality: str, verdict: str, files: int, total: int) -> FoundItem:
    """The one item for all files that are none of the modality.

    Args:
        total: the sum of their `foreign_number`.
    """
    identity = identity_of([f"{files}:{total % (1 << 64)}"])
    return nobodys_item(modality, identity, (), verdict, files)


def item_to_json(item: FoundItem) -> dict[str, Any]:
    """An item as JSON, which `item_from_json` takes back."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in vars(item).items()}


def item_from_json(value: Mapping[str, Any]) -> FoundItem:
    """An item that `item_to_json` gave."""
    times = {name: value[name] and datetime.fromisoformat(value[name]) for name in ("time", "available_time")}
    return FoundItem(**{**value, **times, "paths": tuple(value["paths"])})


EDGE_BYTES = 64 * 1024


def file_fingerprint(path: Path) -> str:
    """Size and xxh3 of the first and last 64 KiB: other content, other fingerprint; name and times play no part."""
    with path.open("rb") as file:
        return stream_fingerprint(file, path.stat().st_size)


def stream_fingerprint(file: BinaryIO, size: int) -> str:
    """`file_fingerprint` of an open file of `size` bytes."""
    file.seek(0)
    head = xxhash.xxh3_64_hexdigest(file.read(EDGE_BYTES))
    file.seek(max(0, size - EDGE_BYTES))
    tail = xxhash.xxh3_64_hexdigest(file.read(EDGE_BYTES))
    return f"{size}:{head}:{tail}"


def file_on_disk(root: Path, path: str) -> tuple[Path, str | None]:
    """The file that an item's path lies in, and the member's name where it is an archive (`a.zip!/folder/IM1`)."""
    at = path.find("!/")
    while at >= 0:
        archive = root / path[:at]
        if archive.is_file():
            return archive, path[at + 2 :]
        at = path.find("!/", at + 1)
    return root / path, None


def identity_of(parts: Iterable[str]) -> str:
    """SHA-256 over parts in sorted order: the identity of an item made of them."""
    # A file's name need not be UTF-8.
    return hashlib.sha256("\n".join(sorted(parts)).encode("utf-8", "surrogateescape")).hexdigest()
