"""The nightly flow: one Prefect task per step, its progress and results as artifacts in the Prefect UI.

Prefect is for looking and scheduling. What is done and what is not is decided by records on disk and a lock, so a flow
run that was killed, or is started twice, harms nothing.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before Prefect is imported: no telemetry, and patience with a server that starts on a busy machine.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.runs.run import Run, RunOutcome, open_run
from flows.runs.settings import SERVED, RunSettings
from pipelines.engine.execute import clear_error
from pipelines.engine.task import DEBUG_VARIABLE, WorkerLostError
from warehouse.errors import TimeloomError
from warehouse.progress import Progress

RETRIES = 2
REFRESH_SECONDS = 2.0
# Of what a step says, the columns of its table.
STEP_COLUMNS = ("step", "ran", "linked", "resumed", "seconds", "cpu_seconds")


class StepFailedError(TimeloomError):
    """A step raised what nobody foresaw: its type and place, not its words, which may quote a patient's value."""


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A clear error stays one; a lost process or a full queue may not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, (StepFailedError, WorkerLostError)) or not isinstance(error, TimeloomError)


@contextmanager
def _for_looking() -> Iterator[None]:
    """Artifacts inform; a server that does not take one must not end, or repeat, a step that is done."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("the Prefect server did not take an artifact: %s", type(error).__name__)


class _ProgressArtifact:
    """A step's progress in the UI, refreshed every few seconds at most."""

    def __init__(self, step: str) -> None:
        self.identity: Any = None
        with _for_looking():
            self.identity = create_progress_artifact(0.0, key=f"progress-{step}", description=f"Progress of {step}")
        self.refreshed = time.monotonic()

    def show(self, percent: float) -> None:
        if self.identity is not None:
            with _for_looking():
                update_progress_artifact(self.identity, percent)

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total and now - self.refreshed >= REFRESH_SECONDS:
            self.refreshed = now
            self.show(100.0 * done / total)


# What a terminal shows, for the run of this process; a parameter would be sent to the server.
watch: ContextVar[Progress | None] = ContextVar("watch", default=None)


def _carry_out(run: Run, name: str, step: Callable[[], None]) -> None:
    """One step as one task run, never one per bucket or item."""
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
    def carry_out() -> dict[str, Any]:
        artifact = _ProgressArtifact(name)

        def both(stage: str, done: int, total: int) -> None:
            artifact(stage, done, total)
            if seen:
                seen(stage, done, total)

        run.context.progress = both
        summary = _without_values(run, name, step)
        artifact.show(100.0)
        get_run_logger().info("%s: %s run, %s linked, %s resumed", *list(summary.values())[:4])
        return summary

    carry_out()


def _without_values(run: Run, name: str, step: Callable[[], None]) -> dict[str, Any]:
    """Carries a step out. Prefect's server is told every word of an exception and of what caused it."""
    try:
        return run.carry_out(name, step)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        clear = clear_error(error)
        if clear is None:
            run.log.failure(error)
            clear = StepFailedError(f"{type(error).__name__} in the step {name}", "see the log; run with --debug")
        raise clear from None


@flow(name="nightly", validate_parameters=False, persist_result=False)
def nightly(
    config: str,
    root: str | None = None,
    engine: str = "local",
    runner: str = "FnApiRunner",
    workers: int | None = None,
    limit: int | None = None,
    accept_loss: list[str] | None = None,
    rehash: bool = False,
    beam_options: list[str] | None = None,
) -> RunOutcome:
    """Raw exports to a published release: the steps of the list of stages, then the judgement and the publication.

    Args:
        config: path of the run's YAML.
        root: the warehouse; the configuration's `root` where absent.
        engine: `local` or `beam`.
        runner: with `beam`, the runner's name.
        workers: processes; this machine's cores where absent.
        limit: run on that many subjects only.
        accept_loss: tables, sources, modalities or namespaces of which this night may hold much less than those before.
        rehash: read every raw file again, whatever is remembered of it.
        beam_options: with `beam`, options of its pipeline.
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
    )
    try:
        with open_run(settings, None) as run:
            run.log.line(f"prefect flow run {flow_run.get_id()}")
            for name, step in run.steps:
                _carry_out(run, name, step)
            outcome = run.outcome()
    except TimeloomError as error:
        _say_served(f"the night failed: {error}" + (f" (log: {error.log})" if error.log else ""))
        raise
    _say_served(*outcome.lines())
    _show(outcome)
    return outcome


def _say_served(*lines: str) -> None:
    """Tells whoever runs `timeloom serve` how a night ended; other commands say it themselves."""
    if os.environ.get(SERVED):
        for line in lines:
            sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {line}\n")
        sys.stdout.flush()


def _show(outcome: RunOutcome) -> None:
    what = "published" if outcome.published else "unchanged, nothing published"
    with _for_looking():
        steps = [{name: step[name] for name in STEP_COLUMNS} for step in outcome.steps]
        create_table_artifact(
            steps,
            key="steps",
            description="Tasks run, linked, resumed; seconds of the clock and of processors, a step",
        )
        devices = [device for step in outcome.steps for device in step.get("devices", [])]
        if devices:
            create_table_artifact(devices, key="devices", description="Images encoded and how busy the devices were")
        lines = [f"# Release {outcome.release}", f"{what}; {outcome.quarantined} quarantined"]
        lines += [
            f"profile {name}: {share:.1%} of clinical events are tokens" for name, share in outcome.tokenised.items()
        ]
        lines += [f"loss agreed to: {part}" for part in outcome.accepted]
        lines += [f"damaged in the release before, made anew: {name}" for name in outcome.damaged]
        create_markdown_artifact("\n\n".join(lines), key="release")
        create_link_artifact(outcome.report.resolve().as_uri(), key="quality-report", link_text="quality report")
