"""The extras of an installation: what is not installed is named in one line, with the extra that brings it."""

from importlib.util import find_spec

from warehouse.errors import TimeloomError

# By extra of pyproject.toml, the modules that its distributions bring.
MODULES: dict[str, tuple[str, ...]] = {
    "pipeline": (
        "yaml", "isal", "numba", "duckdb", "meds", "great_expectations", "matplotlib", "jinja2", "prefect", "fastapi",
        "sqlalchemy",
    ),
    "images": (
        "pydicom", "pylibjpeg", "openjpeg", "libjpeg", "jpeg_ls", "openslide", "openslide_bin", "PIL", "tifffile",
        "imagecodecs", "torch", "transformers", "safetensors", "huggingface_hub", "wfdb", "scipy", "nibabel", "isal",
        "h5py", "rensa", "tokenizers",
    ),
    "beam": ("apache_beam",),
    "dask": ("dask", "distributed"),
    "stores": ("fsspec", "s3fs"),
}  # fmt: skip


def require(extra: str, purpose: str) -> None:
    """Refuses what needs an extra that is not installed.

    Args:
        extra: a key of MODULES.
        purpose: what needs it, in the plural, as the error says it.

    Raises:
        TimeloomError: names the first package that is absent, and the extra.
    """
    for module in MODULES[extra]:
        if find_spec(module) is None:
            raise TimeloomError(f"{purpose} need {module}, which is not installed", f"pip install 'timeloom[{extra}]'")
