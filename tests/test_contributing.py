"""CONTRIBUTING.md names files and definitions that exist."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
_FILE = r"`((?:tests|extractors|pipelines|embedders|validation|flows|warehouse|docs)/[\w./-]*)`"
# "`STAGES` of `pipelines/stages.py`"
_NAMED = re.compile(r"`(\w+)`\s+of\s+" + _FILE)


def missing(text: str) -> list[str]:
    """Paths that are not there, and names that their file does not define."""
    absent = [path for path in re.findall(_FILE, text) if not (REPOSITORY / path).exists()]
    for name, path in _NAMED.findall(text):
        file = REPOSITORY / path
        defined = rf"^(?: {{4}})?(?:def |class )?{name}\b"
        if file.is_file() and not re.search(defined, file.read_text(encoding="utf-8"), re.MULTILINE):
            absent.append(f"{name} of {path}")
    pages = re.findall(r"\bdocs/[\w-]+\.md\b", text)
    return absent + [page for page in pages if not (REPOSITORY / page).is_file()]


def test_every_name_exists() -> None:
    assert len(re.findall(_FILE, TEXT)) > 15
    assert len(_NAMED.findall(TEXT)) >= 5
    assert missing(TEXT) == []


def test_a_name_that_is_gone_would_be_seen() -> None:
    assert missing("`pipelines/gone.py`") == ["pipelines/gone.py"]
    assert missing("`GONE` of `pipelines/stages.py`") == ["GONE of pipelines/stages.py"]
    assert missing("see docs/gone.md") == ["docs/gone.md"]
