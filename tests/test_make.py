"""Every target that the Makefile promises does something; the continuous build refuses a run of no test."""

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
PROMISED = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
TARGETS = PROMISED[1].split() if PROMISED else []
# The recipe of `make test` as it stood when a merge had taken its first line, and with it every test.
WITHOUT_TEST = re.sub(r"^test: .*\n", ".PHONY: test\n", MAKEFILE, flags=re.MULTILINE)


def commands(folder: Path, target: str) -> str:
    """What make would run."""
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", target], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_a_recipe_and_a_line_of_help(target: str) -> None:
    assert re.search(rf"^{target}:.*  ## \w", MAKEFILE, re.MULTILINE)
    assert "Nothing to be done" not in commands(REPOSITORY, target)


def test_the_tests_are_run() -> None:
    assert len(TARGETS) > 5
    assert "-m pytest -n 2" in commands(REPOSITORY, "test")


def test_the_build_refuses_a_run_of_no_test(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_bytes((REPOSITORY / ".ci/run").read_bytes())
    (tmp_path / "Makefile").write_text(WITHOUT_TEST, encoding="utf-8")
    assert WITHOUT_TEST != MAKEFILE
    build = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True)
    assert build.returncode == 1
    assert build.stderr.splitlines() == ["make test would run no test: see the target in Makefile"]
