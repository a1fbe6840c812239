"""What every modality keeps: the same bits for any number of decoders, and a damaged file becomes a verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embedders.encoders.build import EncoderConfig, get_encoder
from embedders.inputs.registry import SPECS
from embedders.running.runner import EmbeddedItem, ItemToEmbed, RunnerSettings, embed_buckets
from embedders.running.store_bucket import Bucket
from extractors.crosswalk import CrosswalkConfig, read_crosswalk
from extractors.extractor import ModalitySettings
from extractors.items import FoundItem
from extractors.modalities import EXTRACTORS
from tests.support.ecg import heart, write_crosswalk, write_record
from tests.support.images.phantoms import disc, stained, write_series, write_tiff
from tests.support.images.xrays import chest, write_film
from tests.support.notes import write_text_files
from warehouse.embeddings.store import close_stores, content_hash


@dataclass(frozen=True)
class Sample:
    """Files of a modality that hold two usable items.

    Attributes:
        settings: of the modality, with the files' folder.
        damaged: a file of the first item, to be cut short.
    """

    settings: ModalitySettings
    damaged: Path


def _ct(folder: Path) -> Sample:
    for number in (1, 2):
        write_series(
            folder / str(number),
            5 + number,
            image=lambda index, number=number: disc(48, 20.0 * index + number),
            series=f"{number}7",
            PatientID=f"P{number}",
        )
    return Sample(EXTRACTORS["ct"].settings(path=folder), sorted((folder / "1").iterdir())[2])


def _wsi(folder: Path) -> Sample:
    rows = ["match,subject_id,time"]
    for number in (1, 2):
        write_tiff(folder / f"{number}.svs", stained(), 0.5 / number)
        rows.append(f"{number}.svs,P{number},2020-01-01 10:00:00")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    crosswalk = CrosswalkConfig(file=folder / "slides.csv")
    return Sample(EXTRACTORS["wsi"].settings(path=folder, crosswalk=crosswalk), folder / "1.svs")


def _cxr(folder: Path) -> Sample:
    for number in (1, 2):
        write_film(folder / f"{number}.dcm", chest(number), PatientID=f"P{number}")
    return Sample(EXTRACTORS["cxr"].settings(path=folder), folder / "1.dcm")


def _ecg(folder: Path) -> Sample:
    for number, fmt in ((1, "16"), (2, "212")):
        write_record(folder, str(number), heart(25.0 * number, seed=number), fmt=fmt, rate=500)
    table = write_crosswalk(folder.with_name("records.csv"), {"1": "P1", "2": "P2"})
    crosswalk = CrosswalkConfig(file=table)
    return Sample(EXTRACTORS["ecg"].settings(path=folder, crosswalk=crosswalk), folder / "1.dat")


def _note(folder: Path) -> Sample:
    texts = {f"{number}.txt.gz": f"Seen at visit {number}. {'No new complaint. ' * 400 * number}" for number in (1, 2)}
    write_text_files(folder, texts, {name: f"P{name[0]}" for name in texts})
    rules = {"notes": {"file": "path", "subject": "subject_id", "time": "charttime"}}
    settings = EXTRACTORS["note"].settings.model_validate({"path": folder, "rules": rules})
    return Sample(settings, folder / "1.txt.gz")


# Makers of samples: a modality that is in the list and not here fails its contract.
SAMPLES: dict[str, Callable[[Path], Sample]] = {"ct": _ct, "wsi": _wsi, "ecg": _ecg, "cxr": _cxr, "note": _note}


# The network with random weights for what a modality's units become.
RANDOM = {"image": "random-dinov2", "signal": "random-ecg", "text": "random-bert"}


def indexed(modality: str, sample: Sample) -> list[FoundItem]:
    """What the modality's extractor finds."""
    crosswalk = sample.settings.crosswalk
    links: pl.DataFrame | None = None if crosswalk is None else read_crosswalk(crosswalk)
    kept = sample.settings.path.with_name("kept")
    return EXTRACTORS[modality].index_items(sample.settings, links, workers=1, kept=kept)


def embedded(
    modality: str, sample: Sample, found: list[FoundItem], store: Path, decoders: int
) -> tuple[list[EmbeddedItem], str]:
    """The usable items' outcomes, and the content hash of their store."""
    name = RANDOM[SPECS[modality].form]
    encoder = get_encoder(EncoderConfig(name=name, width=64, device="cpu", batch_size=12), modality)
    items = [
        ItemToEmbed(item.identity, modality, sample.settings.path, item.paths, item.geometry, item.units_expected or 0)
        for item in found
        if item.verdict == "ok"
    ]
    results, _ = embed_buckets([Bucket(store, encoder.spec, items, lambda: encoder)], RunnerSettings(decoders))
    close_stores()
    return sorted(results[store], key=lambda result: result.item_key), content_hash(store)


def check_same_bits(modality: str, folder: Path) -> None:
    """The items' vectors do not depend on how many processes read them."""
    sample = SAMPLES[modality](folder / "files")
    found = indexed(modality, sample)
    assert [item.verdict for item in found] == ["ok", "ok"] and {item.modality for item in found} == {modality}
    alone = embedded(modality, sample, found, folder / "0.lmdb", 0)
    assert [result.verdict for result in alone[0]] == ["ok", "ok"]
    for decoders in (1, 2):
        assert embedded(modality, sample, found, folder / f"{decoders}.lmdb", decoders) == alone


def check_damage(modality: str, folder: Path) -> None:
    """A file that is cut short costs its item alone: when it is indexed, and when that happens between."""
    sample = SAMPLES[modality](folder / "files")
    whole = indexed(modality, sample)
    content = sample.damaged.read_bytes()
    sample.damaged.write_bytes(content[: len(content) // 2])
    results, _ = embedded(modality, sample, whole, folder / "s.lmdb", 0)
    verdicts = sorted(result.verdict for result in results)
    assert verdicts[0].startswith("failed_") and verdicts[1] == "ok"
    verdicts = sorted(item.verdict for item in indexed(modality, sample))
    assert verdicts[-1] == "ok" and any(verdict.startswith("failed_") for verdict in verdicts)
