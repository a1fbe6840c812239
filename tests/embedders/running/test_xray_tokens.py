"""Tokens of units: what the store holds of them, and how it is read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedders.encoders.build import EncoderConfig, build_encoder
from embedders.encoders.heads import transformer
from embedders.running.runner import ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.store_bucket import Bucket
from extractors.cxr.read import read_views
from extractors.cxr.settings import CXR, CxrSettings
from extractors.items import UnitRequest
from tests.support.images.xrays import chest, write_film
from warehouse.embeddings.store import EmbeddingStore, close_stores

# In `make test` alone: it builds a network of the published width.
pytestmark = pytest.mark.whole

TINY = {
    "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "patch_size": 56, "image_size": 224,
}  # fmt: skip
TOKENS = 1 + 4 * 4


def test_an_x_ray_is_a_sequence_of_its_patches(tmp_path: Path) -> None:
    for number in range(3):
        write_film(tmp_path / "films" / f"{number}.dcm", chest(number), PatientID=str(number))
    torch.manual_seed(0)
    save_file(transformer(TINY).state_dict(), tmp_path / "w.safetensors")
    config = EncoderConfig(
        name="vit-mae", width=768, weights=tmp_path / "w.safetensors", device="cpu", output="sequence",
        store_dtype="float32",
    )  # fmt: skip
    encoder = build_encoder(config, "cxr", TINY)
    found = CXR.index_items(CxrSettings(path=tmp_path / "films"), None, workers=1)
    items = [ItemToEmbed(item.identity, "cxr", tmp_path / "films", item.paths, item.geometry, 1) for item in found]
    store = tmp_path / "store.lmdb"
    results, _ = embed_buckets([Bucket(store, encoder.spec, items, lambda: encoder)], RunnerSettings())
    assert {(result.verdict, result.units_encoded, result.dim) for result in results[store]} == {("ok", 1, 768)}
    close_stores()
    reader = EmbeddingStore.open(store)
    for item in items:
        (batch,) = read_views(UnitRequest(item.root, item.paths, item.geometry), 1)
        (expected,) = encoder.encode(batch.pixels)
        assert np.array_equal(reader.get(item.item_key), expected)
        assert reader.header(item.item_key).n_units == 1
        assert reader.places(item.item_key).tolist() == [[0, number] for number in range(TOKENS)]
    close_stores()
