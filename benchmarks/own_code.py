"""What we wrote ourselves against the library that does the same: CSV, DICOM headers, TIFF layouts, rows by address.

    python benchmarks/own_code.py [--quick] [--work DIR] [--only csv|dicom|tiff|addresses]

Notes in docs/decisions/ explain the tables. Files come from the public test data where $TIMELOOM_DATA has them, else
they are made here. Times are medians of repetitions in turns, of the clock or of the process's own time, whichever is
less. The last line is JSON: a ratio above one means that we are faster; `csv_irregular_right` counts the irregular
files that each reader reads right.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from libraries import csv_files, dicom_headers, row_addresses, tiff_layouts
from libraries.turns import Ratios

PARTS = {
    "csv": csv_files.measure_csv,
    "dicom": dicom_headers.measure_dicom,
    "tiff": tiff_layouts.measure_tiff,
    "addresses": row_addresses.measure_addresses,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute: smaller files, fewer repetitions")
    parser.add_argument("--work", type=Path, help="where files are kept for the next time")
    parser.add_argument("--only", choices=sorted(PARTS), help="one part; the line has its ratios alone")
    options = parser.parse_args()
    named = os.environ.get("TIMELOOM_DATA")
    data = Path(named) if named else None
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    ratios: Ratios = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        for name, measure in PARTS.items():
            if options.only in (None, name):
                ratios |= measure(options.quick, work, data)
                sys.stdout.flush()
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
