"""THE list of what a night runs: the stages that make a release, then the one that measures what they made.

It lies here because what judges may read what makes, and not the other way round. Runs, the versions in a manifest, the
steps of the scheduler and docs/stages.md are made from it.
"""

from pipelines.night import Stage
from pipelines.stages import STAGES
from validation.measure import stage as measure

NIGHT: tuple[Stage, ...] = (*STAGES, measure.STAGE)
