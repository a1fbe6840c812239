"""The example trainer learns from order: well below a unigram model, and not so when sequences are shuffled.

The gap on a real release is smaller than on a Markov chain: most of a record's codes are rare.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tokens.markov import fabricate, markov_timelines

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "train_llama.py"
MARGIN = 0.15


def run_example(root, *options, code=0):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root), *options], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def result_of(root, *options):
    return json.loads(run_example(root, *options).stdout.splitlines()[-1])


def learns(result):
    return result["val_nll"] < (1 - MARGIN) * result["unigram_nll"]


@pytest.fixture(scope="module")
def markov(tmp_path_factory):
    lines = markov_timelines(90, seed=1, length=100)
    return fabricate(tmp_path_factory.mktemp("markov") / "root", lines, context=512)


def test_a_markov_chain_is_learned_and_its_shuffle_is_not(markov):
    ordered, shuffled = (result_of(markov, "--steps", "40", *control) for control in ((), ("--shuffle-within",)))
    assert ordered["steps"] == shuffled["steps"] == 40
    # The chain's entropy is 0.64 nats; it is nearly reached.
    assert ordered["val_nll"] < 0.5 * ordered["unigram_nll"]
    assert shuffled["val_nll"] > 0.95 * shuffled["unigram_nll"]


@pytest.mark.proof
def test_the_demo_release_is_learned_and_its_shuffle_is_not(demo_release):
    ordered = result_of(demo_release, "--steps", "200")
    assert learns(ordered), ordered
    shuffled = result_of(demo_release, "--steps", "200", "--shuffle-within")
    assert not learns(shuffled), shuffled


def test_a_root_without_a_release_gets_one_line(tmp_path):
    done = run_example(tmp_path, code=1)
    assert done.stderr.splitlines()[-1].endswith("has no published release; run `timeloom run` first")
    assert "Traceback" not in done.stderr
