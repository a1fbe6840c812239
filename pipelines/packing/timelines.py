"""Timelines as the packing stages hold them: a bucket's subjects end to end, columns as narrow as their values."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from warehouse.arrays import I64, NO_TIME, numbers_of
from warehouse.errors import TimeloomError
from warehouse.parquet import read_columns
from warehouse.tokens import IMAGE_TOKENS, TokenType


@dataclass(frozen=True)
class Timelines:
    """Timelines of N subjects, T tokens end to end.

    Attributes:
        subjects, lengths: (N,), each subject's id and number of tokens.
        offsets: (N,) tokens of the subject's timeline, as the plan counts it, that stand before the first one here.
        token_id, token_type, time: (T,) unsigned, uint8, int64 microseconds since 1970 or NO_TIME.
        image_place: (I,) which tokens are images, increasing.
        image_key: (I,) their keys.
    """

    subjects: I64
    lengths: I64
    offsets: I64
    token_id: npt.NDArray[Any]
    token_type: npt.NDArray[np.uint8]
    time: I64
    image_place: I64
    image_key: pa.StringArray

    def of_subjects(self, kept: npt.NDArray[np.bool_]) -> "Timelines":
        """Those of some subjects, kept (N,)."""
        if kept.all():
            return self
        fewer = replace(self, subjects=self.subjects[kept], offsets=self.offsets[kept])
        return fewer._of_tokens(np.repeat(kept, self.lengths), self.lengths[kept])

    def _of_tokens(self, kept: npt.NDArray[np.bool_], lengths: I64) -> "Timelines":
        """Some tokens, kept (T,), as timelines of `lengths`."""
        images = kept[self.image_place]
        image_place = self.image_place[images]
        return replace(
            self,
            lengths=lengths,
            token_id=self.token_id[kept],
            token_type=self.token_type[kept],
            time=self.time[kept],
            image_place=(np.cumsum(kept, dtype=np.int64) - 1)[image_place] if len(image_place) else image_place,
            image_key=self.image_key.filter(pa.array(images)),
        )

    def without_images(self) -> "Timelines":
        """Image tokens left out; a subject with nothing else is too."""
        if not len(self.image_place):
            return self
        kept = np.ones(len(self.token_id), dtype=np.bool_)
        kept[self.image_place] = False
        left = self.lengths - self.images_per_subject()
        rest = self._of_tokens(kept, left)
        kept_subjects = left > 0
        return replace(
            rest,
            subjects=self.subjects[kept_subjects],
            offsets=self.offsets[kept_subjects],
            lengths=left[kept_subjects],
        )

    def last(self, number: int) -> "Timelines":
        """The last `number` tokens of each timeline."""
        lengths = np.minimum(self.lengths, number)
        before = self.lengths - lengths
        if not before.any():
            return self
        # A token is kept if it stands behind the part before.
        place = ranges(np.zeros_like(before), self.lengths)
        rest = self._of_tokens(place >= np.repeat(before, self.lengths), lengths)
        return replace(rest, offsets=self.offsets + before)

    def images_per_subject(self) -> I64:
        """(N,) image tokens."""
        ends = np.cumsum(self.lengths)
        owner = np.searchsorted(ends, self.image_place, side="right")
        return np.bincount(owner, minlength=len(self.subjects)).astype(np.int64)


def read_timelines(path: Path, dtype: np.dtype[Any]) -> Timelines:
    """Every subject of one bucket, with ids as `dtype`.

    Raises:
        TimeloomError: the file is missing or corrupt, or an image token has no image.
    """
    table = read_columns(path, ["subject_id", "token_id", "type", "time"])
    subject = table.column("subject_id").to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], subject[1:] != subject[:-1]])[: len(subject)])
    token_type = table.column("type").to_numpy()
    image_place = np.flatnonzero(token_type == int(TokenType.IMAGE))
    image_key = pa.array([], pa.string())
    if len(image_place):
        image_key = _keys(read_columns(path, ["item_key"]).column("item_key").take(pa.array(image_place)))
    token_id = table.column("token_id").to_numpy()
    if image_key.null_count or not np.isin(token_id[image_place], list(IMAGE_TOKENS.values())).all():
        raise TimeloomError(
            f"{path.parent.name}/{path.name} has an image token without its image",
            remedy="report this: a stage broke its contract",
        )
    return Timelines(
        subjects=subject[starts],
        lengths=np.diff(np.append(starts, len(subject))),
        offsets=np.zeros(len(starts), dtype=np.int64),
        token_id=token_id.astype(dtype),
        token_type=token_type,
        time=numbers_of(table.column("time").cast(pa.int64()), NO_TIME),
        image_place=image_place,
        image_key=image_key,
    )


def _keys(column: pa.ChunkedArray) -> pa.StringArray:
    keys = column.cast(pa.string()).combine_chunks()
    return keys if isinstance(keys, pa.StringArray) else pa.concat_arrays([pa.array([], pa.string()), *keys.chunks])


def joined(parts: list[Timelines]) -> Timelines:
    """Timelines of different subjects, one after the other; at least one part. Empties the list, to free each column
    as soon as it is joined."""
    shifts = np.cumsum([0, *(len(part.token_id) for part in parts)]).tolist()
    keys = pa.concat_arrays([part.image_key for part in parts])
    places = [part.image_place + shift for part, shift in zip(parts, shifts, strict=False)]
    names = ("time", "token_id", "token_type", "subjects", "lengths", "offsets")
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    parts.clear()
    whole = {name: np.concatenate(columns.pop(name)) for name in names}
    return Timelines(**whole, image_place=np.concatenate(places), image_key=keys)


def ranges(starts: I64, lengths: I64) -> I64:
    """start, start + 1, … for each start, one after the other."""
    ends = np.cumsum(lengths)
    result: I64 = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    result += np.repeat(starts - (ends - lengths), lengths)
    return result
