"""The verdict table: the verdict that every series or file of the public test data must have, and why."""

from pathlib import Path

import numpy as np
import pytest

from extractors.ct.index import index_ct, read_volume
from extractors.items import FoundItem, VerdictError

# First file's path (for volumes: the lowest slice's) → verdict, files, why.
Row = tuple[str, int, str]
ROBUSTNESS: dict[str, Row] = {
    "": ("refused_not_dicom", 0, "the read-me"),
    "ct-3slice/03.dcm": ("failed_too_few_slices", 3, "three slices of an abdomen"),
    "derived-objects/ct.0.dcm": ("failed_too_few_slices", 1, "one slice of a planning CT"),
    "derived-objects/ct_image.dcm": ("failed_too_few_slices", 1, "one slice"),
    "derived-objects/dx_image.dcm": ("refused_not_ct", 1, "a radiograph"),
    "derived-objects/rtplan.dcm": ("refused_not_ct", 1, "a plan has no pixels"),
    "derived-objects/rtss.dcm": ("refused_not_ct", 1, "contours have no pixels"),
    "derived-objects/seg_image_ct_binary.dcm": ("refused_not_ct", 1, "a segmentation: bits, not HU"),
    "derived-objects/sr_document.dcm": ("refused_not_ct", 1, "a report"),
    "enhanced-multiframe/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": ("refused_calculated", 2, "maps of perfusion"),
    "enhanced-multiframe/legacy-converted/mf.dcm": ("refused_not_hu", 1, "RescaleType US: unspecified"),
    "gantrytilting/001/IM-0001-0001.dcm": ("ok", 4, "slices of a gantry that is tilted by 14 degrees"),
    "mixed-modality/deflated.dcm": ("refused_secondary_capture", 1, "modality OT, a secondary capture"),
    "mixed-modality/explicit_big.dcm": ("refused_not_ct", 1, "MR"),
    "mixed-modality/explicit_little.dcm": ("refused_not_ct", 1, "MR, multi-frame"),
    "mixed-modality/implicit_little.dcm": ("refused_not_ct", 1, "MR"),
    "mixed-modality/jpeg_2000.dcm": ("failed_too_few_slices", 1, "one slice, lossy JPEG 2000"),
    "mixed-modality/jpeg_baseline_8bit.dcm": ("refused_not_ct", 1, "angiography"),
    "mixed-modality/jpeg_lossless_sel1.dcm": ("refused_localizer", 1, "a scout"),
    "mixed-modality/jpeg_ls.dcm": ("refused_not_ct", 1, "MR"),
    "mixed-modality/rle.dcm": ("failed_too_few_slices", 1, "one slice in three encodings, which count once"),
    "notavolume/001/001.dcm": ("failed_duplicate_position", 4, "four slices at one place"),
    "odd/CT-MONO2-16-ankle": ("refused_secondary_capture", 1, "an ACR-NEMA film, kept as a secondary capture"),
    "odd/FreezePattern.dcm": ("refused_secondary_capture", 1, "a screen with the dose"),
    "odd/GH1339.dcm": ("refused_not_ct", 1, "tomosynthesis of a breast with an empty data set"),
    "odd/GH1376.dcm": ("refused_not_hu", 1, "no rescale; its pixels are also cut short"),
    "odd/GH1728.dcm": ("refused_secondary_capture", 1, "a secondary capture with a CT's geometry"),
    "odd/GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm": ("failed_unreadable", 1, "cut short in a sequence"),
    "odd/GH178.dcm": ("refused_secondary_capture", 2, "dose reports without pixels"),
    "odd/GH342.dcm": ("refused_localizer", 1, "a scout"),
    "odd/IM-0001-0001-0001.dcm": ("failed_too_few_slices", 1, "one slice"),
    "odd/no-pixel-data.dcm": ("refused_not_ct", 1, "another class, without pixels"),
    "odd/no-pixel-spacing.dcm": ("refused_not_ct", 1, "a radiograph without spacing"),
    "slicecount/001/IM-0001-0001-0001.dcm": ("refused_not_ct", 2, "MR"),
    "sliceincrement/001/IM-0001-0007-0001.dcm": ("failed_missing_slice", 4, "gaps of 5 and 10 mm"),
    "sliceincrement/002/IM-0001-0001.dcm": ("failed_missing_slice", 4, "a tilted gantry, and a slice is missing"),
    "transfer-syntaxes/CTImage.dcm_JPEG2000TransferSyntax_1.2.840.10008.1.2.4.91.dcm": (
        "failed_too_few_slices", 3, "one slice in twelve encodings that we read: ten are lossless, and count once",
    ),
    "transfer-syntaxes/CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": (
        "refused_lossy_jpeg", 4, "the same slice in four lossy JPEG processes, whose decoders disagree",
    ),
    **{
        f"multiphase-4d/{first}.dcm": ("refused_not_ct", 4, "a private SOP class")
        for first in (1, 5, 10, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61, 65, 69, 73)
    },
}  # fmt: skip
HEAD: dict[str, Row] = {
    "": ("refused_not_dicom", 0, "read-me and licence; DICOMDIR counts for nothing"),
    "Philips/S21570/S1000/I10": ("refused_localizer", 1, "a surview"),
    "Philips/S21570/S2010/I10": ("ok", 28, "the whole head, 5 mm, soft: the reconstruction that is kept"),
    "Philips/S21570/S2020/I10": ("refused_other_reconstruction", 7, "1 mm of the same scan, and 7 slices of 140"),
    "Philips/S21570/S2030/I10": ("refused_other_reconstruction", 7, "the same with a bone kernel"),
    "Philips/S21570/S4010/I10": ("refused_secondary_capture", 2, "an exam summary whose modality says CT"),
    "Philips/S21610/S1000/I10": ("refused_localizer", 1, "another surview"),
}
IBSI: dict[str, Row] = {
    "": ("refused_not_dicom", 0, "read-mes and licence"),
    "STS_008/CT/image/000000.dcm": ("ok", 51, "a volume of 51 slices"),
    "STS_019/CT/image/000000.dcm": ("ok", 47, "a volume of 47 slices"),
    "STS_025/CT/image/000000.dcm": ("ok", 47, "a volume of 47 slices"),
    "STS_042/CT/image/000000.dcm": ("ok", 49, "a volume of 49 slices"),
    "STS_019/MR_T1/image/000000.dcm": ("refused_not_ct", 47, "MR of the same patient"),
    "STS_019/PET/image/000000.dcm": ("refused_not_ct", 47, "PET of the same patient"),
    **{
        f"STS_{number}/mask/RS.dcm": ("refused_not_ct", 1, "contours")
        for number in ("008/CT", "019/CT", "025/CT", "042/CT", "019/MR_T1", "019/PET")
    },
}
# No item names these files: they have the pixels of another file of the same instance, and count once.
COPIES = {
    "odd/CT1_J2KI",
    "odd/D_CLUNIE_CT1_RLE_FRAGS.dcm",
    "odd/GH177_D_CLUNIE_CT1_IVRLE_BigEndian_ELE_undefinded_length.dcm",
}
ENCODINGS = "transfer-syntaxes/CTImage.dcm"
# Its pixels are noise near air, for its slices' geometry alone is of use.
NO_BODY = "gantrytilting/"
TABLES = {"ct-robustness": ROBUSTNESS, "ct-head-series": HEAD, "ct-ibsi-sts": IBSI}

_found: dict[str, dict[str, FoundItem]] = {}


def found(real_data: Path, tree: str) -> dict[str, FoundItem]:
    if tree not in _found:
        _found[tree] = {item.paths[0] if item.paths else "": item for item in index_ct(real_data / tree)}
    return _found[tree]


@pytest.mark.parametrize(("tree", "first"), [(tree, first) for tree, table in TABLES.items() for first in table])
def test_verdict_of(real_data: Path, tree: str, first: str) -> None:
    verdict, files, why = TABLES[tree][first]
    item = found(real_data, tree)[first]
    assert (item.verdict, len(item.paths)) == (verdict, files), why


@pytest.mark.parametrize("tree", TABLES)
def test_every_file_of_the_tree_is_in_the_table(real_data: Path, tree: str) -> None:
    items = found(real_data, tree)
    assert set(items) == set(TABLES[tree])
    files = {path.relative_to(real_data / tree).as_posix() for path in (real_data / tree).rglob("*") if path.is_file()}
    named = {path for item in items.values() for path in item.paths}
    # No item names text files (one item counts them), DICOMDIRs, or a second copy of an instance.
    unnamed = {
        path for path in files - named if Path(path).suffix not in (".txt", ".md") and Path(path).name != "LICENSE"
    }
    encodings = {path for path in unnamed if path.startswith(ENCODINGS)}
    assert len(encodings) == (9 if tree == "ct-robustness" else 0)
    rest = unnamed - COPIES - encodings
    assert all(Path(path).name in ("DICOMDIR", "DIRFILE") for path in rest), sorted(rest)[:5]


@pytest.mark.parametrize(
    ("tree", "first"),
    [(t, f) for t, table in TABLES.items() for f in table if table[f][0] == "ok" and not f.startswith(NO_BODY)],
)
def test_what_is_usable_decodes_to_a_body_in_air(real_data: Path, tree: str, first: str) -> None:
    item = found(real_data, tree)[first]
    pixels = np.stack(list(read_volume(item.paths, real_data / tree, item.geometry)))
    assert len(pixels) == item.units_expected and np.isfinite(pixels).all()
    assert -1100 < np.percentile(pixels, 1) < -700 and -200 < np.percentile(pixels, 90) < 300


def test_lossy_files_are_not_decoded_even_when_asked(real_data: Path) -> None:
    folder = real_data / "ct-robustness" / "transfer-syntaxes"
    lossy = [path.name for path in folder.iterdir() if any(f"Process{n}T" in path.name for n in ("1", "2_4", "6_8"))]
    assert len(lossy) == 3
    for name in lossy:
        with pytest.raises(VerdictError, match="failed_unreadable"):
            list(read_volume([name], folder))
