"""What the workers of a conversion import before their first task, known before the heavy stages are imported.

`timeloom meds` starts its workers first of all, so this file imports nothing; a test holds it to the list of stages.
"""

MODULES = ("pipelines.meds", "pipelines.align")
