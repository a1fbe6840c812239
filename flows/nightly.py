"""The nightly flow: one Prefect task per step, its progress and results as artifacts in the Prefect UI.

Prefect is for looking and scheduling. What is done and what is not is decided by records on disk and a lock, so a flow
run that was killed, or is started twice, harms nothing.
"""

import os
import time
from pathlib import Path
from typing import Any

# Before Prefect is imported: no telemetry, and patience with a server that starts on a busy machine.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.runtime import flow_run

from flows.run import Outcome, Run
from flows.settings import RunSettings, open_run
from pipelines.engine import Progress
from warehouse.errors import TimeloomError

RETRIES = 2
REFRESH_SECONDS = 2.0


def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    """A clear error stays one; a lost process or a full queue may not."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, TimeloomError)


class _ProgressArtifact:
    """A step's progress in the UI, refreshed every few seconds at most."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.identity = create_progress_artifact(0.0, key=f"progress-{step}", description=f"Progress of {step}")
        self.refreshed = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total and now - self.refreshed >= REFRESH_SECONDS:
            self.refreshed = now
            update_progress_artifact(self.identity, 100.0 * done / total)  # type: ignore[arg-type]

    def close(self) -> None:
        update_progress_artifact(self.identity, 100.0)  # type: ignore[arg-type]


def _step_task(run: Run, name: str, step: Any, watch: Progress | None) -> None:
    def carry_out() -> dict[str, Any]:
        artifact = _ProgressArtifact(name)

        def both(stage: str, done: int, total: int) -> None:
            artifact(stage, done, total)
            if watch:
                watch(stage, done, total)

        run.context.progress = both
        summary = run.carry_out(name, step)
        artifact.close()
        return summary

    task(
        carry_out,
        name=name,
        task_run_name=name,
        retries=RETRIES,
        retry_delay_seconds=5,
        retry_condition_fn=_worth_retrying,
        persist_result=False,
        cache_policy=None,
    )()


@flow(name="nightly", validate_parameters=False, persist_result=False)
def nightly(config: str, root: str | None = None, engine: str = "local", runner: str = "FnApiRunner",
            workers: int | None = None, limit: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Raw exports to a published release: extract, embed, align, split, vocabulary, tokenize, pack, validate, publish.

    Args:
        config: path of the run's YAML.
        root: the warehouse; the configuration's `root` where absent.
        engine: `local` or `beam`; runner: a Beam runner's name.
        limit: run on that many subjects only.
    """
    settings = RunSettings(Path(config), Path(root) if root else None, engine, runner, workers, limit)
    outcome = run_steps(settings, None)
    return {"release": outcome.release, "published": outcome.published, "quarantined": outcome.quarantined}


def run_steps(settings: RunSettings, watch: Progress | None) -> Outcome:
    """Carries out every step as a Prefect task; call it inside a flow run."""
    with open_run(settings, watch) as run:
        run.log.line(f"prefect flow run {flow_run.get_id()}")
        for name, step in run.steps:
            _step_task(run, name, step, watch)
        outcome = run.outcome()
    _show(outcome)
    return outcome


def _show(outcome: Outcome) -> None:
    create_table_artifact(outcome.steps, key="steps", description="Tasks run, linked and resumed, and seconds, a step")
    what = "published" if outcome.published else "unchanged, nothing published"
    create_markdown_artifact(
        f"# Release {outcome.release}\n\n{what}; {outcome.quarantined} quarantined", key="release"
    )
    create_link_artifact(outcome.report.resolve().as_uri(), key="quality-report", link_text="quality report")


def run_in_flow(settings: RunSettings, watch: Progress | None) -> Outcome:
    """Runs the nightly flow in this process, with progress for a terminal; starts a server of its own if need be."""
    outcomes: list[Outcome] = []

    def body(config: str) -> None:
        outcomes.append(run_steps(settings, watch))

    flow(body, name="nightly", flow_run_name=None, validate_parameters=False, persist_result=False)(
        str(settings.config.name)
    )
    return outcomes[0]
