"""One Parquet file of row groups of two: of the release before, copied byte by byte, and of a file just written."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipelines.carrying.footer import Footer, RowGroup, file_begin, file_end
from warehouse.files import atomic_write

_BLOCK = 1 << 24


def splice(path: Path, new: Path, before: Path, order: Sequence[tuple[bool, int]]) -> int:
    """Writes a file of row groups, atomically; gives the rows.

    It has the bytes that a writer makes which is handed all of it, as long as the same library wrote both files.

    Args:
        order: of each row group whether it is one of `before`, and its number there or in `new`.
    """
    footers = {False: Footer.read(new), True: Footer.read(before)}
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(file_begin())
        with new.open("rb") as new_file, before.open("rb") as before_file:
            groups: list[tuple[RowGroup, int]] = []
            place = file.tell()
            held: list[tuple[bool, int, int]] = []
            for is_old, number in order:
                group = footers[is_old].groups[number]
                groups.append((group, place))
                place += group.end - group.begin
                if held and held[-1][0] == is_old and held[-1][2] == group.begin:
                    held[-1] = is_old, held[-1][1], group.end
                else:
                    held.append((is_old, group.begin, group.end))
            for is_old, begin, end in held:
                source = (before_file if is_old else new_file).fileno()
                while begin < end:
                    block = os.pread(source, min(_BLOCK, end - begin), begin)
                    file.write(block)
                    begin += len(block)
        file.write(file_end(footers[False].of_groups(groups)))
    return sum(group.rows for group, _ in groups)
