"""Vectors of items: searched for in LMDB the first time, copied from where they are mapped from then on.

A value of more than half a page lies on pages of its own. LMDB moves it never, and gives its pages away only after it
was deleted or replaced, the lowest first: so the checksum, on the first one, tells whether all of it is still there.
Smaller values lie between others and move with them; they are searched for each time.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from warehouse.arrays import I64
from warehouse.embeddings.addresses import FORMS, VectorAddresses, address_limit, addresses_of, forms_of, new_marks
from warehouse.embeddings.environments import generation, reading, renewed, staying_open
from warehouse.embeddings.memory import address_of, plain_reads, rows_at
from warehouse.embeddings.store import EmbeddingStore
from warehouse.embeddings.value import (
    CHECKSUM_AT,
    HEADER_BYTES,
    PLAIN_BYTES,
    Array,
    check_value,
    decode,
    plain_header,
    store_name,
)
from warehouse.errors import REPAIR, TimeloomError

Floats = npt.NDArray[np.float32]
Stores = Iterable[tuple[EmbeddingStore, list[int]]]


def read_vectors(
    keys: Sequence[str], width: int, marks: VectorAddresses, stores: Callable[[list[int]], Stores]
) -> Floats:
    """(n, width) of the items with `keys` (n,).

    A row is the item's vector, or the mean of its sequence. A value is compared with its checksum when the process
    searches for it, and its checksum with the one seen then whenever it is copied; a sequence is searched for each
    time.

    Args:
        marks: where vectors were found before.
        stores: which stores hold some of the items, given by their places among `keys`, and which of them each holds.

    Raises:
        TimeloomError: an item is not there, stored bytes have changed, or an array is of another width.
    """
    if plain_reads():
        return _without_addresses(keys, width, stores(list(range(len(keys)))))
    with staying_open():
        noted, loose, searched = marks.read(), dict[int, Array](), list[int]()
        while True:
            now = generation()
            forms = forms_of(noted, now)
            unknown = [place for place in np.flatnonzero(forms == 0).tolist() if place not in loose]
            if unknown:
                _search(keys, width, stores(unknown), now, noted, loose)
                searched += unknown
                if generation() != now:  # a store has outgrown its map, and was opened anew: addresses are void
                    continue
                forms = forms_of(noted, now)
            result = _copied(noted, forms, width)
            # After the copy, so that pages which were given to another item during it are seen.
            changed = _changed(noted, forms)
            if not changed:
                break
            noted[changed] = 0
        for place, array in loose.items():
            result[place] = array
        if searched:
            marks.write(searched, noted[searched])
        return result


def _without_addresses(keys: Sequence[str], width: int, stores: Stores) -> Floats:
    """What `read_vectors` gives, by a search for each item, and by no address."""
    result = np.empty((len(keys), width), np.float32)
    for store, places in stores:
        try:
            arrays = store.get_many([keys[place] for place in places])
        except KeyError:
            raise store.lacking() from None
        for place, array in zip(places, arrays, strict=True):
            result[place] = _vector(array, store, width)
    return result


def _copied(marks: I64, forms: I64, width: int) -> Floats:
    """(n, width) vectors; rows of items without marks are to be written."""
    result: Floats | None = None
    for form, dtype in FORMS.items():
        of_form = forms == form
        if of_form.all():
            return rows_at(addresses_of(marks) + HEADER_BYTES, dtype, width).astype(np.float32, copy=False)
        result = np.empty((len(marks), width), np.float32) if result is None else result
        result[of_form] = rows_at(addresses_of(marks[of_form]) + HEADER_BYTES, dtype, width)
    assert result is not None
    return result


def _changed(marks: I64, forms: I64) -> list[int]:
    """Places of the items whose checksums are not those noted any more."""
    marked = np.flatnonzero(forms)
    checked = marks if len(marked) == len(marks) else marks[marked]
    checksums = rows_at(addresses_of(checked) + CHECKSUM_AT, np.dtype("<i8"), 1)[:, 0]
    changed: list[int] = marked[checksums != checked[:, 1]].tolist()
    return changed


def _search(keys: Sequence[str], width: int, stores: Stores, now: int, noted: I64, loose: dict[int, Array]) -> None:
    """Writes the marks of the items that `stores` name to `noted`, and the vectors of those that can have none."""
    plain = {plain_header(dtype, width): (form, HEADER_BYTES + width * dtype.itemsize) for form, dtype in FORMS.items()}
    limit = address_limit(now)
    places, found = list[int](), list[tuple[int, int, int]]()
    for store, store_places in stores:
        half_page, lacking = store.page_bytes // 2, False
        store_places.sort(key=keys.__getitem__)  # in the order of the file
        with reading(store.path, store.real) as transaction:
            for place in store_places:
                value = transaction.get(keys[place].encode("ascii"))
                if value is None:
                    lacking = True
                    break
                form, size = plain.get(bytes(value[:PLAIN_BYTES]), (0, 0))
                address = address_of(value)
                if form and half_page < len(value) >= size and address < limit:
                    places.append(place)
                    found.append((form, address, check_value(value, store.path)))
                else:
                    loose[place], noted[place] = _vector(decode(value, store.path)[1], store, width), 0
        if lacking:
            if renewed(store.path):  # the generation is another one now, and the caller begins anew
                return
            raise store.lacking()
    if found:
        noted[places] = new_marks(now, np.array(found, np.uint64).view(np.int64))


def _vector(array: Array, store: EmbeddingStore, width: int) -> Array:
    """A vector, or the mean of a sequence."""
    if array.ndim not in (1, 2) or array.shape[-1] != width:
        raise TimeloomError(
            f"embedding store {store_name(store.path)} holds vectors that are not ({width},)",
            remedy=REPAIR,
        )
    return array if array.ndim == 1 else array.mean(axis=0, dtype=np.float32)
