"""The documentation as a site: it builds without a warning, fetches nothing when it is read, and has the API."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import warehouse

HOME = Path(__file__).parents[2]
API = HOME / "docs" / "api"
# What a browser fetches by itself, by element: a link in a text is followed only by a reader.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
REMOTE = re.compile(r"^\s*(https?:)?//", re.I)
REMOTE_CSS = re.compile(r"(?:@import\s+|url\()\s*[\"']?\s*(?:https?:)?//", re.I)

pytestmark = pytest.mark.whole


def build(home: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    """What `make docs` runs."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = build(HOME, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Requests(HTMLParser):
    """Collects what a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attributes if name == FETCHED.get(tag) and value]


def remote_requests(text: str) -> list[str]:
    """The requests of a page that leave its site."""
    page = Requests()
    page.feed(text)
    return [address for address in page.found if REMOTE.match(address)] + REMOTE_CSS.findall(text)


def test_a_remote_request_would_be_seen() -> None:
    for planted in (
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "<style>@import url(https://fonts.example/css)</style>",
    ):
        assert remote_requests(planted), planted
    assert remote_requests('<a href="https://example.org">a link</a><img src="assets/x.png">') == []


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {page.name: found for page in pages if (found := remote_requests(page.read_text("utf-8")))} == {}
    styles = list(site.rglob("*.css"))
    assert styles
    assert [style.name for style in styles if REMOTE_CSS.search(style.read_text("utf-8"))] == []


def test_every_document_is_a_page_and_found_by_the_search(site: Path) -> None:
    import json

    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    documents = [path.relative_to(HOME / "docs") for path in (HOME / "docs").rglob("*.md")]
    pages = {
        str(path.parent / "index.html" if path.name == "README.md" else path.with_suffix(".html")) for path in documents
    }
    assert pages | {"contributing.html", "changelog.html"} <= found
    assert (site / "search" / "search_index.js").is_file(), "the search works on pages opened from a disk"


def test_the_reference_has_every_name_that_its_pages_ask_for(site: Path) -> None:
    for page in API.glob("*.md"):
        built = (site / "api" / page.with_suffix(".html").name).read_text("utf-8")
        for block in page.read_text("utf-8").split("\n::: ")[1:]:
            name, _, options = block.partition("\n")
            members = re.search(r"members: (\[.*\])", options.partition("\n#")[0])
            for asked in [f"{name}.{member}" for member in yaml.safe_load(members[1])] if members else [name]:
                assert f'id="{asked}"' in built, asked


def test_the_reference_of_the_warehouse_is_its_face() -> None:
    names = re.findall(r"^::: warehouse\.(\w+)$", (API / "warehouse.md").read_text("utf-8"), flags=re.M)
    assert set(names) == set(warehouse.__all__)


def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    litter = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "site", "tests", "benchmarks")
    shutil.copytree(HOME, copy, ignore=litter)
    page = copy / "docs" / "verdicts.md"
    page.write_text(page.read_text("utf-8") + "\nSee [what is not there](absent.md).\n", encoding="utf-8")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    assert "absent.md" in done.stderr
