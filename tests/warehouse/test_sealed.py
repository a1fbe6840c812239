"""JSON files with a checksum of themselves: every changed byte is told, and older files without one are read."""

import json
from pathlib import Path

import pytest

from warehouse.sealed import NotWholeError, is_whole, read_sealed, write_sealed

VALUE = {"b": [1, {"c": None}], "a": "ü", "checksum of": 3}


@pytest.mark.parametrize("value", [VALUE, {}])
def test_it_is_plain_json_and_comes_back(tmp_path: Path, value: dict[str, object]) -> None:
    path = tmp_path / "f.json"
    write_sealed(path, value)
    plain = json.loads(path.read_text(encoding="ascii"))
    assert next(iter(plain)) == "checksum"
    assert plain == {"checksum": plain["checksum"], **value}
    assert read_sealed(path) == value
    first = path.read_bytes()
    write_sealed(path, dict(reversed(value.items())))
    assert path.read_bytes() == first


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("bit", [1, 16, 0xFF])
def test_every_changed_byte_is_told(tmp_path: Path, bit: int, older: bool) -> None:
    path = tmp_path / "f.json"
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(NotWholeError, match=r"f\.json is not what was written"):
            read_sealed(path, older=older)


@pytest.mark.parametrize("older", [False, True])
def test_what_is_cut_short_emptied_or_gone_is_not_whole(tmp_path: Path, older: bool) -> None:
    path = tmp_path / "f.json"
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    assert is_whole(path, older=older)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert not is_whole(path, older=older), size
    path.unlink()
    assert not is_whole(path, older=older)


def test_a_file_of_an_older_timeloom_is_read_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(VALUE, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert read_sealed(path, older=True) == VALUE
    with pytest.raises(NotWholeError):
        read_sealed(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(NotWholeError):
        read_sealed(path, older=True)
