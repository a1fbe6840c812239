"""What a site declares of vectors that were made elsewhere, and how a tree of them is found file by file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from extractors.extractor import ByFile, Extractor, ModalitySettings
from warehouse.configuration import LocatedPath, Settings

Format = Literal["hdf5", "safetensors", "npy", "parquet"]
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "hdf5": (".h5", ".hdf5"),
    "safetensors": (".safetensors",),
    "npy": (".npy",),
    "parquet": (".parquet",),
}
# What `extractors.kinds` calls files of these formats.
KINDS = frozenset(("HDF5", "safetensors", "NumPy", "Parquet"))
BY_NAME, BY_PATH, BY_FOLDER = "file_name", "path", "folder"


class ImportedConfig(Settings):
    """Vectors of a modality's items that another program made.

    Attributes:
        path: a folder of files, or one file for all items.
        format: of all files; the ending of a file's name must be the format's.
        per_file: whether a file has one item, which its name names, or many, which it names itself. Where not given: a
            folder's files have one each, a single file has many.
        name: of the encoder that made them, for releases and reports.
        version: of that encoder's weights or settings, in the site's words. Another one fills another store.
        width: the vectors' length. A vector of another is refused.
        dtype: of the stored values. A file of another is refused.
        shape: `units`: an item has a vector for each of its units (n, width), as patch files of TRIDENT and CLAM;
            `item`: it has one vector (width,), as slide files. A leading 1 is taken off.
        features: name of the HDF5 data set, safetensors tensor or Parquet column that has the vectors.
        coords: the same of where the units lie (n, k). A file without it is taken, and counted.
        item: Parquet column that names the items of a file with many; its values are texts.
        index: of an .npy file with many, a CSV or Parquet table with a column `item`, in the order of the rows, or
            with a column `row` beside it.
        match: what of an item is the name of its vectors: its file's name or path, without the ending, the folder of
            its files, or what the modality's headers say, such as series_uid.
    """

    path: LocatedPath
    format: Format
    per_file: Literal["item", "many"] | None = None
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(default="", max_length=200)
    width: int = Field(gt=0, le=1 << 20)
    dtype: Literal["float16", "bfloat16", "float32", "float64"]
    shape: Literal["units", "item"] = "units"
    features: str = Field(default="features", min_length=1)
    coords: str | None = "coords"
    item: str = "item"
    index: LocatedPath | None = None
    match: str = BY_NAME

    @model_validator(mode="after")
    def _fits(self) -> "ImportedConfig":
        if self.dtype == "bfloat16" and self.format != "safetensors":
            raise ValueError("bfloat16 stands in safetensors files alone")
        if self.index is not None and self.format != "npy":
            raise ValueError("`index` is of npy files alone: other formats name their items")
        if self.format == "npy" and (self.index is None) == self.many:
            raise ValueError("an npy file with many items, and no other, needs `index`, which names its rows' items")
        if self.index is not None and not self.single:
            raise ValueError("`index` names the rows of one file: give the file as `path`")
        return self

    @property
    def single(self) -> bool:
        """Whether one file has everything, told by the path's ending, as a path need not be there yet."""
        return self.path.name.lower().endswith(ENDINGS[self.format]) and not self.path.is_dir()

    @property
    def many(self) -> bool:
        """Whether a file has many items."""
        return self.single if self.per_file is None else self.per_file == "many"


class VectorSettings(ModalitySettings):
    """A tree of imported vectors as stages find their way in it; `path` is that of `imported`.

    Attributes:
        modality: whose items they are of.
    """

    modality: str
    imported: ImportedConfig

    @property
    def tables(self) -> Mapping[str, Path]:
        """The table that names the rows of an .npy file."""
        return {} if self.imported.index is None else {"encoder.imported.index": self.imported.index}


VECTORS = Extractor(
    VectorSettings,
    index="",
    read_units="",
    units_a_batch=1,
    needs_crosswalk=True,
    by_file=ByFile(
        examine="extractors.vectors.judge:examine",
        beside="extractors.vectors.judge:beside",
        items="extractors.vectors.judge:items",
        reads_tables=True,
    ),
    reads="HDF5, safetensors, .npy and Parquet files with vectors",
    files_too=True,
    foreign="refused_not_vectors",
    private_geometry=frozenset(("key", "member", "sha256")),
)


def is_vectors(settings: Mapping[str, Any]) -> bool:
    """Whether settings as JSON are those of a tree of vectors."""
    return "imported" in settings


def key_of_file(path: str, imported: ImportedConfig) -> str:
    """What a file of one item names it: its name, or its path, less the format's ending, and nothing else of it."""
    name = path if imported.match in (BY_PATH, BY_FOLDER) else path.rpartition("/")[2]
    return without_ending(name, imported)


def without_ending(name: str, imported: ImportedConfig) -> str:
    """A name less the ending of its format; any other dot belongs to the name."""
    for ending in ENDINGS[imported.format]:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
