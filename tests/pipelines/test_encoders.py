"""What a configuration says of several encoders: their names, and the one that each profile takes."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from extractors.note.check import check
from pipelines.config import RunConfig, parse_config
from pipelines.profiles.choosing import items_with_vectors
from pipelines.scan import settings_of
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


@pytest.mark.parametrize("weights", [".", "model.safetensors"])
@pytest.mark.parametrize("vocabulary", ["vocab.txt", "tokenizer.json"])
def test_encoders_of_notes_read_one_vocabulary(tmp_path: Path, weights: str, vocabulary: str) -> None:
    encoders = []
    for name, pieces in (("first", "seen ."), ("second", "seen . again"), ("third", "seen .")):
        words = [*MARKS, *pieces.split()]
        whole = {"model": {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}}}
        content = "\n".join(words) + "\n" if vocabulary == "vocab.txt" else json.dumps(whole)
        (tmp_path / name).mkdir()
        (tmp_path / name / vocabulary).write_text(content, encoding="utf-8")
        encoders.append({"name": "bert", "alias": name, "width": 768, "weights": str(tmp_path / name / weights)})
    check(notes_of(tmp_path, encoders[0], encoders[2]))
    with pytest.raises(TimeloomError, match="the encoder second of notes was trained with another vocabulary"):
        check(notes_of(tmp_path, encoders[0], encoders[1]))
    with pytest.raises(TimeloomError, match="tokenizer is not the one that lies with the encoder's weights"):
        check(notes_of(tmp_path, encoders[0], tokenizer=str(tmp_path / "second")))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"vocab_size": 6}, "has 7 pieces, and its model 6"),
        ({"vocab_size": 7, "max_position_embeddings": 128}, "window is 512 tokens, and the encoder has places for 128"),
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
