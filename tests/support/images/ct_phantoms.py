"""CT slices in every lossless transfer syntax, and Enhanced CT, that tests write themselves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from tests.support.images.phantoms import write_slice

Encoder = Callable[[npt.NDArray[Any], int], bytes]


def _jpeg_ls(pixels: npt.NDArray[Any], bits: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(pixels))


def _jpeg_2000(pixels: npt.NDArray[Any], bits: int) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0, bitspersample=bits))


def _htj2k(pixels: npt.NDArray[Any], bits: int) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))


# Syntax → how a frame is encoded. JPEG and JPEG-LS have no sign: they store the bits.
ENCODERS: Mapping[str, Encoder] = {
    "1.2.840.10008.1.2.4.57": lambda pixels, bits: bytes(imagecodecs.ljpeg_encode(pixels, bitspersample=bits)),
    "1.2.840.10008.1.2.4.70": lambda pixels, bits: bytes(
        imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=bits)
    ),
    "1.2.840.10008.1.2.4.80": _jpeg_ls,
    "1.2.840.10008.1.2.4.90": _jpeg_2000,
    "1.2.840.10008.1.2.4.201": _htj2k,
}
NATIVE = (str(ImplicitVRLittleEndian), str(ExplicitVRBigEndian), str(DeflatedExplicitVRLittleEndian))
LOSSLESS = (*NATIVE, str(RLELossless), *ENCODERS)


def write_as(source: Path, target: Path, syntax: str) -> None:
    """Writes the slice in `source` (explicit little endian) in another transfer syntax."""
    dataset = pydicom.dcmread(source)
    pixels = dataset.pixel_array
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    elif syntax in ENCODERS:
        unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
        if dataset.PixelRepresentation and dataset.BitsStored < dataset.BitsAllocated:
            unsigned = unsigned & ((1 << dataset.BitsStored) - 1)
        dataset.PixelData = encapsulate([ENCODERS[syntax](unsigned, dataset.BitsStored)])
        dataset["PixelData"].is_undefined_length = True
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    if syntax == ExplicitVRBigEndian:
        dataset["PixelData"].VR = "OW"
    target.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(target, dataset, implicit_vr=implicit, little_endian=little, force_encoding=True)


def write_enhanced(
    path: Path,
    images: Sequence[npt.NDArray[np.float32]],
    heights: Sequence[float],
    per_frame: Sequence[Mapping[str, Any]] | None = None,
    syntax: str | None = None,
    **header: Any,
) -> None:
    """An Enhanced CT of `images`, written in that order at `heights`; `per_frame`: TemporalPositionIndex, StackID,
    RescaleSlope, FrameType of single frames."""
    write_slice(path, images[0], 0, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2.1")
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope")
    for keyword in (*gone, "RescaleIntercept", "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber"):
        delattr(dataset, keyword)
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [1.0, 1.0]
    shared.PixelMeasuresSequence[0].SliceThickness = 2.0
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames, stored = [], []
    for number, (image, height) in enumerate(zip(images, heights, strict=True)):
        values = dict((per_frame or [{}] * len(images))[number])
        slope = values.get("RescaleSlope", 2)
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [-16.0, -16.0, float(height)]
        frame.PixelValueTransformationSequence = [Dataset()]
        frame.PixelValueTransformationSequence[0].RescaleSlope = slope
        frame.PixelValueTransformationSequence[0].RescaleIntercept = -1024
        frame.PixelValueTransformationSequence[0].RescaleType = values.get("RescaleType", "HU")
        frame.FrameContentSequence = [Dataset()]
        frame.FrameContentSequence[0].FrameAcquisitionDateTime = f"20200304100{number % 10}00"
        frame.FrameContentSequence[0].FrameAcquisitionNumber = 1
        for keyword in ("StackID", "TemporalPositionIndex"):
            if keyword in values:
                setattr(frame.FrameContentSequence[0], keyword, values[keyword])
        frame.CTImageFrameTypeSequence = [Dataset()]
        frame.CTImageFrameTypeSequence[0].FrameType = values.get("FrameType", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
        frames.append(frame)
        stored.append(np.rint((image + 1024) / slope).astype("<i2"))
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.NumberOfFrames = len(images)
    if syntax is None:
        dataset.PixelData = np.stack(stored).tobytes()
    else:
        encode = ENCODERS[syntax]
        dataset.PixelData = encapsulate([encode(pixels.view("u2"), 16) for pixels in stored])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
