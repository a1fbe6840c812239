"""Whether the descriptions of codes and the splits of subjects keep their MEDS schemas."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from validation.measure.reading import unreadable
from warehouse.layout import ReleaseLayout
from warehouse.parquet import row_groups


def breaks(tree: ReleaseLayout) -> list[str]:
    """The files of metadata/ that are missing or break their MEDS 0.4 schema, as `folder/file`.

    Raises:
        TimeloomError: a file is damaged.
    """
    from meds.schema import CodeMetadataSchema, SubjectSplitSchema

    checks = [(tree.codes, CodeMetadataSchema.validate), (tree.subject_splits, SubjectSplitSchema.validate)]
    return [f"{path.parent.name}/{path.name}" for path, check in checks if not path.is_file() or _breaks(path, check)]


def _breaks(path: Path, validate: Callable[[pa.Table], None]) -> bool:
    """Whether any row group of a Parquet file breaks a schema."""
    try:
        file = pq.ParquetFile(path)
        tables = (file.read_row_groups(groups) for groups in row_groups(file)) if file.num_row_groups else [file.read()]
        for table in tables:
            validate(table)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path) from error
    except Exception:  # the meds package raises a type per kind of break; all of them mean the same here
        return True
    return False
