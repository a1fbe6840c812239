"""The folders that a run reads and writes, held against each other before anything is read."""

from collections.abc import Iterator
from pathlib import Path

from extractors.extractor import imported
from extractors.modalities import EXTRACTORS
from extractors.vectors.check import check_vectors
from flows.extras import require
from flows.runs.root import bind_root, is_used, with_numbers
from flows.runs.settings import RunSettings
from pipelines.config import RunConfig, load_config
from pipelines.night import exports_of
from pipelines.trees import imports_of
from warehouse.configuration import is_address
from warehouse.errors import TimeloomError
from warehouse.layout import Layout


def local_folder(path: Path, option: str) -> Path:
    """A folder of this machine, absolute.

    Raises:
        TimeloomError: the path is an address, such as that of an object store.
    """
    if is_address(path):
        raise TimeloomError(
            f"{option} takes a folder of this machine, and got an address",
            remedy="mount the store, or copy what is published to it",
        )
    return path.expanduser().resolve()


def configured(settings: RunSettings) -> tuple[RunConfig, Layout]:
    """The configuration of a run and the layout of its root, before anything raw is read.

    Raises:
        TimeloomError: the configuration or a source is wrong, no root is named, a path does not do, a table is missing,
            or the root is of another site or was made otherwise.
    """
    config = load_config(settings.config)
    if config.modalities:
        require("images", "images")
    layout = Layout(root_of(config, settings.root))
    check_paths(config, layout)
    base = settings.config.parent.resolve()
    for export in exports_of(config, base):
        export.mapped()
    if is_used(layout):
        bind_root(layout, with_numbers(config, base, layout), settings.limit, new=False)
    return config, layout


def root_of(config: RunConfig, root: Path | None) -> Path:
    """The warehouse's folder.

    Raises:
        TimeloomError: neither the command nor the configuration names one, or it is an address.
    """
    chosen = root or config.root
    if chosen is None:
        raise TimeloomError("no root was given", remedy="use --root, or `root:` in the configuration")
    return local_folder(chosen, "--root")


def check_paths(config: RunConfig, layout: Layout, *written: Path) -> None:
    """Refuses a configuration whose files are missing, lie where the run writes, or are not what a table names.

    A root inside an export would be read as tables the next night, and an export inside a root be lost with it.

    Args:
        written: further folders that are written, such as `--out`.

    Raises:
        TimeloomError: naming the key.
    """
    raw = list(_raw(config))
    for key, path in (*raw, *_supplied(config)):
        if not path.exists():
            raise TimeloomError(f"{key} does not exist: {path}", remedy=f"mend {key} in the configuration")
    for folder in (layout.root, layout.private, *written):
        for key, path in raw:
            if _is_within(folder, path):
                raise TimeloomError(f"{folder.name} lies in the raw files of {key}", remedy="write to another folder")
            if _is_within(path, folder):
                raise TimeloomError(f"the raw files of {key} lie in {folder.name}", remedy="write to another folder")
    for name, block in config.modalities.items():
        check = EXTRACTORS[name].check
        if check and not block.vectors_alone:
            imported(check)(block)
    for each in imports_of(config):
        check_vectors(each.declared, f"modalities.{each.modality}.encoder.imported")


def _raw(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """The key and the path of every export and every tree of images."""
    for number, source in enumerate(config.sources):
        yield f"sources.{number}.path", source.path
    for name, block in config.modalities.items():
        yield f"modalities.{name}.path", block.path
    for each in imports_of(config):
        if each.tree != each.modality:
            yield f"modalities.{each.modality}.encoder.imported.path", each.declared.path


def _supplied(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """The key and the path of every single file that the site supplies besides."""
    for number, source in enumerate(config.sources):
        for name, path in source.crosswalks.items():
            yield f"sources.{number}.crosswalks.{name}", path
    for name, block in config.modalities.items():
        if block.crosswalk is not None:
            yield f"modalities.{name}.crosswalk.file", block.crosswalk.file
        yield from ((f"modalities.{name}.{key}", path) for key, path in block.tables.items())
    for each in imports_of(config):
        if each.declared.index is not None:
            yield f"modalities.{each.modality}.encoder.imported.index", each.declared.index
    if config.merges is not None:
        yield "merges", config.merges


def _is_within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
