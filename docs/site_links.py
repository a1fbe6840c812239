"""Links of the documents that leave docs/, for the site: what they lead to becomes a part of it.

On a code-hosting page such a link leads to the repository's file. The site has no repository beside it, so it takes
each such file in: a document as a page, any other file as it is, under `repository/`.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HOME = Path(__file__).parents[1]
DOCS = "docs"
# The repository's documents outside docs/ that are pages, by their path in the site.
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def in_site(path: str) -> str:
    """Where the site has a file of the repository."""
    pages = {outside: page for page, outside in PAGES.items()}
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    return pages.get(path, f"repository/{path}")


def targets(document: str) -> set[str]:
    """The repository's paths that a document of the repository links to."""
    text = (HOME / document).read_text(encoding="utf-8")
    folder = posixpath.dirname(document)
    return {posixpath.normpath(posixpath.join(folder, match["path"])) for match in LINK.finditer(text)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/, and the files outside it that documents link to."""
    for page, document in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(HOME / document)))
    documents = [str(Path(DOCS) / file.src_uri) for file in files if file.is_documentation_page()]
    linked = {target for document in documents if (HOME / document).is_file() for target in targets(document)}
    linked |= {target for document in PAGES.values() for target in targets(document)}
    for path in sorted(linked):
        if not path.startswith(f"{DOCS}/") and path not in PAGES.values() and (HOME / path).is_file():
            files.append(File.generated(config, in_site(path), abs_src_path=str(HOME / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between files of the site."""
    document = PAGES.get(page.file.src_uri, f"{DOCS}/{page.file.src_uri}")

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(document), match["path"]))
        if (HOME / target).is_dir():
            target += "/README.md"
        path = posixpath.relpath(in_site(target), posixpath.dirname(page.file.src_uri) or ".")
        return path + (match["anchor"] or "")

    return LINK.sub(rewritten, markdown)
