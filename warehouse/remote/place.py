"""A place in an object store: an fsspec address below which objects are listed, read, written; transfers that fail are
tried again.

Nothing else of this package knows of fsspec. A process connects when it first needs to: a connection holds a thread,
and so does not outlive a fork.
"""

import errno
import os
import re
import secrets
import shutil
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from warehouse.errors import TimeloomError
from warehouse.files import atomic_write

T = TypeVar("T")

# A transfer is tried so often; the pause before the next try doubles: 0.2 s to 6.4 s, 13 s in all.
TRIES = 7
FIRST_PAUSE = 0.2
# An object is sent in parts of so many bytes, two at a time, where it is larger than two of them.
PART_BYTES = 16 << 20

_EXTRA = "pip install 'timeloom[stores]'"
# What no further try mends: by their names, as botocore is not imported.
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "SSOTokenLoadError",
    "UnauthorizedSSOTokenError", "TokenRetrievalError", "NoAuthTokenError",
    "DefaultCredentialsError",
}  # fmt: skip
_WRONG = {"ParamValidationError", "InvalidRegionError"}
_KNOWN = "give an address that fsspec knows, such as s3://bucket/prefix or file:///folder"
_LOCAL_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOTDIR}
_USER = re.compile(r"(?<=://)[^/@]*@")


class Place:
    """Objects below an address, such as s3://bucket/prefix, by names such as `objects/ab/ab12…`.

    Raises:
        TimeloomError: the address has no scheme that fsspec knows, or the package for it is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._process = 0
        self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = 0

    def __str__(self) -> str:
        """The address as messages name it: without a password."""
        return _USER.sub("", self.address)

    def _connect(self) -> None:
        if self._process == os.getpid():
            return
        scheme = self.address.partition("://")[0]
        try:
            import fsspec
        except ImportError as error:
            raise TimeloomError(f"{scheme}:// needs fsspec, which is not installed", _EXTRA) from error
        try:
            # Listings that are kept would hide what another process has sent since.
            store, path = fsspec.url_to_fs(self.address, skip_instance_cache=True, use_listings_cache=False)
        except ImportError as error:
            package = "s3fs" if scheme in ("s3", "s3a") else "a package of fsspec's"
            remedy = _EXTRA if package == "s3fs" else str(error) or "see fsspec's list of stores"
            raise TimeloomError(f"{scheme}:// needs {package}, which is not installed", remedy) from error
        except ValueError as error:
            raise TimeloomError(f"{self} is no address of a known store", _KNOWN) from error
        except Exception as error:
            raise self._failed("reached", error) from error
        self._store, self._path = store, str(path).rstrip("/")
        self._is_local = type(store).__name__ == "LocalFileSystem"
        self._is_s3 = "s3" in store.protocol
        self._process = os.getpid()

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _try(self, doing: str, action: Callable[[], T]) -> T:
        """Carries out a transfer, several times if need be.

        Raises:
            FileNotFoundError: there is no such object, bucket or folder.
            TimeloomError: it cannot be done, in one line.
        """
        self._connect()
        for left in reversed(range(TRIES)):
            try:
                return action()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:
                final = (
                    isinstance(error, PermissionError)
                    or type(error).__name__ in _NO_CREDENTIALS | _WRONG
                    or getattr(error, "errno", None) in _LOCAL_FAULTS
                )
                if final or not left:
                    raise self._failed(doing, error) from error
                time.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - left))
        raise AssertionError

    def _failed(self, doing: str, error: Exception) -> TimeloomError:
        # Messages of a store's library may quote a request: only the name of what was raised is said.
        kind = type(error).__name__
        if kind in _NO_CREDENTIALS:
            return TimeloomError(
                f"there are no credentials for {self} ({kind})",
                remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or what the store's client reads",
            )
        if kind in _WRONG:
            return TimeloomError(f"{self} is no address of a known store", _KNOWN)
        if isinstance(error, PermissionError):
            return TimeloomError(f"{self} refuses access", remedy="check the credentials and the bucket's policy")
        if getattr(error, "errno", None) in _LOCAL_FAULTS:
            return TimeloomError(
                f"a file of {self} could not be written ({os.strerror(int(getattr(error, 'errno', 0)))})",
                remedy="free disk space, and run the same command again: it resumes",
            )
        return TimeloomError(
            f"{self} could not be {doing} ({kind}), after {TRIES} tries",
            remedy="run the same command again when the store answers: it resumes",
        )

    def exists(self) -> bool:
        """Whether the bucket, or the folder above, is there."""
        self._connect()
        bucket = self._path.partition("/")[0] if self._is_s3 else self._path
        try:
            return self._try("reached", lambda: bool(self._store.exists(bucket)))
        except FileNotFoundError:
            return False

    def missing(self) -> TimeloomError:
        """The error for a bucket or folder that is not there."""
        return TimeloomError(f"there is no bucket or folder for {self}", remedy="make it, or mend the address")

    def read(self, name: str) -> bytes | None:
        """An object whole; None where there is none of that name."""
        try:
            return self._try("read", lambda: bytes(self._store.cat_file(self._at(name))))
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """The bytes of each object below a folder, by the last part of its name."""

        def listed() -> dict[str, Any]:
            self._store.invalidate_cache()
            return dict(self._store.find(self._at(folder), detail=True))

        try:
            found = self._try("listed", listed)
        except FileNotFoundError:
            return {}
        return {PurePosixPath(path).name: int(entry["size"] or 0) for path, entry in found.items()}

    def write(self, name: str, data: bytes, sha256: str | None = None) -> None:
        """Writes an object whole, also over an older one.

        Args:
            sha256: of the data, hexadecimal; S3 compares with it what has arrived.

        Raises:
            TimeloomError: it cannot be written.
        """
        try:
            if self._is_local:
                with self._local(name) as temporary:
                    temporary.write_bytes(data)
            else:
                options = self._options(len(data), sha256)
                self._try("written", lambda: self._store.pipe_file(self._at(name), data, **options))
        except FileNotFoundError as error:
            raise self.missing() from error
        except OSError as error:
            raise self._failed("written", error) from error

    def send(self, name: str, path: Path, sha256: str) -> None:
        """Writes a file as an object; as `write`."""
        if self._is_local:
            try:
                with self._local(name) as temporary:
                    shutil.copyfile(path, temporary)
            except OSError as error:
                raise self._failed("written", error) from error
            return
        options = self._options(path.stat().st_size, sha256)
        try:
            self._try("written", lambda: self._store.put_file(str(path), self._at(name), **options))
        except FileNotFoundError as error:
            raise self.missing() from error

    def _options(self, size: int, sha256: str | None) -> dict[str, Any]:
        if not self._is_s3:
            return {}
        options: dict[str, Any] = {"chunksize": PART_BYTES, "max_concurrency": 2}
        if sha256 is not None and size < 2 * PART_BYTES:
            # Of parts, the client sends checksums of its own.
            options["ChecksumSHA256"] = b64encode(bytes.fromhex(sha256)).decode("ascii")
        return options

    def _local(self, name: str) -> Any:
        # fsspec writes a local file under its own name: a kill would leave half of it.
        return atomic_write(Path(self._at(name)))

    def create(self, name: str, data: bytes) -> bytes:
        """Writes an object if there is none of that name; gives the bytes that stand under it afterwards.

        S3 decides which of several writers is the first (If-None-Match). A store that ignores the condition keeps the
        last one: who reads it again later knows who that was.

        Raises:
            TimeloomError: it cannot be written.
        """
        found = self.read(name)
        if found is not None:
            return found
        options = {"mode": "create"} | self._options(len(data), None)
        try:
            if self._is_local:
                self._create_local(Path(self._at(name)), data)
            else:
                self._try("written", lambda: self._store.pipe_file(self._at(name), data, **options))
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            raise self.missing() from error
        except OSError as error:
            raise self._failed("written", error) from error
        return self.read(name) or data

    def _create_local(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # fails where the name is taken
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, name: str, target: Path) -> None:
        """Copies an object into a file; what arrives is not checked.

        Raises:
            FileNotFoundError: there is no such object.
            TimeloomError: it cannot be read, or the file not be written.
        """

        self._try("read", lambda: self._store.get_file(self._at(name), str(target)))
