"""What a configuration says of several encoders: their names, and the one that each profile takes."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embedders.encoders.spec import EncoderConfig, cut_for, store_spec
from embedders.running.spans import ItemToEmbed
from extractors.note.check import check
from pipelines.config import RunConfig, parse_config
from pipelines.profiles.choosing import items_with_vectors
from pipelines.scan import settings_of
from pipelines.stores import units_of_items as units_of
from tests.support import patients
from tests.support.notes import write_discharge
from warehouse.errors import TimeloomError
from warehouse.items import each_once

RANDOM = {"name": "random-dinov2", "width": 64}
SMALL = {"name": "random-dinov2", "width": 32, "alias": "small"}


def config_of(block: dict[str, Any], **profiles: Any) -> RunConfig:
    """A run with CT alone."""
    raw: dict[str, Any] = {
        "sources": [{"source": "simulated-hospital", "path": "tables"}],
        "modalities": {"ct": {"path": "ct", **block}},
        "profiles": profiles or {"mehrt": {}},
    }
    return parse_config(raw, Path(), "run.yaml")


def test_a_profile_takes_the_only_encoder_or_the_one_that_it_names() -> None:
    for block in ({"encoder": RANDOM}, {"encoders": [RANDOM]}):
        assert config_of(block).profile("mehrt").encoders == {"ct": "random-dinov2"}
    several = config_of(
        {"encoders": [RANDOM, SMALL]}, mehrt={"encoders": {"ct": "random-dinov2"}}, other={"encoders": {"ct": "small"}}
    )
    assert [several.profile(name).encoders["ct"] for name in ("mehrt", "other")] == ["random-dinov2", "small"]
    assert several.profile("mehrt").token_rules() == several.profile("other").token_rules(), "no rule of a token"


@pytest.mark.parametrize(
    ("block", "profile", "said"),
    [
        ({}, {}, "modalities.ct: give `encoder`, or `encoders` for several, and not both"),
        ({"encoder": RANDOM, "encoders": [SMALL]}, {}, "give `encoder`, or `encoders` for several, and not both"),
        ({"encoders": []}, {}, "modalities.ct.encoders"),
        ({"encoders": [RANDOM, RANDOM]}, {}, "two encoders are called random-dinov2: give one of them an alias"),
        ({"encoders": [RANDOM, SMALL]}, {}, r"set profiles.mehrt.encoders.ct to one of random-dinov2, small"),
        ({"encoders": [RANDOM, SMALL]}, {"encoders": {"ct": "smal"}}, "ct has no encoder smal: random-dinov2, small"),
        ({"encoder": RANDOM}, {"encoders": {"ecg": "small"}}, "modalities has no block ecg"),
        ({"encoders": [RANDOM, {**SMALL, "widht": 1}]}, {}, r"ct.encoders.1.widht is unknown, did you mean width\?"),
        ({"encoders": [RANDOM, {"name": "random-ecg", "width": 8}]}, {}, "takes signals, and units of ct are images"),
    ],
)
def test_what_cannot_be_meant_is_one_line(block: dict[str, Any], profile: dict[str, Any], said: str) -> None:
    with pytest.raises(TimeloomError, match=said) as raised:
        config_of(block, mehrt=profile)
    assert "\n" not in raised.value.message


def test_an_index_does_not_hang_on_encoders() -> None:
    blocks = [config_of({"encoder": RANDOM}), config_of({"encoders": [SMALL]})]
    first, second = (settings_of(config.modalities["ct"]) for config in blocks)
    assert first == second and "geometry" in first


def test_an_image_is_a_token_where_its_profile_s_encoder_made_a_vector(tmp_path: Path) -> None:
    tree = patients.make_tree(tmp_path)
    items = pl.concat([pl.read_parquet(path) for path in sorted(tree.path.glob("items/*.parquet"))])
    bucket = next(number for number in range(4) if "ct-a" in pl.read_parquet(tree.items(number))["item_key"])
    lacking = pl.when(pl.col("item_key") == "ct-a").then(pl.lit("failed_not_finite")).otherwise("verdict")
    second = items.filter(pl.col("modality") == "ct", pl.col("verdict") == "ok").with_columns(
        pl.lit("second-0123").alias("store"), lacking.alias("verdict")
    )
    of_bucket = pl.col("item_key").is_in(pl.read_parquet(tree.items(bucket))["item_key"].implode())
    pl.concat([items, second]).filter(of_bucket).write_parquet(tree.items(bucket))
    stores = dict(items.drop_nulls("store").select("modality", "store").unique().iter_rows())

    found = items_with_vectors(tree, bucket, stores).to_list()
    assert "ct-a" in found and found == items_with_vectors(tree, bucket, {}).to_list(), (
        "any will do where none is named"
    )
    other = items_with_vectors(tree, bucket, {**stores, "ct": "second-0123"}).to_list()
    assert other == [key for key in found if key != "ct-a"]


def test_an_item_of_several_rows_is_usable_where_any_is() -> None:
    rows = pl.DataFrame(
        [("a", "failed_x", 1), ("a", "ok", 2), ("b", "failed_x", 1), ("b", "failed_y", 2), ("c", "refused_z", None)],
        schema=["item_key", "verdict", "store"],
        orient="row",
    )
    kept = each_once(rows)
    assert kept.rows() == [("a", "ok", 2), ("b", "failed_x", 1), ("c", "refused_z", None)]
    assert each_once(kept).equals(kept)


MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def notes_of(folder: Path, *encoders: dict[str, Any], **block: Any) -> Any:
    """The block of notes of a run."""
    write_discharge(folder / "tables", [{"note_id": "1", "text": "Seen."}])
    note = {"path": str(folder / "tables"), "source": "mimic-iv", "encoders": list(encoders), **block}
    profiles = {"mehrt": {"encoders": {"note": encoders[0].get("alias", "bert")}}}
    raw = {"sources": [{"source": "mimic-iv", "path": "."}], "modalities": {"note": note}, "profiles": profiles}
    return parse_config(raw, folder, "run.yaml").modalities["note"]


def bert(folder: Path, pieces: str, vocabulary: str = "vocab.txt", weights: str = ".") -> dict[str, Any]:
    """An encoder of a folder with a vocabulary, or without one where it has no pieces."""
    words = [*MARKS, *pieces.split()]
    whole = {"model": {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}}}
    folder.mkdir()
    if pieces:
        content = "\n".join(words) + "\n" if vocabulary == "vocab.txt" else json.dumps(whole)
        (folder / vocabulary).write_text(content, encoding="utf-8")
    return {"name": "bert", "alias": folder.name, "width": 768, "weights": str(folder / weights)}


@pytest.mark.parametrize("weights", [".", "model.safetensors"])
@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.json"])
def test_encoders_of_notes_read_each_its_own_vocabulary(tmp_path: Path, weights: str, vocabulary: str) -> None:
    made = [("first", "seen ."), ("second", "seen . again"), ("third", "seen ."), ("bare", "")]
    first, second, third, bare = (bert(tmp_path / name, pieces, vocabulary, weights) for name, pieces in made)
    letters = {"name": "random-bert", "alias": "letters", "width": 8}

    def cut_by(*encoders: dict[str, Any], **block: Any) -> list[str | None]:
        notes = notes_of(tmp_path, *encoders, **block)
        check(notes)
        assert [cut_for(each, "note") for each in notes.all_encoders], "each has a vocabulary"
        return [folder and folder.name for folder in notes.cut_by]

    assert cut_by(first, third) == ["first"], "one vocabulary in two folders"
    assert cut_by(first, second, third, letters) == ["first", "second", None]
    assert cut_by(letters, second) == [None, "second"]
    assert cut_by(first, bare, tokenizer=second["weights"].removesuffix("model.safetensors")) == ["first", "second"]
    assert cut_by(first, {**bare, "tokenizer": str(tmp_path / "third")}) == ["first"]
    assert cut_by(first, letters, tokenizer=str(tmp_path / "second")) == ["first", "second"]
    with pytest.raises(TimeloomError, match=r"no encoder reads modalities\.note.tokenizer: each has another"):
        check(notes_of(tmp_path, first, tokenizer=str(tmp_path / "second")))
    with pytest.raises(TimeloomError, match="tokenizer of the encoder first of notes is not the one that lies with"):
        check(notes_of(tmp_path, {**first, "tokenizer": str(tmp_path / "second")}))
    with pytest.raises(TimeloomError, match=r"the tokenizer bare of modalities.note has no vocabulary"):
        check(notes_of(tmp_path, first, bare))


def test_a_tokenizer_is_of_networks_that_read_texts() -> None:
    with pytest.raises(TimeloomError, match=r"random-dinov2 reads no texts: leave `tokenizer` of modalities.ct"):
        config_of({"encoder": {**RANDOM, "tokenizer": "words"}})


def test_an_encoder_of_another_vocabulary_has_another_store(tmp_path: Path) -> None:
    for name, pieces in (("first", "seen ."), ("second", "seen . again"), ("third", "seen .")):
        bert(tmp_path / name, pieces)
    config = EncoderConfig(name="random-bert", width=8)
    configs = [config, *(config.model_copy(update={"tokenizer": tmp_path / at}) for at in ("first", "second", "third"))]
    stores = [store_spec(each, "note").store_name for each in configs]
    assert len(set(stores)) == 3 and stores[1] == stores[3], "by what is in the vocabulary, wherever it lies"


def test_units_are_those_of_the_way_in_which_an_encoder_takes_items_cut() -> None:
    geometry = {"cut": "1a", "cuts": {"1a": {"units": 2}, "40": {"units": 5}}, "kind": "DS"}
    items = pl.DataFrame({"item_key": ["k"], "units_expected": [2], "geometry": [json.dumps(geometry)]})
    assert [units_of(items, way) for way in ("", "1a", "40")] == [{"k": 2}, {"k": 2}, {"k": 5}]
    with pytest.raises(TimeloomError, match="were not cut into units as an encoder takes them"):
        units_of(items, "c3")
    item = ItemToEmbed("k", "note", Path(), (), geometry, 2)
    taken = item.cut_in("40")
    assert (taken.units_expected, taken.geometry) == (5, {"cut": "40", "cuts": {"40": {"units": 5}}, "kind": "DS"})
    assert item.cut_in("") is item


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"vocab_size": 6}, "has 7 pieces, and its model model has 6"),
        ({"vocab_size": 7, "max_position_embeddings": 128}, "window is 512 tokens, and model has places for 128"),
    ],
)
def test_a_tokenizer_elsewhere_is_held_against_the_encoder(tmp_path: Path, sizes: dict[str, int], said: str) -> None:
    for name in ("model", "words"):
        (tmp_path / name).mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join([*MARKS, "seen", "."]), encoding="utf-8")
    (tmp_path / "model" / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    encoder = {"name": "bert", "width": 768, "weights": str(tmp_path / "model")}
    with pytest.raises(TimeloomError, match=said):
        check(notes_of(tmp_path, encoder, tokenizer=str(tmp_path / "words")))
