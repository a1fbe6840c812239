"""What a configuration says of chest x-rays, and how they are found and read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from extractors.cxr.views import VIEWS, View
from extractors.extractor import ByFile, Extractor, ModalitySettings
from extractors.reading import known_zone
from warehouse.configuration import LocatedPath, Settings

Column = Literal[
    "image", "subject_id", "time", "study_date", "study_time", "available_time", "view", "view_code", "laterality",
    "burned_in", "body_part",
]  # fmt: skip
COLUMNS: tuple[Column, ...] = (
    "image", "subject_id", "time", "study_date", "study_time", "available_time", "view", "view_code", "laterality",
    "burned_in", "body_part",
)  # fmt: skip
Match = Literal["path", "name", "stem"]
# Of a published layout: how its table names images, and its columns.
LAYOUTS: Mapping[str, tuple[Match, Mapping[Column, str]]] = {
    "mimic-cxr-jpg": (
        "stem",
        {
            "image": "dicom_id", "subject_id": "subject_id", "study_date": "StudyDate", "study_time": "StudyTime",
            "view": "ViewPosition", "view_code": "ViewCodeSequence_CodeMeaning",
        },
    ),
}  # fmt: skip


class CxrTable(Settings):
    """A CSV, perhaps through gzip, that says of each image whose it is and when it was taken.

    What it says wins over a DICOM header; what it leaves empty the header may say.

    Attributes:
        layout: `mimic-cxr-jpg` knows the metadata table of that set, and the next two keys with it.
        match: its column `image` is a `path` below the images' folder, a file's `name`, or its `stem`, which is the
            name without its ending.
        columns: names of the CSV's columns where they are not image, subject_id, time (or study_date and study_time,
            as DICOM writes them), available_time, view, view_code, laterality, burned_in, body_part.
        partial: not all of the images that it names are there. Without it, one that is missing stops the run before
            any work.
    """

    file: LocatedPath
    layout: Literal["mimic-cxr-jpg"] | None = None
    match: Match = "path"
    columns: dict[Column, str] = Field(default_factory=dict)
    partial: bool = False

    @model_validator(mode="after")
    def _one_of_them(self) -> "CxrTable":
        if self.layout is not None and self.model_fields_set & {"match", "columns"}:
            raise ValueError("layout says how images are matched and what columns are called: leave out the other two")
        return self

    @property
    def matched_by(self) -> Match:
        """What of a file its column of images holds."""
        return LAYOUTS[self.layout][0] if self.layout else self.match

    @property
    def names(self) -> Mapping[Column, str]:
        """By column, its name in the CSV."""
        return LAYOUTS[self.layout][1] if self.layout else {column: column for column in COLUMNS} | self.columns


class CxrSettings(ModalitySettings):
    """X-rays in DICOM have subject and time in their headers; those in JPEG or PNG need a table. A crosswalk by
    `patient_id` may give others.

    Attributes:
        timezone: an IANA name: devices that state another offset are converted to the site's wall clock.
        table: a CSV of images.
        views: which views are embedded, of frontal, lateral, other (obliques) and unknown; the others are refused.
        body_parts: words of which a BodyPartExamined that is given must hold one.
        burned_in: what becomes of an image whose header says that annotations are burned into its pixels.
        secondary_captures: whether those are taken whose modality is CR, DX or RF, as public sets are written.
        for_processing: whether a detector's raw signal is taken (DX For Processing).
        stretch: of an image without a table or window: the percentages of its pixels that become black and white.
        least_contrast: the share of its largest grey value that an image must span, or it is blank.
        least_side: rows and columns below which an image is too small.
    """

    timezone: str | None = None
    table: CxrTable | None = None
    views: tuple[View, ...] = VIEWS
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "TORAX", "LUNG")
    burned_in: Literal["refuse", "keep"] = "refuse"
    secondary_captures: bool = False
    for_processing: bool = False
    stretch: tuple[float, float] = (0.1, 99.9)
    least_contrast: float = Field(default=0.02, ge=0, lt=1)
    least_side: int = Field(default=224, ge=1)

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_zone(name)

    @field_validator("views")
    @classmethod
    def _in_order(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        if not views:
            raise ValueError(f"name the views that are embedded, of {', '.join(VIEWS)}")
        return tuple(view for view in VIEWS if view in views)

    @field_validator("stretch")
    @classmethod
    def _a_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("stretch is two percentages: the smaller one first")
        return value

    @property
    def tables(self) -> Mapping[str, Path]:
        """The table of images, by its key."""
        return {"table.file": self.table.file} if self.table else {}


# An item is one view, and a film has up to 36 megapixels.
CXR = Extractor(
    CxrSettings,
    "extractors.cxr.index:index",
    "extractors.cxr.read:read_views",
    units_a_batch=1,
    by_file=ByFile(
        "extractors.cxr.index:examine",
        "extractors.cxr.index:beside",
        "extractors.cxr.index:items",
        judged_later=(
            "table", "views", "body_parts", "burned_in", "secondary_captures", "for_processing", "least_contrast",
            "least_side",
        ),
    ),
    check="extractors.cxr.table:check",
    reads="DICOM (CR, DX, RF), JPEG and PNG files",
    foreign="refused_not_image",
    matches=("patient_id", "study_uid", "series_uid", "accession_number"),
    private_geometry=frozenset(("stamp",)),
)  # fmt: skip
