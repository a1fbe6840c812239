"""Which trees a night looks through: each modality's raw files, and the vectors that other programs made of them."""

from collections.abc import Iterator
from typing import NamedTuple

from embedders.encoders.spec import EncoderConfig, store_spec
from extractors.extractor import Extractor, ModalitySettings
from extractors.modalities import EXTRACTORS
from extractors.vectors.settings import VECTORS, ImportedConfig, VectorSettings
from pipelines.config import ModalityConfig, RunConfig


class Tree(NamedTuple):
    """A tree by its name: a modality's own, or one of vectors for items that lie in another, `modality.store`.

    Attributes:
        key: where its path stands in the configuration.
    """

    name: str
    extractor: Extractor
    settings: ModalitySettings
    key: str


class Import(NamedTuple):
    """Imported vectors of a modality: who fills their store, and the name of their tree."""

    modality: str
    encoder: EncoderConfig
    declared: ImportedConfig
    store: str
    tree: str


def trees_of(config: RunConfig) -> list[Tree]:
    """Every tree, by name. Where a site has a modality's vectors alone, theirs is the modality's own."""
    found = [*_of_modalities(config), *_of_vectors(config)]
    return sorted(found, key=lambda tree: tree.name)


def imports_of(config: RunConfig) -> Iterator[Import]:
    """Every set of imported vectors, by modality, in the order of the configuration."""
    for modality, block in sorted(config.modalities.items()):
        for encoder in block.all_encoders:
            declared = encoder.imported
            if declared is not None:
                store = store_spec(encoder, modality).store_name
                tree = modality if block.vectors_alone == declared else f"{modality}.{store}"
                yield Import(modality, encoder, declared, store, tree)


def _of_modalities(config: RunConfig) -> Iterator[Tree]:
    for modality, block in config.modalities.items():
        declared = block.vectors_alone
        key = f"modalities.{modality}.path"
        if declared is None:
            yield Tree(modality, EXTRACTORS[modality], block, key)
        else:
            yield Tree(modality, VECTORS, _settings(modality, block, declared), key)


def _settings(modality: str, block: ModalityConfig, declared: ImportedConfig) -> VectorSettings:
    """What vectors need of a modality's block, where they are its items."""
    shared = {name: getattr(block, name) for name in ModalitySettings.model_fields}
    return VectorSettings(path=declared.path, modality=modality, imported=declared).model_copy(update=shared)


def _of_vectors(config: RunConfig) -> Iterator[Tree]:
    for modality, _, declared, _, tree in imports_of(config):
        if tree != modality:
            settings = VectorSettings(path=declared.path, modality=modality, imported=declared)
            yield Tree(tree, VECTORS, settings, f"modalities.{modality}.encoder.imported.path")
