"""A small simulated hospital whose images are ready vectors, and the sites of nights over it."""

from pathlib import Path
from typing import Any

import yaml

from extractors.simulate.large import simulate_large
from tests.support.nights.site import Site

SUBJECTS, BUCKETS = 60, 4


def vector_hospital(folder: Path) -> Path:
    """Tables, and vectors of CT and slides, of SUBJECTS patients."""
    simulate_large(folder, subjects=SUBJECTS, imaging_share=0.5, workers=1)
    return folder


def vector_site(folder: Path, hospital: Path, **config: Any) -> Site:
    """A site over it, of BUCKETS buckets, which only reads it.

    Args:
        config: what its configuration has besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = yaml.safe_load((hospital / "large.yaml").read_text(encoding="utf-8"))
    given["sources"][0]["path"] = str(hospital / given["sources"][0]["path"])
    for block in given["modalities"].values():
        block["crosswalk"]["file"] = str(hospital / block["crosswalk"]["file"])
        imported = block["encoder"]["imported"]
        imported["path"] = str(hospital / imported["path"])
    return Site(folder, {**given, "buckets": BUCKETS, "limits": {"unparsable_times": 0.05}, **config})
