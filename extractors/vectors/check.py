"""Whether a declaration of imported vectors fits what the files say, before any work: some files are looked at."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from extractors.items import VerdictError
from extractors.trees import folders_of
from extractors.vectors.arrays import named_rows
from extractors.vectors.files import Held, blocks_of, open_vectors, units_of
from extractors.vectors.judge import LOCK
from extractors.vectors.settings import ENDINGS, ImportedConfig
from warehouse.errors import TimeloomError

LOOKED_AT = 16  # items


def check_vectors(imported: ImportedConfig, key: str) -> None:
    """Refuses a declaration that none of the first files fits. Files that are damaged say nothing here.

    Args:
        key: where the declaration stands in the configuration, for messages: no file is named.

    Raises:
        TimeloomError: no file of the format; vectors of another width, type or shape; a table that does not name the
            rows of its array.
    """
    if imported.single and imported.path.with_name(imported.path.name + LOCK).exists():
        raise TimeloomError(
            f"{key}.path is not finished: a {LOCK} lies beside it", remedy="wait for the program that writes it"
        )
    if imported.index is not None:
        _check_index(imported, key)
    found = Counter[str]()
    for fault in islice(_faults(imported, key), LOOKED_AT):
        if not fault:
            return
        found[fault] += 1
    if not found:
        endings = " or ".join(ENDINGS[imported.format])
        raise TimeloomError(f"{key}.path has no {imported.format} file that could be read", remedy=f"give {endings}")
    fault, _ = found.most_common(1)[0]
    raise TimeloomError(f"{key}: {fault}", remedy=f"mend {key}, or give the files of this encoder")


def _faults(imported: ImportedConfig, key: str) -> Iterator[str]:
    """Of each item that can be read, what does not fit in words; empty where all does."""
    for folder in folders_of(imported.path):
        for name in folder.files:
            if not (name or imported.path.name).lower().endswith(ENDINGS[imported.format]):
                continue
            try:
                with open_vectors(imported.path / folder.inside(name), imported) as opened:
                    for held in islice(opened.held(), LOOKED_AT):
                        width = held.shape[-1] if held.shape else 0
                        if width == imported.width and not _fault(held, width, imported):
                            block = next(blocks_of(opened, held, imported))
                            width = block.shape[1]
                        if 0 not in held.shape:
                            yield _fault(held, width, imported)
            except VerdictError as error:
                if error.verdict == "failed_pickled":
                    yield "an .npy file holds pickled objects, which are never read"
            except KeyError:
                yield f"a file has no {imported.features}"
            except (MemoryError, TimeloomError):
                raise
            except Exception:  # a damaged file: its own verdict says so later
                continue


def _fault(held: Held, width: int, imported: ImportedConfig) -> str:
    if width != imported.width:
        return f"the vectors' width is {width}, and {imported.width} is declared"
    if held.dtype != imported.dtype:
        return f"the vectors are {held.dtype}, and {imported.dtype} is declared"
    try:
        units_of(held, imported)
    except VerdictError as error:
        if error.verdict == "failed_vector_shape":
            axes, other = len(held.shape), "item" if imported.shape == "units" else "units"
            return f"an item's vectors have {axes} axes, which is not `shape: {imported.shape}` (`{other}`, perhaps)"
    return ""


def _check_index(imported: ImportedConfig, key: str) -> None:
    """Refuses a table that names more rows, or fewer, than the array has."""
    import numpy as np

    assert imported.index is not None
    named = named_rows(imported.index, f"{key}.index")
    try:
        rows = len(np.load(imported.path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, TypeError):
        return  # what is wrong with the array is said otherwise
    if len(named) != rows:
        raise TimeloomError(
            f"{key}.index names {len(named)} rows, and the array has {rows}", remedy="give the table of this array"
        )
