"""Data Docs: a suite's pages are those of the release before as long as they would say the same."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipelines.engine.context import Standing
from validation.areas.area import Area, Expectation
from validation.gate.data_docs import write_docs
from validation.gate.great_expectations import Answer, run_suites
from warehouse.files import hash_file
from warehouse.layout import ReleaseLayout
from warehouse.manifest import FileEntry, Manifest

# In `make test` alone: each test runs Great Expectations.
pytestmark = pytest.mark.whole

LOST = Expectation("lost", "No toy is lost.")
TOYS = Area("toys", lambda _: pl.DataFrame(), (LOST, Expectation("broken", "No toy is broken.", severity="warning")))
BOOKS = Area("books", lambda _: pl.DataFrame(), (replace(LOST, sentence="No book is lost."),))
RIGHT = {"toys": pl.DataFrame({"lost": [0], "broken": [0]}), "books": pl.DataFrame({"lost": [0, 0]})}


def judged(**frames: pl.DataFrame) -> Mapping[str, Answer]:
    return run_suites({**RIGHT, **frames}, (TOYS, BOOKS))


def published(tree: ReleaseLayout) -> Standing:
    """The tree as a release, as far as Data Docs look at one."""
    files = {}
    for path in tree.path.rglob("*.html"):
        strong, fast = hash_file(path)
        files[str(path.relative_to(tree.path))] = FileEntry(sha256=strong, bytes=path.stat().st_size, xxh3=fast)
    return Standing(Manifest.model_construct(files=files), tree.path)


@pytest.fixture(scope="module")
def right() -> Mapping[str, Answer]:
    return judged()


@pytest.fixture
def before(tmp_path: Path, right: Mapping[str, Answer]) -> Standing:
    tree = ReleaseLayout(tmp_path / "before")
    write_docs(tree.quality / "data_docs", (TOYS, BOOKS), right, None)
    return published(tree)


def shared(before: Standing, docs: Path) -> set[str]:
    """The suites whose pages are the same files as those of the release before."""
    of_pages: dict[str, list[bool]] = {}
    for page in (path for path in docs.rglob("*.html") if path.name != "index.html"):
        former = ReleaseLayout(before.path).quality / "data_docs" / page.relative_to(docs)
        name = page.stem if page.parent.name == "expectations" else page.parent.name
        of_pages.setdefault(name, []).append(former.exists() and former.samefile(page))
    assert all(len(pages) == 2 and len(set(pages)) == 1 for pages in of_pages.values())
    return {name for name, pages in of_pages.items() if all(pages)}


def test_each_area_is_answered_by_its_frame(right: Mapping[str, Answer]) -> None:
    """They are judged one after the other under one name, and both have a column `lost`."""
    assert all(all(answer.success.values()) for answer in right.values())
    answers = judged(toys=pl.DataFrame({"lost": [1], "broken": [0]}))
    assert answers["toys"].success == {"toys.lost": False, "toys.broken": True}
    assert answers["books"].success == {"books.lost": True}
    answers = judged(books=pl.DataFrame({"lost": [0, 2]}))
    assert answers["toys"].success == {"toys.lost": True, "toys.broken": True}
    assert answers["books"].success == {"books.lost": False}


def test_pages_that_say_the_same_are_those_of_the_release_before(
    tmp_path: Path, before: Standing, right: Mapping[str, Answer]
) -> None:
    docs = ReleaseLayout(tmp_path / "now").quality / "data_docs"
    write_docs(docs, (TOYS, BOOKS), right, before)
    assert shared(before, docs) == {"toys", "books"}


def reworded(answers: Mapping[str, Answer]) -> tuple[Area, Mapping[str, Answer]]:
    other = replace(TOYS, expectations=(replace(LOST, sentence="Every toy is there."), *TOYS.expectations[1:]))
    return other, {**answers, **run_suites({**RIGHT}, (other,))}


def broken(answers: Mapping[str, Answer]) -> tuple[Area, Mapping[str, Answer]]:
    return TOYS, {**answers, **run_suites({"toys": pl.DataFrame({"lost": [0], "broken": [1]})}, (TOYS,))}


@pytest.mark.parametrize(("change", "said"), [(reworded, "Every toy is there"), (broken, "Unsuccessful")])
def test_a_suite_that_expects_or_finds_something_else_is_printed(
    tmp_path: Path,
    before: Standing,
    right: Mapping[str, Answer],
    change: Callable[[Mapping[str, Answer]], tuple[Area, Mapping[str, Answer]]],
    said: str,
) -> None:
    area, answers = change(right)
    docs = ReleaseLayout(tmp_path / "now").quality / "data_docs"
    write_docs(docs, (area, BOOKS), answers, before)
    assert shared(before, docs) == {"books"}
    (page,) = (docs / "validations" / "toys").iterdir()
    assert said in page.read_text(encoding="utf-8")
    index = (docs / "index.html").read_text(encoding="utf-8")
    assert f"validations/toys/{page.name}" in index
    assert ("text-danger" in index) == (change is broken)


def test_a_damaged_page_is_printed_again(tmp_path: Path, before: Standing, right: Mapping[str, Answer]) -> None:
    page = ReleaseLayout(before.path).quality / "data_docs" / "expectations" / "toys.html"
    page.write_bytes(page.read_bytes().replace(b"lost", b"l0st", 1))
    docs = ReleaseLayout(tmp_path / "now").quality / "data_docs"
    write_docs(docs, (TOYS, BOOKS), right, before)
    assert shared(before, docs) == {"books"}
    assert b"l0st" not in (docs / "expectations" / "toys.html").read_bytes()


def test_what_is_not_imported_with_it_is_there_for_all_others() -> None:
    program = (
        "import sys\n"
        "from validation.gate.lean_import import great_expectations\n"
        "great_expectations()\n"
        "heavy = {'scipy.stats._stats_py', 'altair.vegalite', 'sqlalchemy'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
        "import altair, sqlalchemy\n"
        "from scipy import stats\n"
        "print(stats.norm.cdf(0), altair.Chart.__name__, sqlalchemy.true())\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["", "0.5 Chart true"]
