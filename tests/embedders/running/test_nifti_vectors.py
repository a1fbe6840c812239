"""The same volume as DICOM and as NIfTI gives the same vectors, by any number of decoders, in bounded memory."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedders.encoders.build import Encoder, EncoderConfig, get_encoder
from embedders.running.runner import ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.store_bucket import Bucket
from extractors.ct.index import index_ct, read_ct_units
from extractors.items import FoundItem
from tests.support.images.ct_trees import request, usable
from tests.support.images.nifti import affine_of, body, edit, write_dicom, write_nifti
from warehouse.embeddings.store import EmbeddingStore, close_stores, content_hash

# In `make test` alone: an encoder, decoders, and a volume of 100 MB.
pytestmark = pytest.mark.whole

ISOTROPIC, OBLONG = (1.0, 1.0, 2.0), (0.9, 1.2, 2.5)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    config = EncoderConfig(name="random-dinov2", width=64, device="cpu", batch_size=12, store_dtype="float32")
    return get_encoder(config, "ct")


def items_of(root: Path, found: list[FoundItem]) -> list[ItemToEmbed]:
    return [
        ItemToEmbed(item.paths[0], "ct", root, item.paths, item.geometry, item.units_expected or 0)
        for item in found
        if item.verdict == "ok"
    ]


def embedded(items: list[ItemToEmbed], encoder: Encoder, store: Path, decoders: int = 0) -> str:
    results, _ = embed_buckets([Bucket(store, encoder.spec, items, lambda: encoder)], RunnerSettings(decoders))
    assert {result.verdict for result in results[store]} == {"ok"}
    close_stores()
    return content_hash(store)


@pytest.mark.parametrize("spacing", [ISOTROPIC, OBLONG])
def test_dicom_and_nifti_give_the_same_vectors(tmp_path: Path, encoder: Encoder, spacing: tuple[float, ...]) -> None:
    tree, volume = tmp_path / "tree", body()
    sides: Any = spacing
    write_dicom(tree / "dicom", volume, sides)
    ways = {
        "ras.nii": ("RAS", np.int16),
        "lps.nii.gz": ("LPS", np.int16),
        "coronal.nii.gz": ("RSA", np.int32),
        "sagittal.nii": ("PIR", np.float32),
        "float.nii.gz": ("LAS", np.float64),
    }
    for name, (axes, dtype) in ways.items():
        write_nifti(tree / name, volume, axes, spacing=sides, dtype=dtype)
    write_nifti(tree / "scaled.nii.gz", np.rint((volume + 1024) / 2), "RPI", spacing=sides)
    edit(tree / "scaled.nii.gz", scl_slope=2, scl_inter=-1024)
    write_dicom(tree / "mirrored", volume[::-1], sides, series="5", StudyInstanceUID="2.25.95")
    items = items_of(tree, index_ct(tree))
    assert len(items) == 8
    embedded(items, encoder, tmp_path / "s.lmdb")
    store = EmbeddingStore.open(tmp_path / "s.lmdb")
    vectors = {item.item_key.partition("/")[0].partition("!")[0]: store.get(item.item_key) for item in items}
    size = np.linalg.norm(vectors["dicom"])
    apart = {name: float(np.linalg.norm(vector - vectors["dicom"]) / size) for name, vector in vectors.items()}
    assert max(apart[name] for name in ways) <= 1e-3, apart
    assert apart["scaled.nii.gz"] <= 1e-2, apart
    # The measure sees a mirrored patient.
    assert apart["mirrored"] > 5e-3, apart


def test_the_same_bits_for_any_number_of_decoders(tmp_path: Path, encoder: Encoder) -> None:
    for number, axes in enumerate(("LPS", "RSA", "PIR", "RAS")):
        write_nifti(tmp_path / "tree" / f"{number}.nii{'.gz' * (number % 2)}", body(seed=number), axes)
    items = items_of(tmp_path / "tree", index_ct(tmp_path / "tree"))
    assert len(items) == 4
    hashes = {embedded(items, encoder, tmp_path / f"{decoders}.lmdb", decoders) for decoders in (0, 1, 2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("axes", ["LPS", "LSP", "SLP"])
def test_a_volume_is_never_whole_in_memory(tmp_path: Path, axes: str) -> None:
    """100 MB of float64 in slices of half a megabyte, plain and compressed."""
    small = np.repeat(np.repeat(body((64, 64, 200)), 4, axis=0), 4, axis=1)
    path = write_nifti(tmp_path / "v.nii", small, axes, dtype=np.float64)
    size = path.stat().st_size
    assert size > 100e6
    if axes == "SLP":
        path.with_suffix(".nii.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()
    del small
    tracemalloc.start()
    item = usable(tmp_path)
    for batch in read_ct_units(request(item, tmp_path), 16):
        assert batch.pixels.dtype == np.float32
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Stored slices of 64 MiB at once and as many values of half their size where a slice lies all over the file.
    assert peak < (60e6 if axes == "LPS" else 180e6), peak / size


def test_affine_of_a_volume_is_that_of_the_dicom(tmp_path: Path) -> None:
    write_dicom(tmp_path, body())
    first = index_ct(tmp_path)[0]
    assert np.allclose(np.abs(np.diag(affine_of())[:3]), [*first.geometry["spacing_mm"], first.geometry["gap_mm"]])
