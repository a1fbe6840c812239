"""Files and members of archives, opened alike: `folder/IM1`, `study.zip!/folder/IM1`.

Archives (zip; tar, plain or through gzip, bzip2, xz) are known by content and read member by member. Nothing is
unpacked into the tree, and a member's name is only a label: no path on a disk is ever made of it. A compressed tar,
which cannot be read at will, is spooled into an unnamed temporary file while its members are wanted. What an archive
claims is held against limits before and while it is read. A single DICOM data set or NIfTI through gzip, bzip2 or xz is
an archive of one member, `IM1.dcm.gz!/unpacked`.
"""

import bz2
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO, Literal, Self, cast

from isal import igzip

from extractors.items import VerdictError, file_on_disk
from extractors.kinds import kind_of_bytes
from warehouse.files import signature_of

Kind = Literal["zip", "tar", "gzip", "bzip2", "xz"]

MEMBER = "!/"
MAX_MEMBERS = 200_000
MAX_MEMBER_BYTES = 8 << 30
MAX_UNPACKED_BYTES = 256 << 30
MAX_RATIO = 200  # unpacked to packed, of what is larger than FREE_BYTES; CT pixels reach 2 to 4
FREE_BYTES = 64 << 20  # also what is held in memory of a member; a larger one goes through a temporary file
MAX_TAR_HEADER = 256 << 10  # bytes of a name or of attributes that precede a member; tarfile holds them in memory
SINGLE = "unpacked"
_XZ_MEMORY = 256 << 20
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """One regular file of an archive; `file` is None where it is encrypted or packed by an unknown method."""

    name: str
    file: BinaryIO | None
    size: int


def archive_kind(head: bytes) -> Kind | None:
    """What archive begins with these bytes, 512 at best; a DICOM file's preamble may look like one."""
    if head[128:132] == b"DICM":
        return None
    magics: tuple[tuple[bytes, Kind], ...] = (
        (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\x1f\x8b\x08", "gzip"), (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    )  # fmt: skip
    for magic, kind in magics:
        if head.startswith(magic):
            return kind
    return "tar" if head[257:262] == b"ustar" else None


def members(file: BinaryIO, kind: Kind) -> Iterator[Member]:
    """The regular files of an archive, one at a time: each `file` is closed when the next is asked for.

    Raises:
        VerdictError: failed_archive_limits.
        Exception: anything, where the archive is damaged or no archive.
    """
    if kind == "zip":
        with zipfile.ZipFile(file) as archive:
            for info in _zip_infos(archive).values():
                try:
                    opened = _held(archive.open(info), info.file_size) if not info.flag_bits & 1 else None
                except NotImplementedError:
                    opened = None
                yield Member(info.filename, opened, info.file_size)
                if opened is not None:
                    opened.close()
        return
    stream = _limited(file, kind)
    if is_alone(stream.peek(512)):
        with cast(BinaryIO, tempfile.SpooledTemporaryFile(FREE_BYTES)) as opened:
            shutil.copyfileobj(stream, opened, _CHUNK)
            yield Member(SINGLE, opened, opened.tell())
        return
    try:
        tar = tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", errorlevel=2, tarinfo=_Entry)  # noqa: SIM115
    except (tarfile.ReadError, _DamagedHeaderError):  # something else that is compressed, if it is whole
        if kind == "tar" or stream.broken:
            raise
        stream.drain()
        return
    with tar:
        for count, entry in enumerate(tar):
            if count >= MAX_MEMBERS or entry.size > MAX_MEMBER_BYTES:
                raise VerdictError("failed_archive_limits")
            _check_entry(tar, entry)
            content = tar.extractfile(entry) if entry.isreg() else None
            if content is not None:
                with _held(content, entry.size) as opened:
                    yield Member(entry.name, opened, entry.size)
    stream.drain()


def is_alone(head: bytes) -> bool:
    """Whether a compressed file's content is no archive: it begins as a DICOM data set does, with or without its
    preamble, or as a NIfTI."""
    if head[128:132] == b"DICM" or head[:4] in (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x02\0\0\0"):
        return True
    return kind_of_bytes(head, "") == "NIfTI"


class _DamagedHeaderError(EOFError):
    """Bytes that are neither a tar's header nor the zeros that end a tar."""


class _Entry(tarfile.TarInfo):
    """A tar's header that ends the reading where tarfile would read without bound, or take damage for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise _DamagedHeaderError from error
        if entry.type in _EXTENSIONS and entry.size > MAX_TAR_HEADER:
            raise VerdictError("failed_archive_limits")
        if entry.type == tarfile.GNUTYPE_SPARSE:
            raise VerdictError("failed_unreadable")
        return entry

    def _proc_gnusparse_10(self, *_: object) -> None:
        """A sparse member's map lies in its content, of any size."""
        raise VerdictError("failed_unreadable")


_EXTENSIONS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_EXTENSIONS |= {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


def _check_entry(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
    """What headers gather up in memory; members stored with holes, which their reader here does not fill."""
    if sum(map(len, tar.pax_headers.values())) > MAX_TAR_HEADER:
        raise VerdictError("failed_archive_limits")
    if entry.issparse():
        raise VerdictError("failed_unreadable")
    vars(tar)["members"].clear()  # tarfile keeps every header that it has read


def _zip_infos(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Files by name; of those that share a name the last, as every unpacker does."""
    infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    total, packed = sum(info.file_size for info in infos.values()), sum(info.compress_size for info in infos.values())
    if archive.fp is not None:
        packed = min(packed, os.fstat(archive.fp.fileno()).st_size)
    too_large = any(
        info.file_size > MAX_MEMBER_BYTES or _bomb(info.file_size, info.compress_size) for info in infos.values()
    )
    if len(infos) > MAX_MEMBERS or total > MAX_UNPACKED_BYTES or too_large or _bomb(total, packed):
        raise VerdictError("failed_archive_limits")
    return infos


def _bomb(unpacked: int, packed: int) -> bool:
    return unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed


def _held(stream: IO[bytes], size: int) -> BinaryIO:
    """A member's content, seekable: in memory, or in an unnamed temporary file where it is large."""
    with stream:
        if size <= FREE_BYTES:
            data = stream.read(size)
            if len(data) != size:
                raise EOFError
            return BytesIO(data)
        spool = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
        shutil.copyfileobj(stream, spool, _CHUNK)
        return spool


class _Limited:
    """A decompressed stream that ends in a verdict where it grows out of proportion."""

    def __init__(self, stream: IO[bytes], packed: BinaryIO) -> None:
        self._stream, self._packed, self._read, self._ahead = stream, packed, 0, b""
        self.broken = False

    def read(self, size: int = _CHUNK) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        try:
            data = self._stream.read(min(size, _CHUNK))
        except Exception:
            self.broken = True
            raise
        self._read += len(data)
        if self._read > MAX_UNPACKED_BYTES or _bomb(self._read, self._packed.tell()):
            raise VerdictError("failed_archive_limits")
        return data

    def peek(self, size: int) -> bytes:
        """The next bytes, which `read` gives again."""
        found = b""
        while len(found) < size and (data := self.read(size - len(found))):
            found += data
        self._ahead = found
        return found

    def drain(self) -> None:
        """Reads to the end, where a decompressor compares its checksum."""
        while self.read():
            pass


def _limited(file: BinaryIO, kind: Kind) -> _Limited:
    file.seek(0)
    if kind == "xz":
        lzma.LZMADecompressor(memlimit=_XZ_MEMORY).decompress(file.read(_CHUNK), 1)
        file.seek(0)
    stream: IO[bytes] = file
    if kind == "gzip":
        stream = cast(IO[bytes], igzip.IGzipFile(fileobj=file))  # type: ignore[no-untyped-call]
    elif kind == "bzip2":
        stream = bz2.BZ2File(file)
    elif kind == "xz":
        stream = lzma.LZMAFile(file)  # noqa: SIM115
    return _Limited(stream, file)


class _Archive:
    """An archive of the tree, open: members at will. `status` is its file's when it was opened."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            self.status = os.fstat(file.fileno())
            kind = archive_kind(file.read(512))
            self._zip: zipfile.ZipFile | None = None
            self._spans: dict[str, tuple[int, int]] = {}
            self._file: BinaryIO = file
            if kind == "zip":
                self._zip = stack.enter_context(zipfile.ZipFile(file))
                self._infos = _zip_infos(self._zip)
            elif kind is not None:
                if kind != "tar":
                    self._file = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
                    shutil.copyfileobj(_limited(file, kind), self._file, _CHUNK)
                self._file.seek(0)
                if kind != "tar" and is_alone(self._file.read(512)):
                    self._spans = {SINGLE: (0, self._file.seek(0, os.SEEK_END))}
                else:
                    self._spans = self._members()
            self._stack = stack.pop_all()

    def _members(self) -> dict[str, tuple[int, int]]:
        spans: dict[str, tuple[int, int]] = {}
        self._file.seek(0)
        with tarfile.open(fileobj=self._file, mode="r:", tarinfo=_Entry) as tar:
            for entry in tar:
                _check_entry(tar, entry)
                if entry.isreg():
                    spans[entry.name] = entry.offset_data, entry.size
        return spans

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """A member and its size; KeyError where there is none."""
        if self._zip is not None:
            info = self._infos[name]
            return _held(self._zip.open(info), info.file_size), info.file_size
        at, size = self._spans[name]
        if at == 0:  # all that was unpacked: nobody else reads it meanwhile
            whole = cast(BinaryIO, os.fdopen(os.dup(self._file.fileno()), "rb", buffering=0))
            whole.seek(0)
            return whole, size
        self._file.seek(at)
        if size > FREE_BYTES:
            spool = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
            left = size
            while left and (data := self._file.read(min(left, _CHUNK))):
                spool.write(data)
                left -= len(data)
            return spool, size
        return BytesIO(self._file.read(size)), size

    def close(self) -> None:
        self._stack.close()


class Tree:
    """Opens what `walk` and `members` named, again; keeps the last archive open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._last: tuple[Path, _Archive] | None = None

    @contextmanager
    def open(self, path: str) -> Iterator[tuple[BinaryIO, int, Path]]:
        """A file or member, its size, and the file on the disk that it lies in."""
        disk, member = file_on_disk(self._root, path)
        if member is None:
            with disk.open("rb", buffering=0) as raw:
                file = cast(BinaryIO, raw)
                yield file, os.fstat(file.fileno()).st_size, disk
            return
        opened, size = self._archive(disk).open(member)
        with opened:
            yield opened, size, disk

    def _archive(self, disk: Path) -> _Archive:
        if self._last is not None:
            path, archive = self._last
            if path == disk and disk_stamp(archive.status) == disk_stamp(disk.stat()):
                return archive
            archive.close()
            self._last = None
        archive = _Archive(disk)
        self._last = disk, archive
        return archive


@lru_cache(maxsize=1)
def tree(root: Path) -> Tree:
    """This process's tree at `root`."""
    return Tree(root)


def disk_stamp(status: os.stat_result) -> str:
    """Whether a file on the disk is as it was; see `warehouse.files.signature_of`."""
    return ":".join(map(str, signature_of(status)))


def is_regular(status: os.stat_result) -> bool:
    """Whether reading ends: a pipe or a device may give bytes for ever."""
    return stat.S_ISREG(status.st_mode)
