"""The nightly flow: one Prefect task per stage, its progress and results as artifacts in the Prefect UI.

Prefect is for looking and scheduling. What is done and what is not is decided by records on disk and a lock, so a flow
run that was killed, or is started twice, harms nothing.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

# Before Prefect is imported: no telemetry, and patience with a server that starts on a busy machine.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import PositiveInt

from flows import artifacts
from flows.announce import announce_outcome, emit_events
from flows.deployments import deployment_name
from flows.runs.log import RunLog
from flows.runs.run import Run, RunOutcome, open_run
from flows.runs.settings import SERVED, RunSettings
from pipelines.engine.execute import clear_error
from pipelines.engine.task import DEBUG_VARIABLE, WorkerLostError
from warehouse.errors import TimeloomError
from warehouse.progress import Progress

RETRIES = 2
# Of what a step says, the columns of its table.
STEP_COLUMNS = ("step", "ran", "linked", "resumed", "seconds", "cpu_seconds")


class StepFailedError(TimeloomError):
    """A step raised what nobody foresaw: its type and place, not its words, which may quote a patient's value."""


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A clear error stays one; a lost process or a full queue may not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (StepFailedError, WorkerLostError)) or not isinstance(error, TimeloomError)


# What a terminal shows, for the run of this process; a parameter would be sent to the server.
watch: ContextVar[Progress | None] = ContextVar("watch", default=None)
watch_notice: ContextVar[Callable[[str], None] | None] = ContextVar("watch_notice", default=None)


def carry_out_step(run: Run, name: str, step: Callable[[], None]) -> None:
    """One stage as one task run, never one per bucket or item; its state says whether there was anything to do."""
    # Here and not in the flow, whose own names are pickled for a scheduled run: a ContextVar cannot be.
    seen = watch.get()

    @task(
        name=name,
        task_run_name=name,
        retries=RETRIES,
        retry_delay_seconds=5,
        retry_condition_fn=_worth_retrying,
        persist_result=False,
        cache_policy=NO_CACHE,
    )
    def carry_out() -> State[Any]:
        artifact = artifacts.Progress(name)

        def both(stage: str, done: int, total: int) -> None:
            artifact(stage, done, total)
            if seen:
                seen(stage, done, total)

        run.context.progress = both
        with without_values(f"the step {name}", "see the log; run with --debug", run.log):
            summary = run.carry_out(name, step)
        done = [summary[what] for what in ("ran", "linked", "resumed")]
        is_stage = name not in run.JUDGEMENT
        if is_stage and not any(done):
            return Completed(name="Skipped", message="the configuration asks for nothing of it")
        artifact.show(100.0)
        said = "{} run, {} linked, {} resumed".format(*done)
        get_run_logger().info("%s: %s", name, said)
        return Completed(name="Unchanged" if is_stage and not summary["ran"] else "Completed", message=said)

    carry_out()


@contextmanager
def without_values(where: str, remedy: str, log: RunLog | None = None) -> Iterator[None]:
    """Raises clear errors alone: Prefect's server is told every word of an exception and of what caused it.

    Args:
        where: what is carried out, and `remedy`: what to do where it fails unforeseen.
        log: is told where such an error came from.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        clear = clear_error(error)
        if clear is None:
            if log is not None:
                log.failure(error)
            clear = StepFailedError(f"{type(error).__name__} in {where}", remedy)
        raise clear from None


@flow(name="nightly", persist_result=False)
def nightly(
    config: str,
    root: str | None = None,
    engine: Literal["local", "beam"] = "local",
    runner: str = "FnApiRunner",
    workers: PositiveInt | None = None,
    limit: PositiveInt | None = None,
    accept_loss: list[str] | None = None,
    rehash: bool = False,
    beam_options: list[str] | None = None,
    wait: bool = False,
) -> RunOutcome:
    """Raw exports to a published release: the list of stages, then the judgement and the publication.

    The form of the Prefect UI is made from these types and words.

    Args:
        config: Path of the run's YAML, on the worker's machine.
        root: The warehouse; the configuration's `root` where this is None.
        engine: `local` runs processes of the worker's machine, `beam` runs on a Beam runner.
        runner: With the engine beam: the runner's name.
        workers: Processes; as many as the machine has cores where this is None.
        limit: A trial run on that many subjects, in a root of its own.
        accept_loss: Tables, sources, modalities or namespaces of which tonight's release may hold much less than those
            before.
        rehash: Read every raw file again, whatever is remembered of it.
        beam_options: With the engine beam: options of its pipeline, `--name=value` each.
        wait: Wait until another run of this root has ended; else this one is refused.
    """
    settings = RunSettings(
        Path(config),
        Path(root) if root else None,
        engine,
        runner,
        workers,
        limit,
        tuple(accept_loss or ()),
        rehash,
        tuple(beam_options or ()),
        wait,
    )
    try:
        with open_run(settings, None, notice=_notice) as run:
            run.log.line(f"prefect flow run {flow_run.get_id()}")
            for name, step in run.steps:
                carry_out_step(run, name, step)
            outcome = run.outcome()
        outcome = announce_outcome(run, outcome)
    except TimeloomError as error:
        _say_served(f"the night failed: {error}" + (f" (log: {error.log})" if error.log else ""))
        raise
    _say_served(*outcome.lines())
    root_folder = run.layout.root
    with artifacts.for_looking():
        cells = artifacts.cells_of(root_folder)
        with artifacts.for_looking():
            emit_events(outcome, root_folder, deployment_name(root_folder), cells)
        artifacts.show_outcome(outcome, root_folder, cells)
    return outcome


def _notice(line: str) -> None:
    """A line that a person must see while the night works: in the UI, and on the terminal that watches it."""
    get_run_logger().warning("%s", line)
    _say_served(line)
    if (seen := watch_notice.get()) is not None:
        seen(line)


def _say_served(*lines: str) -> None:
    """Tells whoever runs `timeloom serve` how a night ended; other commands say it themselves."""
    if os.environ.get(SERVED):
        for line in lines:
            sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {line}\n")
        sys.stdout.flush()
