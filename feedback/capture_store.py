"""Where capture writes to: a store handed in, a bucket's settings, or the environment of a user's model server."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hardloop.core.errors import BadSettings

if TYPE_CHECKING:
    from hardloop.core.blobs import S3Settings
    from hardloop.core.ports import BlobStore

_NEEDED = ("HARDLOOP_S3_URL", "HARDLOOP_S3_BUCKET", "HARDLOOP_S3_ACCESS_KEY", "HARDLOOP_S3_SECRET_KEY")


def store_opener(store: "BlobStore | S3Settings") -> "Callable[[], BlobStore]":
    """A function that opens the store; called again in the child of a fork, where old connections must not be used.

    Raises BadSettings now, not later on another thread, for an address that cannot be one.
    """
    from hardloop.core.blobs import S3Blobs, S3Settings  # the minio client is slow to import: not before it is used

    settings = store.settings if isinstance(store, S3Blobs) else store
    if not isinstance(settings, S3Settings):
        return lambda: settings
    first: list[BlobStore] = [S3Blobs(settings)]
    return lambda: first.pop() if first else S3Blobs(settings)


def store_from_env(environ: Mapping[str, str]) -> "BlobStore | S3Settings":
    """The store that HARDLOOP_S3_URL and its companions name. Raises BadSettings naming what is missing."""
    from hardloop.core.blobs import DirectoryBlobs, S3Settings

    address = urlsplit(environ.get("HARDLOOP_S3_URL", ""))
    if address.scheme == "file":
        if address.netloc not in ("", "localhost") or not address.path.strip("/"):
            raise BadSettings(f"HARDLOOP_S3_URL {address.geturl()!r}: expected file:///absolute/folder")
        return DirectoryBlobs(Path(unquote(address.path)))
    missing = [name for name in _NEEDED if not environ.get(name)]
    if missing:
        raise BadSettings(f"capture needs the environment variables {', '.join(missing)}: set them, or pass a store")
    url, bucket, access_key, secret_key = (environ[name] for name in _NEEDED)
    return S3Settings(url, bucket, access_key, secret_key, environ.get("HARDLOOP_S3_REGION") or "us-east-1")
