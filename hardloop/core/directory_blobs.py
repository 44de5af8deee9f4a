"""The blob store in a directory, where there is no S3-compatible server."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hardloop.core.blob_keys import check_key
from hardloop.core.errors import BadInput, BlobMissing, Unavailable

_UNFINISHED = ".unfinished-"


class DirectoryBlobs:
    """A folder that stands in for a bucket where no server can run. One machine only; safe between its processes."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        with self._errors(str(root)):
            self._root.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:  # noqa: ARG002
        """See `BlobStore.put`; the content type is not kept."""
        path = self._path(key)
        with self._errors(key), self._written(path, data) as temporary:
            Path(temporary).replace(path)

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:  # noqa: ARG002
        """See `BlobStore.put_new`; a hard link is made only where nothing is there, whoever races."""
        path = self._path(key)
        with self._errors(key), self._written(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                if path.is_dir():
                    raise
                return False
        return True

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """See `BlobStore.get`."""
        path = self._path(key)
        try:
            with self._errors(key):
                if max_bytes is not None and path.stat().st_size > max_bytes:
                    raise BadInput(f"object {key!r} is larger than the {max_bytes} bytes accepted here")
                return path.read_bytes()
        except _KeyIsFolder:
            raise BlobMissing(f"no object {key!r} in {self._root}") from None

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        with self._errors(key):
            return self._path(key).is_file()

    def keys(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `BlobStore.keys`."""
        after, folder = start_after.encode(), prefix.rpartition("/")[0]
        try:
            top = self._root / (check_key(folder) if "/" in prefix else "")
        except BadInput:
            return  # no key lies in such a folder, and ".." must not lead out of ours
        with self._errors(prefix):
            found = [
                path.relative_to(self._root).as_posix()
                for path in top.rglob("*")
                if path.is_file() and not path.name.startswith(_UNFINISHED)
            ]
        yield from sorted((k for k in found if k.startswith(prefix) and k.encode() > after), key=str.encode)

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        with self._errors(key), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            self._path(key).unlink()

    def uri(self, key: str) -> str:
        """See `BlobStore.uri`: a file:// address."""
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        if any(part.startswith(_UNFINISHED) for part in check_key(key).split("/")):
            raise BadInput(f"key {key!r}: segments that start with {_UNFINISHED!r} are the store's own")
        return self._root / key

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what the file system raises into errors of ours."""
        try:
            yield
        except FileNotFoundError:
            raise BlobMissing(f"no object {key!r} in {self._root}") from None
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            raise _KeyIsFolder(
                f"key {key!r}: a part of it is an object already, or it is other objects' folder"
            ) from None
        except OSError as error:
            raise Unavailable(
                f"the folder {self._root} cannot be used for {key!r}: {error.strerror or error}"
            ) from error

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[str]:
        """A complete, synced temporary file beside `path`; removed afterwards if it is still there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()


class _KeyIsFolder(BadInput):
    """A key that is another key's folder, or has another key for a folder: a file system holds only one of them."""
