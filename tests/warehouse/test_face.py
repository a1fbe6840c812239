"""The face of the warehouse: what modelers import is one list, and documents and examples import nothing else of it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import warehouse

REPOSITORY = Path(__file__).parents[2]
FACE = {
    "NO_TIME", "Batch", "Curriculum", "Features", "Mixture", "ProbeBatch", "ProbeDataset", "Prompt", "Release",
    "ShardDataset", "TimeloomError", "attention", "scaling",
}  # fmt: skip
_IMPORT = re.compile(r"\s*(?:from warehouse[\w.]* import [\w, ]+|import warehouse[\w.]*)")
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def imports(code: str) -> set[str]:
    """What a piece of code imports of the warehouse, as `name`, or as `module.name` where that is not its face."""
    found = set()
    # Line by line: a document may show a part of a file, which is no whole program.
    lines = "\n".join(line.strip() for line in code.splitlines() if _IMPORT.match(line))
    for node in ast.walk(ast.parse(lines)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "warehouse":
            below = node.module.removeprefix("warehouse").removeprefix(".")
            found |= {f"{below}.{name.name}" if below else name.name for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("warehouse.")}
    return found


def test_the_face_is_this_list_and_every_name_of_it_is_there() -> None:
    assert set(warehouse.__all__) == FACE
    assert all(getattr(warehouse, name) is not None for name in FACE)
    assert set(dir(warehouse)) >= FACE


def test_documents_and_examples_import_the_face_alone() -> None:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    code = [block for page in pages for block in _CODE.findall(page.read_text(encoding="utf-8"))]
    code += [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs" / "examples").glob("*.py"))]
    imported = set().union(*map(imports, code))
    assert "Release" in imported
    assert imported <= FACE


def test_an_import_behind_the_face_would_be_seen() -> None:
    assert imports("from warehouse.readers.batch import Batch") == {"readers.batch.Batch"}
    assert imports("import warehouse.tokens") == {"warehouse.tokens"}


def test_the_face_alone_imports_no_torch() -> None:
    program = "import sys, warehouse; warehouse.TimeloomError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=REPOSITORY).returncode == 0
