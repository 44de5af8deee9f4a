"""The blob store: an S3-compatible server through the minio client, or a directory where there is no server."""

import hashlib
import io
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio import Minio
from minio.credentials import Credentials
from minio.error import MinioException, S3Error
from minio.signer import sign_v4_s3

from hardloop.core.blob_keys import check_key
from hardloop.core.directory_blobs import DirectoryBlobs
from hardloop.core.errors import BadInput, BadSettings, BlobMissing, Unavailable

__all__ = ["DirectoryBlobs", "S3Blobs", "S3Settings", "check_key"]

_MISSING = {"NoSuchKey", "NoSuchObject", "ResourceNotFound"}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONFLICTS = 3


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How to reach a bucket. `url` is http(s)://host:port; credentials are never written to logs."""

    url: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"


class S3Blobs:
    """A bucket on an S3-compatible server. Safe to share between threads.

    `put_new` uses `If-None-Match: *` where the server honours it (probed once, at the first use) and otherwise looks
    before it writes; then two racing writers of one key may both be told it was free. Nothing in the product relies on
    the store alone for exactly-once.
    """

    def __init__(self, settings: S3Settings, timeout_s: float = 20.0) -> None:
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
            raise BadSettings(f"S3 address {settings.url!r}: expected http(s)://host:port without a path")
        if not _BUCKET.fullmatch(settings.bucket) or ".." in settings.bucket:
            raise BadSettings(f"bucket {settings.bucket!r}: a name is 3 to 63 of a-z, 0-9, '-' and '.'")
        self.settings = settings
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=5.0, read=timeout_s),
            maxsize=32,
            retries=urllib3.Retry(total=2, backoff_factor=0.2, status_forcelist=[502, 503, 504]),
        )
        self._client = Minio(
            endpoint=parts.netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=parts.scheme == "https",
            region=settings.region,
            http_client=self._http,
        )
        self._bucket = settings.bucket
        self._creates_once: bool | None = None

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there. Raises Unavailable; BadSettings where the credentials are refused."""
        with self._errors(self._bucket):
            try:
                if not self._client.bucket_exists(bucket_name=self._bucket):
                    self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """See `BlobStore.put`."""
        check_key(key)
        with self._errors(key):
            self._client.put_object(
                bucket_name=self._bucket,
                object_name=key,
                data=io.BytesIO(data),
                length=len(data),
                content_type=content_type,
            )

    def put_new(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> bool:
        """See `BlobStore.put_new`. Raises Unavailable where the answer was lost: then either may be the case."""
        check_key(key)
        if self._creates_once is None:
            self._creates_once = self._probe_create_once()
        if self._creates_once:
            return self._put_if_free(key, data, content_type)
        if self.exists(key):
            return False
        self.put(key, data, content_type)
        return True

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """See `BlobStore.get`."""
        check_key(key)
        with self._errors(key):
            response = self._client.get_object(bucket_name=self._bucket, object_name=key)
            try:
                data: bytes = response.read() if max_bytes is None else response.read(max_bytes + 1)
            finally:
                response.close()
                response.release_conn()
        if max_bytes is not None and len(data) > max_bytes:
            raise BadInput(f"object {key!r} is larger than the {max_bytes} bytes accepted here")
        return data

    def exists(self, key: str) -> bool:
        """See `BlobStore.exists`."""
        check_key(key)
        try:
            with self._errors(key):
                self._client.stat_object(bucket_name=self._bucket, object_name=key)
        except BlobMissing:
            return False
        return True

    def keys(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """See `BlobStore.keys`."""
        if start_after > prefix and not start_after.startswith(prefix):
            return  # every key under the prefix comes before it
        # Some servers refuse a start outside the prefix; here it comes before all keys, so it is not needed.
        after = start_after if start_after.startswith(prefix) else ""
        with self._errors(prefix):
            for item in self._client.list_objects(
                bucket_name=self._bucket, prefix=prefix, recursive=True, start_after=after or None
            ):
                if item.object_name and not item.is_dir and item.object_name > after:
                    yield item.object_name

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        check_key(key)
        with self._errors(key), suppress(BlobMissing):
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

    def uri(self, key: str) -> str:
        """See `BlobStore.uri`."""
        return f"s3://{self._bucket}/{check_key(key)}"

    def _put_if_free(self, key: str, data: bytes, content_type: str) -> bool:
        """Whether the conditional put was taken. Raises _NotHonoured where the server does not know the condition."""
        # The client's put_object has no argument for conditional headers.
        url, headers = self._signed_put(key, data, {"If-None-Match": "*", "Content-Type": content_type})
        for _ in range(_CONFLICTS):
            with self._errors(key):
                # Repeated only where nothing was sent: a put whose answer was lost would find its own object there.
                once = urllib3.Retry(total=2, connect=2, read=0, status=0, other=0, redirect=0, backoff_factor=0.2)
                response = self._http.request("PUT", url, body=data, headers=headers, retries=once)
            if response.status != 409:  # a conflict with a delete under way says nothing about the key yet
                break
        if response.status == 412:
            return False
        if response.status in (400, 501):
            raise _NotHonoured
        if response.status in (401, 403):
            raise BadSettings(f"S3 at {self.settings.url} refused the credentials for {key!r} (HTTP {response.status})")
        if response.status == 404:
            raise Unavailable(f"no bucket {self._bucket!r} at {self.settings.url}: create it or correct its name")
        if response.status >= 300:
            raise Unavailable(f"S3 at {self.settings.url} answered {response.status} to a conditional put of {key!r}")
        return True

    def _signed_put(self, key: str, data: bytes, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        """The address to put a key to, and the headers that sign it.

        The signature stands in the headers, not in the address: urllib3 logs addresses, e.g. when it tries again.
        """
        # The client knows where a provider wants the bucket's name; its signature in the address is left out.
        address = self._client.get_presigned_url("PUT", bucket_name=self._bucket, object_name=key)
        url = urlsplit(address)._replace(query="")
        at = datetime.now(UTC)
        digest = hashlib.sha256(data).hexdigest()
        headers |= {
            "Host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": at.strftime("%Y%m%dT%H%M%SZ"),
        }
        if self.settings.access_key:  # without one, the client asks as nobody in particular too
            sign_v4_s3(
                method="PUT",
                url=url,
                region=self.settings.region,
                headers=headers,
                credentials=Credentials(self.settings.access_key, self.settings.secret_key),
                content_sha256=digest,
                date=at,
            )
        return url.geturl(), headers

    def _probe_create_once(self) -> bool:
        """Whether a second conditional put of a key is refused, tried on a key of our own."""
        key = f"probes/create-once-{secrets.token_hex(8)}"
        try:
            self._put_if_free(key, b"1", "text/plain")
            refused = not self._put_if_free(key, b"2", "text/plain")
        except _NotHonoured:
            return False
        self.delete(key)
        return refused

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turns what the client and the network raise into errors of ours."""
        try:
            yield
        except S3Error as error:
            raise self._translate(error, key) from error
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(
                f"S3 at {self.settings.url} does not answer ({type(error).__name__}): is it running?"
            ) from error
        except (MinioException, ElementTree.ParseError) as error:
            raise Unavailable(
                f"what answers at {self.settings.url} does not speak S3 ({type(error).__name__}): correct the address"
            ) from error

    def _translate(self, error: S3Error, key: str) -> Exception:
        if error.code in _MISSING:
            return BlobMissing(f"no object {key!r} in bucket {self._bucket!r}")
        if error.code == "NoSuchBucket":
            return Unavailable(f"no bucket {self._bucket!r} at {self.settings.url}: create it or correct its name")
        if error.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return BadSettings(f"S3 at {self.settings.url} refused the credentials for {key!r} ({error.code})")
        return Unavailable(f"S3 at {self.settings.url} answered {error.code} for {key!r}: {error.message}")


class _NotHonoured(Exception):
    """The server does not take conditional puts."""
