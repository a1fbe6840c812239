"""A runner of Beam with the faults that runners have: it loses, repeats and reorders elements, or runs each one twice
at once in two processes."""

from concurrent.futures import ProcessPoolExecutor
from typing import Any

from apache_beam import Create, ParDo
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import Pipeline, PipelineVisitor
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState

from pipelines.engine.workers import start_pool

NAME = f"{__name__}.FaultyRunner"
FAULTS = ("none", "lose", "lose_all", "repeat", "reverse", "twice_at_once")


class FaultOptions(PipelineOptions):
    """Which fault it has."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--fault", choices=FAULTS, default="none")


class _Result(PipelineResult):
    """Of a pipeline that has run, and says that all is well, whatever became of it."""

    def wait_until_finish(self, duration: object = None) -> str:
        """At once."""
        return PipelineState.DONE


class _Steps(PipelineVisitor):
    """The elements of `Create`, and what `Map` does with each: all that the engine may ask of a runner."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.functions: list[Any] = []

    def enter_composite_transform(self, transform_node: Any) -> None:
        """`Create` is one."""
        if isinstance(transform_node.transform, Create):
            self.elements = list(transform_node.transform.values)

    def visit_transform(self, transform_node: Any) -> None:
        """`Map` is a ParDo; those of `Create` and `Reshuffle` stand below them and are carried out with them."""
        inside = transform_node.parent.full_label if transform_node.parent else ""
        if isinstance(transform_node.transform, ParDo) and not inside.startswith(("Create", "Reshuffle")):
            self.functions.append(transform_node.transform.fn)


class FaultyRunner(PipelineRunner):
    """See the module."""

    def run_pipeline(self, pipeline: Pipeline, options: PipelineOptions) -> PipelineResult:
        """Carries it out."""
        steps = _Steps()
        pipeline.visit(steps)
        (function,) = steps.functions
        fault = options.view_as(FaultOptions).fault
        elements = steps.elements
        if fault == "lose":
            elements = elements[:-1]
        elif fault == "lose_all":
            elements = []
        elif fault == "repeat":
            elements = [*elements, *reversed(elements)]
        elif fault == "reverse":
            elements = elements[::-1]
        if fault == "twice_at_once":
            with start_pool(2) as pool:
                _twice_at_once(pool, elements)
        else:
            for element in elements:
                list(function.process(element))
        return _Result(PipelineState.DONE)


def _twice_at_once(pool: ProcessPoolExecutor, elements: list[str]) -> None:
    from pipelines.engine.execute import execute_parcel

    for element in elements:
        both = [pool.submit(execute_parcel, element) for _ in range(2)]
        for each in both:
            each.result()
