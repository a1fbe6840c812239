"""The example trainer with images learns what the simulator plants in them, and nothing from other patients' images."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from extractors.simulate import simulate
from flows.commands.demo import config_text

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "train_llama.py"
# X-rays stay out: behind a film's report stands no finding.
KINDS = {"images": ("ct", "wsi"), "signals and texts": ("ecg", "note")}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def imaging_root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital whose every patient has items of two kinds, run for real and published."""
    folder = tmp_path_factory.mktemp("imaging")
    simulate(folder / "hospital", subjects=120, seed=3, imaging_share=1.0, modalities=request.param)
    splits = "splits: {images: {train: 0.7, tuning: 0.15, held_out: 0.15}}\nbuckets: 4\n"
    (folder / "run.yaml").write_text(config_text(request.param) + splits, encoding="utf-8")
    command = [sys.executable, "-m", "flows.cli", "run", str(folder / "run.yaml"), "--direct", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return folder / "warehouse"


def trained(root: Path, images: str) -> dict[str, Any]:
    options = ["--steps", "100", "--images", images, "--validate", "tuning", "held_out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *options], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.proof
def test_images_tell_what_follows_them_and_another_patients_images_do_not(imaging_root: Path) -> None:
    real, none, permuted = (trained(imaging_root, images) for images in ("real", "none", "permuted"))
    assert real["after_image_targets"] == none["after_image_targets"] == permuted["after_image_targets"] >= 60
    # The code behind an image is one of four, equally likely without the image: ln 4 = 1.386 nats.
    assert none["after_image_nll"] > 1.2
    assert gain(real, none) >= 0.10
    # At most 1 % with 2,000 images (README); so few leave the error of their number beside it.
    assert gain(permuted, none) <= 0.01 + 2 * none["after_image_error"]


def gain(result: dict[str, Any], without: dict[str, Any]) -> float:
    """By how much lower the perplexity behind images is than without images."""
    return 1 - math.exp(result["after_image_nll"] - without["after_image_nll"])
