"""CT in NIfTI: what a file holds, read whole once, and the item that it makes. A file is a volume.

A NIfTI says neither whose it is nor when: a crosswalk does, by `path`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from pydantic import Field

from extractors.ct.geometry import GeometryRule, judge, plausible_spacing, square, squared_shape
from extractors.ct.hounsfield import Measures, near_copies, without_padding
from extractors.ct.nifti_slices import Axial, axial_of, slabs
from extractors.dicom.files import MEMBER, SINGLE
from extractors.dicom.pixels import MAX_SIDE
from extractors.items import OK, FoundItem, VerdictError, identity_of, nobodys_item
from extractors.nifti.header import NiftiHeader, is_named_nifti, read_nifti_header
from warehouse.configuration import Settings

FORMAT = "nifti"  # geometry.format of an item that is read as one
ONES_MM = 1e-6


class NiftiConfig(Settings):
    """How CT in NIfTI is judged.

    Attributes:
        least_slices: a file of fewer is a part of a scan, as converters leave them beside it.
        forms_disagree: what becomes of a file whose sform and qform put the volume at two places: `keep` reads it by
            its sform and counts it, `refuse` takes it for damaged.
    """

    least_slices: int = Field(default=16, ge=1)
    forms_disagree: Literal["keep", "refuse"] = "keep"


@dataclass(frozen=True)
class NiftiVolume:
    """What one file is, before a configuration says anything of it; JSON by `vars`.

    Attributes:
        verdict: of the file alone.
        stamp: of the file as it was, to see later whether it changed.
        shape, affine: of `NiftiHeader`; empty where there is none.
        content: of its Hounsfield units as they are read; empty where they cannot be.
        outline: of `extractors.ct.hounsfield.Measures`.
        near_copies: how many others of its folder look like it.
        geometry: what else is told of it.
    """

    path: str
    verdict: str
    fingerprint: str = ""
    stamp: str = ""
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    forms_disagree: bool = False
    content: str = ""
    outline: str = ""
    near_copies: int = 0
    geometry: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file's path as a crosswalk names it: without what a compressed file is called inside."""
        return self.path.removesuffix(MEMBER + SINGLE)


def examine_nifti(file: BinaryIO, size: int, volume: NiftiVolume) -> NiftiVolume:
    """A file with what is found in it: header, and every voxel.

    Args:
        volume: of which path, fingerprint and stamp are known.
    """
    try:
        header = read_nifti_header(file, size)
        axial = axial_of(header.affine, header.shape)
        if max(axial.sides(header.shape)) > MAX_SIDE:
            raise VerdictError("failed_implausible_size")
        return _measured(file, header, axial, _placed(header, volume))
    except VerdictError as error:
        return replace(volume, verdict=error.verdict)
    except Exception:  # nibabel raises many things on damaged bytes
        return replace(volume, verdict="failed_unreadable")


def _placed(header: NiftiHeader, volume: NiftiVolume) -> NiftiVolume:
    from nibabel.orientations import aff2axcodes

    codes = aff2axcodes(np.diag([-1.0, -1.0, 1.0, 1.0]) @ header.affine)
    sides = np.linalg.norm(header.affine[:3, :3], axis=0)
    compressed = volume.path.endswith(MEMBER + SINGLE)
    flags = {
        "forms_disagree": header.forms_disagree,
        "spacing_differs": header.spacing_differs,
        "spacing_ones": bool((np.abs(sides - 1) < ONES_MM).all()),
        "misnamed": is_named_nifti(volume.file) and compressed != volume.file.lower().endswith(".gz"),
    }
    facts: dict[str, Any] = {
        "stored": header.dtype.name,
        "rescale": [header.slope, header.intercept],
        "axes": "".join(map(str, codes)),
        "form": header.form,
        "form_codes": list(header.codes),
        **{name: True for name, said in flags.items() if said},
    }
    affine = tuple(tuple(row) for row in header.affine.tolist())
    return replace(
        volume, shape=header.shape, affine=affine, forms_disagree=header.forms_disagree, geometry=facts, verdict=OK
    )


def _measured(file: BinaryIO, header: NiftiHeader, axial: Axial, volume: NiftiVolume) -> NiftiVolume:
    """A volume with what its values say."""
    measures, digest, not_finite = Measures(), xxhash.xxh3_128(), 0
    for slab in slabs(file, header, axial):
        measures.add(slab.slices)
        not_finite += slab.not_finite
        digest.update(np.ascontiguousarray(without_padding(slab.slices)).data)
    counted = {"not_finite": not_finite, "jumps": measures.jumps}
    return replace(
        volume,
        verdict=measures.verdict,
        content=identity_of([digest.hexdigest(), f"{axial.sides(header.shape)}"]),
        outline=measures.outline if measures.verdict == OK else "",
        geometry={
            **volume.geometry,
            "shares": measures.shares,
            **{name: number for name, number in counted.items() if number},
        },
    )


def with_near_copies(volumes: Sequence[NiftiVolume]) -> list[NiftiVolume]:
    """The volumes of whole folders, each with how many others of its folder look like it: it is told, and changes no
    verdict."""
    folders: dict[str, list[int]] = defaultdict(list)
    for place, volume in enumerate(volumes):
        folders[volume.file.rpartition("/")[0]].append(place)
    found = list(volumes)
    for places in folders.values():
        outlines = [volumes[place].outline for place in places]
        counts = near_copies(outlines, [_extent(volumes[place]) for place in places])
        for place, count in zip(places, counts, strict=True):
            if volumes[place].near_copies != count:
                found[place] = replace(volumes[place], near_copies=count)
    return found


def _extent(volume: NiftiVolume) -> list[float]:
    """Of the volume, in mm along the patient's axes, whatever its axes in the file."""
    if not volume.affine:
        return [0.0, 0.0, 0.0]
    directions = np.array(volume.affine)[:3, :3]
    found: list[float] = np.abs(directions * np.array(volume.shape)).max(axis=1).tolist()
    return found


def nifti_items(
    modality: str, volumes: Iterable[NiftiVolume], config: NiftiConfig, rule: GeometryRule
) -> Iterator[FoundItem]:
    """One item a file."""
    for volume in volumes:
        verdict, units, geometry = _judged(volume, config, rule)
        more = {"near_copies": volume.near_copies, "stamps": [volume.stamp]}
        geometry |= {"format": FORMAT, **volume.geometry, **{name: value for name, value in more.items() if value}}
        yield nobodys_item(
            modality=modality,
            identity=_identity(volume, geometry),
            paths=(volume.path,),
            verdict=verdict,
            units_expected=units,
            geometry=geometry,
            content=volume.content if verdict == OK else "",
            names={"path": volume.file},
        )


def _identity(volume: NiftiVolume, geometry: dict[str, Any]) -> str:
    """Of what can be read, its values and how they are resampled; else of its file."""
    if not volume.content:
        return identity_of([volume.fingerprint or volume.path])
    return identity_of([volume.content, repr(geometry["spacing_mm"])]) if "square" in geometry else volume.content


def _judged(volume: NiftiVolume, config: NiftiConfig, rule: GeometryRule) -> tuple[str, int | None, dict[str, Any]]:
    """A volume's verdict, number of slices and geometry."""
    if not volume.affine:
        return volume.verdict, None, {}
    first, second, third = volume.shape
    axial = axial_of(np.array(volume.affine), (first, second, third))
    slices, spacing = volume.shape[axial.axis], axial.spacing
    rows, columns = axial.sides((first, second, third))
    order = judge(axial.plane[:6], axial.positions, rule)
    geometry: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "slices": slices,
        "spacing_mm": [round(float(side), 6) for side in spacing],
        "gap_mm": order.gap,
        "thickness_mm": None,
        "kernel": "",
    }
    if not square(spacing):
        geometry["square"] = list(squared_shape(rows, columns, spacing))
    if order.tilt:
        geometry["tilt_degrees"] = order.tilt
    verdict = volume.verdict
    if verdict == OK:
        verdict = order.verdict
    if verdict == OK and not plausible_spacing(spacing):
        verdict = "failed_implausible_pixel_size"
    if verdict == OK and slices < config.least_slices:
        verdict = "failed_too_few_slices"
    if verdict == OK and volume.forms_disagree and config.forms_disagree == "refuse":
        verdict = "failed_forms_disagree"
    return verdict, slices, geometry
