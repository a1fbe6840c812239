"""Images and notes: our readers against pydicom, SimpleITK, OpenSlide, wfdb, PIL, nibabel and tokenizers, and the
runner against the bare model, in one go.

    python benchmarks/imaging.py [--quick] [--work DIR] [--only ct|slides|units|device]

Ratios above one: we are faster. Peers are installed into environments of their own below the work folder. The last line
is JSON; what did not run, such as the share of a GPU's limit without a GPU, is null.
"""

import argparse
import json
import platform
from pathlib import Path

import imaging_ct
import imaging_device
import imaging_slides
import imaging_units
from rich.console import Console

PARTS = {"slides": imaging_slides, "ct": imaging_ct, "units": imaging_units, "device": imaging_device}
KEYS = (
    "tiles_vs_openslide", "tiles_40to20_vs_openslide", "ct_uncompressed_vs_best", "ct_jpeg_lossless_vs_best",
    "ct_jpeg_ls_vs_best", "ct_jpeg2000_vs_best", "nifti_plain_vs_nibabel", "nifti_packed_vs_nibabel",
    "nifti_coronal_vs_nibabel", "ecg_vs_wfdb", "cxr_dicom_vs_pydicom", "cxr_jpeg_vs_pil", "note_vs_plain",
    "device_fraction", "flop_fraction", "flop_fraction_ecg", "flop_fraction_cxr", "flop_fraction_note",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer images, fewer repetitions")
    parser.add_argument("--work", type=Path, default=Path("imaging-benchmark"), help="inputs and peers' environments")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part; the other ratios are null")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    Console().print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}", markup=False)
    ratios: dict[str, float | None] = dict.fromkeys(KEYS)
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            ratios |= part.measure(arguments.quick, arguments.work)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
