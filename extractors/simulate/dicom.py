"""What every DICOM file of the simulated hospital begins with."""

import hashlib

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

WRITER = UID("2.25.302043790172249692526321623266752743501")


def uid_of(*what: object) -> UID:
    """A UID below 2.25 that depends on what it names, and on nothing else."""
    name = "/".join(map(str, what))
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], 'big')}")


def new_file(sop_class: UID, instance: UID) -> FileDataset:
    """An object of a class without any content, in explicit little endian."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = WRITER
    meta.ImplementationVersionName = "SIMULATED"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = instance
    return dataset
