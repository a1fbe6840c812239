"""The engine of Beam: any runner, of which only the basic primitives are used."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from pipelines.engine.execute import execute_element
from pipelines.engine.task import Task
from warehouse.errors import TimeloomError

_MOST = 400  # characters of a runner's own words
_PATH = re.compile(r"/[^\"]{3,}")


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
        except (Exception, SystemExit) as error:  # argparse ends the process over an option
            raise TimeloomError(
                f"the Beam runner {self.runner} failed: {words_of(error, elements)}",
                "mend --runner and --beam-option, or see its log; run again, it resumes",
            ) from error
        for task in tasks:
            done(task.key)


def words_of(error: BaseException, elements: Sequence[str]) -> str:
    """What a runner says of its failure, in one line; its kind alone where that may quote a task, whose paths may hold
    a patient's name."""
    kind, said = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return "an option is wrong, see above"
    paths = {path for element in elements for path in _PATH.findall(element)}
    quotes = "while running" in said or "execute_element" in said or any(path in said for path in paths)
    return kind if quotes or not said else f"{kind}: {said[:_MOST]}"
