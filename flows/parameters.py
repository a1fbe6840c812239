"""Parameters of flows, as the form of the Prefect UI shows them. None of them holds a patient's value."""

from typing import Annotated, Literal

from pydantic import Field

Config = Annotated[
    str, Field(title="Configuration", description="Path of the run's YAML, on the machine of the worker.", min_length=1)
]
Root = Annotated[
    str | None,
    Field(title="Root", description="The warehouse; the configuration's `root` where this is empty."),
]
Warehouse = Annotated[str, Field(title="Root", description="The warehouse, on the worker's machine.", min_length=1)]
Engine = Annotated[
    Literal["local", "beam"],
    Field(title="Engine", description="`local` runs processes of the worker's machine, `beam` runs on a Beam runner."),
]
Runner = Annotated[str, Field(title="Beam runner", description="With the engine beam: the runner's name.")]
BeamOptions = Annotated[
    list[str] | None,
    Field(title="Beam options", description="With the engine beam: options of its pipeline, `--name=value` each."),
]
Workers = Annotated[
    int | None, Field(title="Workers", description="Processes; the cores of the machine where this is empty.", ge=1)
]
Limit = Annotated[
    int | None, Field(title="Trial", description="A trial run on that many subjects, in a root of its own.", ge=1)
]
AcceptLoss = Annotated[
    list[str] | None,
    Field(
        title="Accept the loss of",
        description="Tables, sources, modalities or namespaces of which tonight's release may hold much less than "
        "those before.",
    ),
]
Rehash = Annotated[
    bool, Field(title="Read everything again", description="Read every raw file, whatever is remembered of it.")
]
Wait = Annotated[
    bool,
    Field(title="Wait", description="Wait until another run of this root has ended; else this one is refused."),
]
Place = Annotated[
    str,
    Field(
        title="Configuration or root",
        description="The run's YAML, whose key `keep` says which releases stay, or the folder of a warehouse.",
        min_length=1,
    ),
]
Apply = Annotated[bool, Field(title="Apply", description="Remove it; else the artifact says what would go.")]
