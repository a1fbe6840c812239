"""Encoders of notes with vocabularies of their own that come and go: each reads what its own tokenizer makes, fills its
own store once, and no other."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from extractors.note.vocabulary import load_vocabulary
from tests.support.nights.damage import flip
from tests.support.nights.site import site_of_tables
from tests.support.notes import write_discharge
from validation.verify import verify_release
from warehouse import Release
from warehouse.embeddings.store import close_stores
from warehouse.errors import REPAIR

# In `make proof`: a whole night for each encoder that comes or goes, and transformers' own networks beside them.
pytestmark = [pytest.mark.whole, pytest.mark.proof]

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["no", "pain", "cough", "##s", "seen", "visit", ".", ":", "again"]
WINDOW, STRIDE = 12, 8
_SHOWN = ("item_key", "units_expected", "units_failed", "geometry")
TEXTS = {f"{number}": f"Visit: Seen again, no pains. COUGH {'and pain ' * number}." for number in range(5)}


def bert(folder: Path, words: list[str], seed: int, *, lower: bool) -> dict[str, Any]:
    """A small BERT with weights of its own, whose folder has its vocabulary."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**sizes, vocab_size=120, max_position_embeddings=40)
    torch.manual_seed(seed)
    model = BertModel(config)
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}), encoding="utf-8")
    known = {"weights": str(folder), "width": 16, "store_dtype": "float32", "device": "cpu"}
    return {"name": "bert", "alias": folder.name, **known}


class Nights:
    """A site whose nights differ in the encoders of notes."""

    def __init__(self, folder: Path, export: Path) -> None:
        self.site = site_of_tables(folder, export)
        self.site.config["duplicates"] = {"images": [], "texts": ["note"], "least_tokens": 1}
        subjects = pl.read_csv(folder / "tables" / "patients.csv", n_rows=len(TEXTS)).to_series().to_list()
        rows = [
            {"note_id": name, "subject_id": subject, "text": text, "charttime": "2021-03-04 05:06:07", "hadm_id": name}
            for subject, (name, text) in zip(subjects, TEXTS.items(), strict=True)
        ]
        write_discharge(folder / "notes", rows)
        self.general = bert(folder / "general", [*MARKS, *WORDS], 1, lower=True)
        words = ["[PAD]", "[unused1]", *MARKS[1:], "Visit", "COUGH", *reversed(WORDS), "Seen", "##ain", "p"]
        self.biomedical = bert(folder / "biomedical", words, 2, lower=False)
        self.root = self.site.layout.root

    def night(self, *encoders: dict[str, Any], carried: str) -> Release:
        windows = {"window": WINDOW, "stride": STRIDE, "at_most": 9}
        notes = {"path": "notes", "source": "mimic-iv", **windows, "encoders": list(encoders)}
        self.site.config |= {"modalities": {"note": notes}, "profiles": {"mehrt": {"encoders": {"note": carried}}}}
        self.site.night()
        assert [finding for finding in verify_release(self.root) if not finding.ok] == []
        return Release.open(self.root)

    def files(self, folder: Path, *patterns: str) -> dict[str, str]:
        close_stores()
        paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
        return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in paths}

    def stores(self) -> dict[str, str]:
        return self.files(self.root, "embeddings/*/*/*.lmdb")

    def tasks(self, *stages: str) -> dict[str, str]:
        found = self.site.manifest.tasks.items()
        return {key: entry.fingerprint for key, entry in found if key.split("/")[0] in stages}

    def digests(self) -> set[str]:
        return {path.name for path in self.site.layout.digests.glob("*.parquet")}

    def expected(self, encoder: dict[str, Any]) -> dict[int, np.ndarray]:
        """By the number of its windows, the mean of a note's class tokens, by transformers alone."""
        from transformers import BertModel, BertTokenizer

        tokenizer, model = (kind.from_pretrained(encoder["weights"]) for kind in (BertTokenizer, BertModel))
        found = {}
        for text in TEXTS.values():
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            room = WINDOW - 2
            starts = range(0, 1 + max(0, len(ids) - room + STRIDE - 1), STRIDE)
            windows = [[tokenizer.cls_token_id, *ids[at : at + room], tokenizer.sep_token_id] for at in starts]
            with torch.inference_mode():
                tokens = [model.eval()(input_ids=torch.tensor([each])).last_hidden_state[0, 0] for each in windows]
            found[len(ids)] = torch.stack(tokens).mean(dim=0).numpy()
        return found

    def check(self, release: Release, encoder: dict[str, Any]) -> None:
        """Holds every vector of an encoder against transformers, and its rows of items against its own windows."""
        expected, entry = self.expected(encoder), release.manifest.encoder("note", encoder["alias"])
        assert len(expected) == len(TEXTS)
        rows = release.items().filter(pl.col("store") == entry.store).collect()
        assert rows["verdict"].to_list() == ["ok"] * len(TEXTS)
        vocabulary = load_vocabulary(Path(encoder["weights"])).name
        for key, units, failed, geometry in rows.select(_SHOWN).iter_rows():
            cut = json.loads(geometry)["cuts"][vocabulary]
            assert (cut["units"], failed) == (units, 0)
            found = release.vector("note", key, encoder=encoder["alias"])
            np.testing.assert_allclose(found, expected.pop(cut["tokens"]), atol=1e-5)
        assert expected == {}


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Iterator[Nights]:
    yield Nights(tmp_path_factory.mktemp("vocabularies"), export)
    close_stores()


def test_vocabularies_come_and_go_and_damage_of_their_tokens_is_named(nights: Nights) -> None:
    kept = ("data/*", "timelines/*/*", "shards/*/*/*", "codes/*", "subjects/*", "splits/*/*", "vocabularies/*/*")
    release = nights.night(nights.general, carried="general")
    nights.check(release, nights.general)
    stores, files = nights.stores(), nights.files(release.path, *kept)
    tasks, digests = nights.tasks("align", "count", "tokenize", "pack"), nights.digests()

    release = nights.night(nights.general, nights.biomedical, carried="general")
    nights.check(release, nights.general)
    nights.check(release, nights.biomedical)
    after = nights.stores()
    assert {name: after[name] for name in stores} == stores
    assert len(after) == 2 * len(stores) and nights.files(release.path, *kept) == files
    assert nights.tasks("align", "count", "tokenize", "pack") == tasks and tasks
    assert nights.digests() == digests and digests

    (tokens,) = nights.site.layout.grouped.glob("note-*/notes.arrow")
    name = f"private/{tokens.relative_to(nights.site.layout.private)}"
    flip(tokens)
    (finding,) = [finding for finding in verify_release(nights.root) if not finding.ok]
    assert (finding.check, finding.detail, finding.remedy) == ("private folder", f"changed: {name}", REPAIR)

    release = nights.night(nights.biomedical, carried="biomedical")
    nights.check(release, nights.biomedical)
    assert not nights.digests() & digests, "copies are looked for by the tokens of the encoder that is left"
    assert nights.stores() == after, "stores are not deleted: older releases read them"
    assert nights.files(release.path, "data/*") == {name: files[name] for name in files if name.startswith("data/")}
    items = release.items().collect()
    assert items.height == len(TEXTS) and set(items["store"]) == {release.manifest.encoder("note", "biomedical").store}
