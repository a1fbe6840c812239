"""Prints what models read of one simulated subject's label: history, prompt and features, side by side.

    python docs/examples/probes.py ROOT [--task hospital_mortality] [--profile mehrt] [--label 0] [--length 12]

A patient's data are no example, so a release that is not simulated is refused.
"""

import argparse
import sys
from itertools import zip_longest

import polars as pl

from warehouse import NO_TIME, ProbeBatch, ProbeDataset, Prompt, Release, TimeloomError

# Tasks that no stay begins: all that is known by the prediction time is their prompt.
STAYS = ("hospital_mortality", "icu_mortality", "icu_admission", "icu_readmission")


def tokens(dataset: ProbeDataset, number: int) -> list[str]:
    """The tokens of a label with the days before its prediction time, oldest first."""
    batch: ProbeBatch = next(batch for batch in dataset if int(batch.pack_ids[0]) == number)
    length, at = int(batch.lengths[0]), int(batch.prediction_time_us[0])
    rows = zip(batch.input_ids[0, :length].tolist(), batch.time_us[0, :length].tolist(), strict=True)
    return [
        dataset.names[token] if time == NO_TIME else f"{(time - at) / 86_400e6:8.1f}  {dataset.names[token]}"
        for token, time in rows
    ]


def side_by_side(release: Release, profile: str, task: str, number: int, length: int) -> list[str]:
    """Lines of three columns of a label, by its place among the task's."""
    if release.manifest.deid.mode != "synthetic":
        raise TimeloomError("the release is not simulated", remedy="give the root of `timeloom demo`")
    labels = release.labels(task, scheme=release.manifest.profiles[profile].scheme)
    if not 0 <= number < len(labels):
        raise TimeloomError(f"{task} has {len(labels)} labels", remedy="give --label below that number")
    histories = release.histories(profile, task, context=2 * length, vectors=False)
    prompt = None if task in STAYS else Prompt()
    prompts = release.prompts(profile, task, length=length, prompt=prompt, vectors=False)
    label = labels.row(number, named=True)
    alone = labels[[number]].select("subject_id", "prediction_time", "boolean_value")
    table = release.features(alone, modalities=[]).read()
    names = dict(zip(table.columns["column"], table.columns["name"], strict=True))
    first = pl.DataFrame({"column": table.sparse.columns, "value": table.sparse.values})
    features = [f"{value:6.1f}  {names[column]}" for column, value in first.iter_rows()]
    columns = [tokens(histories, number), tokens(prompts, number), features]
    widths = [max(map(len, column), default=0) for column in columns]
    heads = [f"history, the last {length}", f"prompt, the last {length}", "features"]
    widths = [max(width, len(head)) for width, head in zip(widths, heads, strict=True)]
    lines = [f"{task}: label {label['boolean_value']}, split {label['split']}, fold {label['fold']}", ""]
    for cells in [heads, ["-" * width for width in widths], *zip_longest(*columns, fillvalue="")]:
        lines.append(" | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the warehouse of a simulated hospital")
    parser.add_argument("--task", default="hospital_mortality", help="a task of the release")
    parser.add_argument("--profile", default="mehrt", help="whose tokens are shown")
    parser.add_argument("--label", type=int, default=0, help="which of the task's labels, from 0")
    parser.add_argument("--length", type=int, default=12, help="tokens of each history and prompt")
    options = parser.parse_args()
    try:
        release = Release.open(options.root)
        print("\n".join(side_by_side(release, options.profile, options.task, options.label, options.length)))
    except TimeloomError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
