"""The reader alone: a distribution of one package, in an environment that has nothing of the pipeline."""

import ast
import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.light_environments import HOME, LightEnvironment, build_wheel, declared, names

READER = "reader"
# Used where they are installed: graphs of visits are tensors without the one, object stores are not read without the
# other.
OPTIONAL = {"torch_geometric", "fsspec"}
LIBRARIES = ["torch", "numpy", "pyarrow", "polars", "lmdb", "xxhash", "pydantic"]
# What the pipeline imports and the reader must do without.
ABSENT = [
    "prefect", "apache_beam", "great_expectations", "openslide", "pydicom", "duckdb", "transformers", "imagecodecs",
    "tifffile", "nibabel", "numba", "isal", "meds", "matplotlib", "typer", "yaml",
    "extractors", "embedders", "pipelines", "validation", "flows", "trainers",
]  # fmt: skip
# Every batch of an epoch, its images' vectors among them, as one hash.
PROGRAM = """
import hashlib, json, sys
from importlib.util import find_spec
from warehouse import Release

root, absent = sys.argv[1], sys.argv[2:]
release = Release.open(root)
digest, tokens, vectors = hashlib.sha256(), 0, {}
for batch in release.shards("mehrt", split="train", seed=7).batches(4):
    digest.update(batch.input_ids.numpy().tobytes() + batch.labels.numpy().tobytes())
    tokens += int(batch.real.sum())
    for modality, values in batch.item_vectors.items():
        digest.update(values.numpy().tobytes() + batch.item_positions[modality].numpy().tobytes())
        vectors[modality] = vectors.get(modality, 0) + len(values)
item = release.items().filter(verdict="ok", modality="ct").head(1).collect()
print(json.dumps({
    "digest": digest.hexdigest(),
    "tokens": tokens,
    "vectors": vectors,
    "events": release.events("train").collect().height,
    "vector": len(release.vector("ct", item["item_key"][0])),
    "importable": [name for name in absent if find_spec(name)],
    "warehouse": __import__("warehouse").__file__,
}))
"""


def imported(package: str) -> set[str]:
    """The top modules that a room's files import anywhere, at the top or in a function."""
    found = set()
    for path in (HOME / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def test_the_reader_requires_what_its_package_imports() -> None:
    owners = packages_distributions()
    needed = {canonicalize_name(owners[module][0]) for module in imported("warehouse") - {"warehouse"} - OPTIONAL}
    assert needed == names(declared(READER)["dependencies"]) == set(LIBRARIES)


def test_both_distributions_ask_for_the_same_versions() -> None:
    whole, reader = declared(), declared(READER)
    allowed = {*whole["dependencies"], *whole["optional-dependencies"]["reader"]}
    assert set(reader["dependencies"]) <= allowed
    for key in ("version", "requires-python", "license", "authors"):
        assert reader[key] == whole[key]


def test_the_reader_names_every_folder_of_its_package() -> None:
    import tomllib

    settings = tomllib.loads((HOME / READER / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(HOME) for path in (HOME / "warehouse").rglob("*.py")}
    assert set(settings["packages"]) == {".".join(folder.parts) for folder in folders}


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> LightEnvironment:
    """An environment of the reader alone."""
    folder = tmp_path_factory.mktemp("light")
    return LightEnvironment(folder / "env", build_wheel(folder, READER), declared(READER)["dependencies"])


@pytest.mark.whole
def test_nothing_of_ours_but_the_warehouse_is_installed(light: LightEnvironment) -> None:
    (information,) = (name for name in light.installed if name.endswith(".dist-info"))
    assert light.installed == {"warehouse", information}
    assert {path.name for path in light.packages.joinpath(information).rglob("LICENSE")} == {"LICENSE"}


@pytest.mark.whole
def test_the_reader_alone_gives_the_batches_of_the_whole(
    light: LightEnvironment, demo_release: Path, tmp_path: Path
) -> None:
    program = ["-c", PROGRAM, str(demo_release), *ABSENT]
    done = light.run(program, tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["importable"] == []
    assert Path(seen["warehouse"]).is_relative_to(light.packages)
    assert min(seen["vectors"]["ct"], seen["vectors"]["wsi"], seen["tokens"], seen["events"]) > 0
    assert seen["vector"] == 1024
    whole = json.loads(subprocess.check_output([sys.executable, *program], cwd=HOME, text=True))
    assert set(whole["importable"]) == set(ABSENT), "the names are those of modules"
    varying = {"importable", "warehouse"}
    assert {key: whole[key] for key in whole.keys() - varying} == {key: seen[key] for key in seen.keys() - varying}
