"""The `timeloom` command. Heavy libraries are imported by the commands that need them, so that --help is instant."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import scheduling
from flows.checks import check_root, check_source, check_task
from flows.commands import releases, stores
from flows.commands.embed import embed
from flows.commands.terminal import StageProgress, console, say, show_error
from flows.debugging import debugging, set_debug
from flows.extras import require
from flows.features import features
from flows.guard import check_ownership
from flows.options import (
    AcceptLoss,
    BeamOption,
    Debug,
    Direct,
    Engine,
    EngineName,
    Json,
    Limit,
    Modalities,
    Rehash,
    Root,
    Runner,
    Wait,
    Warehouse,
    Workers,
)
from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    from flows.runs.run import RunOutcome
    from flows.runs.settings import RunSettings

EXIT_CODES = (
    "Exit codes: 0 the current release is whole, new or unchanged; 2 it has quarantined images or rows; "
    "1 nothing was published, and one line says why."
)

app = typer.Typer(
    name="timeloom",
    help="Turns a hospital's raw exports into training-ready multimodal patient timelines, and proves that they are "
    "right.\n\nStart with `timeloom demo`; then write a configuration for your own tables (docs/configuration.md) and "
    "`timeloom run` it every night.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEMO = Path("timeloom-demo")
INTERRUPTED = 130  # what typer makes of Ctrl-C


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"timeloom {version('timeloom')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point: one clear line instead of a traceback, and the exit codes of the documentation."""
    try:
        # A system that shuts down, a scheduler and a container end a run by SIGTERM: as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        check_ownership()
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except TimeloomError as error:
        if debugging():
            raise
        show_error(error)
        sys.exit(1)
    except (typer.Abort, KeyboardInterrupt):
        say("stopped; run the same command again and it resumes")
        sys.exit(1)
    except Exception as error:
        if debugging():
            raise
        if show := getattr(error, "show", None):
            show()
            sys.exit(1)
        from pipelines.engine.execute import clear_error

        itself = TimeloomError(f"{type(error).__name__} in timeloom itself", "run with --debug and report it")
        show_error(clear_error(error) or itself)
        sys.exit(1)


def _carry_out(settings: "RunSettings", *, direct: bool, as_json: bool) -> None:
    from flows.announce import announce_outcome
    from flows.runs.run import open_run

    with StageProgress(quiet=as_json) as progress:
        if direct:
            with open_run(settings, progress, notice=progress.notice) as run:
                for name, step in run.steps:
                    run.carry_out(name, step)
                outcome = run.outcome()
            outcome = announce_outcome(run, outcome)
        else:
            outcome = _in_prefect(settings, progress)
    if as_json:
        print(json.dumps(asdict(outcome), default=str))
    else:
        for line in outcome.lines():
            say(line)
    raise typer.Exit(outcome.exit_code)


def _in_prefect(settings: "RunSettings", progress: StageProgress) -> "RunOutcome":
    """The run as a flow run, visible in the Prefect UI. Its server's own chatter stays out of the terminal."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.prefect_server import ensure_server
    from flows.runs.paths import configured

    configured(settings)  # what is wrong with the keys and the paths is said before a server starts
    ensure_server()
    from flows.nightly import nightly, watch, watch_notice

    watch.set(progress)
    watch_notice.set(progress.notice)
    outcome: RunOutcome = nightly(
        config=str(settings.config),
        root=str(settings.root) if settings.root else None,
        engine="beam" if settings.engine == "beam" else "local",
        runner=settings.runner,
        workers=settings.workers,
        limit=settings.limit,
        accept_loss=list(settings.accept_loss),
        rehash=settings.rehash,
        beam_options=list(settings.beam_options),
        wait=settings.wait,
    )
    return outcome


def _modalities(text: str | None) -> tuple[str, ...]:
    """What `--modalities` asks for; everything where it is not given."""
    from extractors.simulate import MADE

    return tuple(MADE) if text is None else tuple(text.replace(",", " ").split())


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Where the simulated hospital and its warehouse go.")] = Path(
        "timeloom-demo"
    ),
    subjects: Annotated[int, typer.Option(help="Simulated patients.", min=20)] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    modalities: Modalities = None,
    workers: Workers = None,
    accept_loss: AcceptLoss = None,
    direct: Direct = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate a small cancer hospital, run everything on it, and say where to look.

    The hospital has faults planted on purpose, so the demo ends with exit code 2: published, with quarantined items.
    """
    set_debug(debug)
    require("pipeline", "runs")
    require("images", "simulated images")
    from extractors.simulate import simulate
    from flows.commands.demo import write_config
    from flows.runs.paths import local_folder
    from flows.runs.settings import RunSettings

    local_folder(root, "--root")
    hospital, warehouse = root / "hospital", root / "warehouse"
    wanted = _modalities(modalities)
    summary = simulate(hospital, subjects=subjects, seed=seed, modalities=wanted)
    if not as_json:
        say(f"{hospital}: {summary.subjects} simulated patients, {summary.in_words}")
    config = write_config(root, wanted)
    try:
        settings = RunSettings(config, warehouse, workers=workers, accept_loss=tuple(accept_loss or ()))
        _carry_out(settings, direct=direct, as_json=as_json)
    finally:
        if not as_json and (warehouse / "current").exists():
            say(f"look at it: timeloom status --root {warehouse}; train on it: docs/modelers.md")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The run's YAML, docs/configuration.md.")],
    root: Root = None,
    engine: Engine = EngineName.local,
    runner: Runner = "FnApiRunner",
    beam_option: BeamOption = None,
    workers: Workers = None,
    limit: Limit = None,
    accept_loss: AcceptLoss = None,
    rehash: Rehash = False,
    wait: Wait = False,
    direct: Direct = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn raw exports into a published release. A run that was killed resumes; an unchanged one publishes nothing."""
    set_debug(debug)
    require("pipeline", "runs")
    from flows.runs.settings import RunSettings

    settings = RunSettings(
        config,
        root,
        engine.value,
        runner,
        workers,
        limit,
        tuple(accept_loss or ()),
        rehash,
        tuple(beam_option or ()),
        wait,
    )
    _carry_out(settings, direct=direct, as_json=as_json)


@app.command()
def meds(
    config: Annotated[Path, typer.Argument(help="The YAML of a run; only its sources, deid and limits are used.")],
    out: Annotated[Path, typer.Option(help="The MEDS dataset: data/ and metadata/. Replaced when all is done.")],
    root: Annotated[
        Path | None, typer.Option("--root", help="What a next conversion reuses; beside the dataset if not given.")
    ] = None,
    engine: Engine = EngineName.local,
    runner: Runner = "FnApiRunner",
    beam_option: BeamOption = None,
    workers: Workers = None,
    rehash: Rehash = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert raw tables to a MEDS dataset, and nothing more: no images, splits, tokens or report.

    Run again, it converts what changed. Exit code 2: converted, and some raw rows are quarantined.
    """
    set_debug(debug)
    require("pipeline", "conversions")
    from flows.runs.settings import RunSettings, engine_ahead
    from pipelines.conversion import MODULES
    from pipelines.engine.workers import leave_out_pandas, uncollected

    settings = RunSettings(
        config, root, engine.value, runner, workers, rehash=rehash, beam_options=tuple(beam_option or ())
    )
    with StageProgress(quiet=as_json) as progress, engine_ahead(settings, MODULES) as ahead:
        with uncollected():
            from flows.runs.convert import convert
            from flows.runs.paths import local_folder

            leave_out_pandas()
        converted = convert(settings, local_folder(out, "--out"), progress, ahead)
    if as_json:
        print(json.dumps(asdict(converted)))
    else:
        rewritten = f"{converted.rewritten} of {converted.buckets} event files written"
        for line in converted.said:
            say(line)
        say(f"{out}: {converted.events} events of {converted.subjects} subjects, {rewritten}")
        if converted.quarantined:
            say(f"{converted.quarantined} raw rows are quarantined; ledger.parquet says why, quarantine.parquet which")
    raise typer.Exit(2 if converted.quarantined else 0)


app.command("embed")(embed)
app.command("status")(releases.status)


@app.command()
def verify(
    root: Warehouse = DEMO / "warehouse",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Recompute every checksum and cross-reference of the current release, and every checksum of what is beside it.

    Exit code 1 where one does not hold; each line that begins with FAIL ends with what mends it.
    """
    set_debug(debug)
    require("pipeline", "checks of releases")
    from validation.verify import verify_release

    with StageProgress(quiet=as_json) as progress:
        findings = verify_release(root, progress)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            detail = "; ".join(text for text in (finding.detail, finding.remedy) if text)
            say(f"{'ok  ' if finding.ok else 'FAIL'} {finding.check}{': ' + detail if detail else ''}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def repair(
    config: Annotated[Path, typer.Argument(help="The run's YAML: what is damaged is made anew from its sources.")],
    root: Root = None,
    workers: Workers = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Mend a warehouse in which `timeloom verify` finds damaged or missing files, and say what is lost.

    What can be made again is made again by a night: events, tokens, shards, the report, segments, vectors. What only
    grows from night to night (splits, token ids, quantiles, lags) goes on from the release before, which is said, with
    how many patients got another split. root.json, the pointer `current` and the lineage are remade of manifests. A
    release whose manifest is damaged is put into `set-aside/`. Where nothing is damaged, it is a night like any other.

    Exit codes: 0 all is whole and nothing is lost; 2 all is whole, and what was lost is said; 1 something is damaged
    still, or nothing could be done, and one line says why.
    """
    set_debug(debug)
    require("pipeline", "repairs")
    from flows.commands.repair import print_repaired
    from flows.commands.repair import repair as mend
    from flows.runs.settings import RunSettings

    with StageProgress(quiet=as_json) as progress:
        done = mend(RunSettings(config, root, workers=workers), progress)
    if as_json:
        print(json.dumps(asdict(done)))
    else:
        print_repaired(done, say)
    raise typer.Exit(done.exit_code)


@app.command()
def report(
    root: Warehouse = DEMO / "warehouse",
    debug: Debug = False,
) -> None:
    """Print the path of the current release's quality report, one page that any browser shows offline."""
    set_debug(debug)
    from warehouse.layout import Layout
    from warehouse.publish import current_release

    current = current_release(Layout(root))
    if current is None:
        raise TimeloomError(f"{root.name} has no release yet", "run `timeloom run` or `timeloom demo`")
    print(current.report)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="A folder that is absent, empty, or an earlier simulation.")],
    subjects: Annotated[int, typer.Option(help="Simulated patients.", min=20)] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    imaging_share: Annotated[
        float,
        typer.Option(help="Share of the patients who have images, and of those with each other kind.", min=0, max=1),
    ] = 0.15,
    modalities: Modalities = None,
    task_cases: Annotated[
        bool,
        typer.Option(help="Plant a patient for each rule of the tasks besides; truth/labels.csv holds the answers."),
    ] = False,
    large: Annotated[
        bool,
        typer.Option(
            help="A hospital of any size, to try a machine with: tables drawn by columns, a million patients in "
            "minutes, images as ready vectors, and large.yaml, which `timeloom run` takes."
        ),
    ] = False,
    night: Annotated[
        str,
        typer.Option(
            help="Of --large, which export: first; next (1 % of the patients changed, spread over all); one (one "
            "patient has a visit more); reordered (the same rows in another order)."
        ),
    ] = "first",
    compressed: Annotated[bool, typer.Option(help="Of --large: write the tables as .csv.gz.")] = False,
    debug: Debug = False,
) -> None:
    """Write a simulated cancer hospital as a hospital would export it: tables, CT, slides, ECGs, x-rays, notes."""
    set_debug(debug)
    if large:
        from flows.commands.large import simulate_to

        require("pipeline", "large simulated hospitals")
        if modalities is not None or task_cases:
            raise TimeloomError("--large has neither --modalities nor --task-cases", "leave them out")
        with StageProgress() as progress:
            said = simulate_to(out, subjects, seed, imaging_share, night, compressed, progress)
        say(said)
        return
    require("images", "simulated images")
    from extractors.simulate import simulate as write_hospital
    from flows.runs.paths import local_folder

    local_folder(out, "OUT")
    with StageProgress() as progress:
        summary = write_hospital(
            out,
            subjects=subjects,
            seed=seed,
            imaging_share=imaging_share,
            modalities=_modalities(modalities),
            task_cases=task_cases,
            progress=progress,
        )
    rows = ", ".join(f"{number} {table}" for table, number in summary.rows.items())
    say(f"wrote {out}: {rows}; {summary.in_words}")


app.command("check-source")(check_source)
app.command("check-task")(check_task)
app.command("check-root")(check_root)
app.command("features")(features)
app.command("diff")(releases.diff)
app.command("backfill")(releases.backfill)
app.command("gc")(releases.gc)
app.command("push")(stores.push)
app.command("pull")(stores.pull)
app.command("serve")(scheduling.serve)
app.command("deploy")(scheduling.deploy)


@app.command()
def index(
    path: Annotated[Path, typer.Argument(help="A folder of images: DICOM files of any name, archives, slides.")],
    modality: Annotated[
        str | None, typer.Option(help="Look for that modality only: ct or wsi, say.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a CSV of one row an item. It names files of the tree: keep it where they are."),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a tree of images holds: items, verdicts, times, sizes. Reads headers; writes nothing but --out.

    It ends with a line on files that are none of its kinds, counted by what they are: NIfTI, HDF5, WFDB, PNG and more.

    Exit codes: 0 something is usable and nothing failed; 1 there is no such folder, or it is empty; 2 some items failed
    (docs/verdicts.md says why), or nothing is usable.
    """
    set_debug(debug)
    require("images", "images")
    from flows.commands.index_images import index_tree, print_index, write_items

    with StageProgress(quiet=as_json) as progress:
        description, items = index_tree(path, modality, workers, progress)
    if out is not None:
        write_items(items, path, out)
    if as_json:
        print(json.dumps(description))
    else:
        print_index(description, console)
    raise typer.Exit(description["exit_code"])


if __name__ == "__main__":
    main()
