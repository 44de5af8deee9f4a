"""The service's own API, as the command line and the demo call it."""

import time
from typing import Any

import httpx

from hardloop.core.errors import HardloopError, Unavailable
from hardloop.core.ports import Progress
from hardloop.service.connections import Connections

_PAUSE_S = 0.1
_LOOK_S = 1.0  # a loop's status costs the service some queries
_RESTART_S = 60.0  # a service that was killed answers again well within this, as the same job


class Client:
    """Calls the service at the connections' address with its token."""

    def __init__(
        self, connections: Connections, timeout_s: float = 120.0, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = connections.service_url
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1",
            headers={"Authorization": f"Bearer {connections.admin_token.get_secret_value()}"},
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
        )

    def get(self, path: str) -> Any:
        """GET a path. Raises HardloopError with the service's own words, Unavailable where nobody answers."""
        return self._call("GET", path)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        """POST JSON, or what httpx takes (`files`, `data`, `headers`)."""
        return self._call("POST", path, **({"json": body} if body is not None else {}), **more)

    def run(
        self, loop: str, body: dict[str, Any], key: str | None = None, wait_s: float = 3600.0,
        progress: Progress | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Submit a job and wait until it has ended; `progress` hears what the loop says of its work.

        A restart of the service in between is waited out.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        job: dict[str, Any] = self.post(f"/loops/{loop}/jobs", body, headers=headers)
        heard = looked = began = time.monotonic()
        said: Any = None
        while job["state"] in ("waiting", "running"):
            if time.monotonic() - began > wait_s:
                raise Unavailable(f"job {job['job_id']} has not ended after {wait_s:.0f} s: see the service's log")
            time.sleep(_PAUSE_S)
            try:
                if progress is not None and time.monotonic() - looked >= _LOOK_S:
                    looked = time.monotonic()
                    said = self._relay(loop, progress, said)
                job = self.get(f"/jobs/{job['job_id']}")
                heard = time.monotonic()
            except Unavailable:
                if time.monotonic() - heard > _RESTART_S:
                    raise
        return job

    def _relay(self, loop: str, progress: Progress, said: Any) -> Any:
        """Pass on what the loop says of its work where it differs from what it said before; returns it."""
        now = self.get(f"/loops/{loop}")["progress"]
        if now is not None and now != said:
            progress(now["what"], now["done"], now["total"])
        return now

    def _call(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise Unavailable(
                f"the service at {self._url} does not answer ({type(error).__name__}): is 'hardloop up' running?"
            ) from None
        if answer.is_error:
            try:
                detail = answer.json()["detail"]
            except (ValueError, KeyError, TypeError):
                detail = answer.text[:500]
            raise HardloopError(f"the service answered {answer.status_code}: {detail}")
        try:
            return answer.json()
        except ValueError:
            raise Unavailable(
                f"what answers at {self._url} is not Hardloop's service: is 'hardloop up' still running?"
            ) from None
