"""The one door to the mlflow client: how it is reached, how patient it is, and its errors as ours."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hardloop.core import ids
from hardloop.core.errors import BadSettings, Conflict, HardloopError, Missing, Unavailable

_BATCH, _METRICS = 100, 1000  # the server's limits of params or tags, and of metrics, in one log_batch

# mlflow reads these at each call and retries for minutes by default. Set for this process alone, and only where the
# user has not.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


class MlflowSettings(BaseModel):
    """tracking_url: http(s) address of the server; credentials go into MLflow's own variables, not into the address.

    loop: whose models. store_url: what a dataset's key is appended to, e.g. "s3://bucket/", so that the run names where
    its data lies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tracking_url: str
    loop: str
    store_url: Annotated[str, Field(pattern=r"^([a-z0-9]+://.*/)?$")] = ""

    @field_validator("tracking_url")
    @classmethod
    def _http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadSettings("the MLflow address must be http(s)://host:port")
        if parts.username or parts.password:
            raise BadSettings(
                "the MLflow address must not hold credentials: set MLFLOW_TRACKING_USERNAME and _PASSWORD instead"
            )
        return url.rstrip("/")

    @field_validator("loop")
    @classmethod
    def _named(cls, loop: str) -> str:
        return ids.loop_name(loop)

    @property
    def model_name(self) -> str:
        """The name of the experiment and of the registered model."""
        return f"hardloop-{self.loop}"


class Exists(Conflict):
    """The server has one of that name already."""


class Calls:
    """The client's methods by their own names, every failure turned into an error of ours."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            try:
                return getattr(self._connected(), name)(*args, **named)
            except HardloopError:
                raise
            except Exception as error:  # mlflow lets requests', urllib3's and boto3's errors through
                self._raise(name, error)

        return call

    def _connected(self) -> Any:
        if self._client is None:
            for key, value in _ENVIRONMENT.items():
                os.environ.setdefault(key, value)
            from mlflow import MlflowClient  # 1.7 s: only who talks to MLflow pays for it

            self._client = MlflowClient(tracking_uri=self._url, registry_uri=self._url)
        return self._client

    def _raise(self, name: str, error: Exception) -> NoReturn:
        code = str(getattr(error, "error_code", ""))
        answer = getattr(error, "response", None)
        status = getattr(answer, "status_code", None)
        if code == "RESOURCE_ALREADY_EXISTS":
            raise Exists(str(error)) from error
        if code == "RESOURCE_DOES_NOT_EXIST" or status == 404 or ("alias" in str(error) and "not found" in str(error)):
            raise Missing(f"MLflow at {self._url} has no such thing ({name}): {error}") from error
        if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED") or status in (401, 403):
            raise BadSettings(
                f"MLflow at {self._url} refused {name} ({error}): check MLFLOW_TRACKING_USERNAME and _PASSWORD, "
                "and the server's --allowed-hosts"
            ) from error
        if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"):
            raise Conflict(f"MLflow at {self._url} refused {name}: {error}") from error
        raise Unavailable(
            f"MLflow at {self._url} did not answer {name} ({type(error).__name__}: {str(error)[:300]}): is it running?"
        ) from error


def dataset_input(key: str, digest: str, settings: MlflowSettings) -> Any:
    """A dataset version as the run's input, its digest cut to what MLflow takes."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    scheme = settings.store_url.partition("://")[0]
    dataset = Dataset(
        name=key,
        digest=digest[:36],  # all that MLflow takes; the whole one is a tag
        source_type=scheme or "hardloop",
        source=json.dumps({"uri": settings.store_url + key}),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def log_numbers(
    calls: Calls, run_id: str, at: int, params_of: Mapping[str, str], metrics_of: Mapping[str, float]
) -> None:
    """Parameters and metrics, in as few requests as the server's limits allow: one for up to 1,000 metrics."""
    from mlflow.entities import Metric, Param

    params = [Param(key, str(value)[:6000]) for key, value in sorted(params_of.items())]
    metrics = [Metric(key, float(value), at, 0) for key, value in sorted(metrics_of.items())]
    while params or metrics:
        room = _METRICS - len(params[:_BATCH])
        calls.log_batch(run_id, params=params[:_BATCH], metrics=metrics[:room])
        params, metrics = params[_BATCH:], metrics[room:]
