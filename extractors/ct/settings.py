"""What a configuration says of CT, and how its volumes are found and read."""

from pydantic import field_validator

from extractors.ct.geometry import GeometryRule
from extractors.ct.nifti import NiftiConfig
from extractors.ct.reconstructions import ReconstructionConfig
from extractors.extractor import ByFile, Extractor, ModalitySettings
from extractors.reading import known_zone


class CtSettings(ModalitySettings):
    """CT in DICOM has its subject and time in its headers; a crosswalk may give others, and gives those of NIfTI.

    Attributes:
        timezone: an IANA name: scanners that state another offset are converted to the site's wall clock, which is what
            the tables are in.
        reconstruction: which of several reconstructions of one acquisition is embedded.
        geometry: `strict` wants volumes of parallel slices at even distances, straight above each other, as encoders of
            volumes do; `slices` also takes a tilted gantry and a scan in steps, where no slice is missing, and records
            both with the item.
        nifti: how CT in NIfTI is judged.
    """

    timezone: str | None = None
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    geometry: GeometryRule = "slices"
    nifti: NiftiConfig = NiftiConfig()

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return known_zone(name)


# Slices are large: a few at a time.
CT = Extractor(
    CtSettings,
    "extractors.ct.index:index",
    "extractors.ct.index:read_ct_units",
    units_a_batch=16,
    digest="extractors.ct.read:pixel_digest",
    by_file=ByFile(
        "extractors.ct.by_file:examine_file",
        "extractors.ct.by_file:beside",
        "extractors.ct.by_file:items",
        judged_later=("reconstruction", "geometry", "nifti"),
    ),
    reads="DICOM files, alone or in zip and tar archives, and NIfTI",
    foreign="refused_not_dicom",
    matches=("path", "patient_id", "study_uid", "series_uid", "accession_number"),
    private_geometry=frozenset(("stamps", "frames")),
    keyed_geometry=frozenset(("reconstruction_group",)),
)
