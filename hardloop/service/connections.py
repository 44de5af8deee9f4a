"""Where everything of a running service answers, with its secrets: one private file in the data folder.

The supervisor writes it, the processes it starts read it; so no secret stands on a command line.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from hardloop.core.blobs import DirectoryBlobs, S3Blobs, S3Settings
from hardloop.core.errors import BadSettings
from hardloop.core.ports import BlobStore
from hardloop.service.embedded.private_files import read_private, write_private

FILE = "connections.json"


class S3Connection(BaseModel):
    """A bucket; `label_studio_url` is where Label Studio reaches the same server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    bucket: str
    access_key: str
    secret_key: SecretStr
    region: str
    label_studio_url: str

    def settings(self) -> S3Settings:
        """As the blob store takes them."""
        return S3Settings(self.url, self.bucket, self.access_key, self.secret_key.get_secret_value(), self.region)


class Connections(BaseModel):
    """Addresses and secrets. predictors: the address of each loop's predictor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path
    service_url: str
    webhook_url: str
    admin_token: SecretStr
    webhook_secret: SecretStr
    database_url: SecretStr
    jobs_database_url: SecretStr
    s3: S3Connection | None
    blobs_dir: Path | None
    label_studio_url: str
    label_studio_key: SecretStr
    mlflow_url: str
    predictors: dict[str, str]

    def blobs(self) -> BlobStore:
        """The store, ready for use."""
        if self.s3 is not None:
            return S3Blobs(self.s3.settings())
        assert self.blobs_dir is not None
        return DirectoryBlobs(self.blobs_dir)


def write(data_dir: Path, connections: Connections) -> None:
    """Store the connections, readable by their owner alone."""
    content = connections.model_dump(mode="json")
    for name, value in connections:
        if isinstance(value, SecretStr):
            content[name] = value.get_secret_value()
    if connections.s3 is not None:
        content["s3"]["secret_key"] = connections.s3.secret_key.get_secret_value()
    write_private(data_dir / FILE, content)


def read(data_dir: Path) -> Connections:
    """The connections of a data folder. Raises BadSettings where no service was started on it."""
    content = read_private(data_dir / FILE)
    if not content:
        raise BadSettings(f"no service was started on {data_dir}: run 'hardloop up' first")
    try:
        return Connections.model_validate(content)
    except ValidationError:
        raise BadSettings(
            f"{data_dir / FILE} was not written by this version of Hardloop: end 'hardloop up' and start it again"
        ) from None
