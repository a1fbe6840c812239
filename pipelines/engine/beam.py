"""The engine of Beam: any runner, of which only the basic primitives are used."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from pipelines.engine.execute import execute_element
from pipelines.engine.task import Task
from warehouse.errors import TimeloomError


class BeamEngine:
    """Any Beam runner. References are the elements, so every runner's basic primitives suffice.

    Args:
        runner: `FnApiRunner` runs here; DirectRunner would try to download another one.
        workers: with FnApiRunner, 1 runs in memory and more run as processes.
        options: further pipeline options, as on a command line.
    """

    def __init__(self, runner: str = "FnApiRunner", workers: int = 1, options: Iterable[str] = ()) -> None:
        self.runner = runner
        self.workers = workers
        self.options = list(options)

    def __enter__(self) -> "BeamEngine":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, tasks: Sequence[Task], done: Callable[[str], None]) -> None:
        """Runs one linear pipeline: Create, Reshuffle, Map. Threads of one process lose elements: never used."""
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions

        options = [f"--runner={self.runner}", "--default_sdk_harness_log_level=WARNING", *self.options]
        if self.runner == "FnApiRunner":
            mode = "multi_processing" if self.workers > 1 else "in_memory"
            options += [f"--direct_running_mode={mode}", f"--direct_num_workers={self.workers}"]
        elements = [json.dumps(asdict(task)) for task in tasks]
        try:
            with beam.Pipeline(options=PipelineOptions(options, save_main_session=False)) as pipeline:
                _ = pipeline | beam.Create(elements) | beam.Reshuffle() | beam.Map(execute_element)
        except Exception as error:
            raise TimeloomError(
                f"the Beam runner {self.runner} failed", "see its log; run again, it resumes"
            ) from error
        for task in tasks:
            done(task.key)
