"""Production: the served model as its clients see it, over HTTP and with nothing of ours in between."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from hardloop.core.errors import BadData, Unavailable
from hardloop.core.ports import Progress
from hardloop.service.demo.items import DemoItem

_SENDERS = 4  # concurrent clients of the predictor, as production would have
_SOURCE = {"source": "demo-camera"}
_REFUSED = (400, 413, 422)  # what the predictor says of an image that it does not take
_NO_MODEL = 503


class Production:
    """Sends images to a predictor and asks it how it is. `answered` counts the images it answered so far."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        self._http = httpx.Client(base_url=url, timeout=60.0, transport=transport, trust_env=False)
        self.answered = 0

    def send(self, traffic: Sequence[DemoItem], version: str, progress: Progress) -> None:
        """Send images, all of which a model version must answer.

        Raises BadData naming an image that is refused, Unavailable naming one that is not answered, or by another
        version.
        """
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix="production") as senders:
            try:
                for done, (item, by) in enumerate(zip(traffic, senders.map(self._predict, traffic), strict=True), 1):
                    if by != version:
                        raise Unavailable(f"image {item.name!r} was answered by version {by}, not by {version}")
                    self.answered += 1
                    progress("production traffic", done, len(traffic))
            except BaseException:
                # Also on Ctrl-C: what has not started must not start, or leaving would wait for all of it.
                senders.shutdown(wait=False, cancel_futures=True)
                raise

    def serving(self) -> str | None:
        """The version that serves; None where none does yet. Raises Unavailable where nobody answers."""
        reply = self._call("GET", "/model", "which version serves", (_NO_MODEL,))
        return None if reply.status_code == _NO_MODEL else str(self._told(reply)["version"])

    def stats(self) -> Mapping[str, Any]:
        """The predictor's counters since its process started. Raises Unavailable where nobody answers."""
        return self._told(self._call("GET", "/stats", "what it counted"))

    def _predict(self, item: DemoItem) -> str:
        what = f"image {item.name!r}"
        reply = self._call("POST", "/predict", what, _REFUSED, content=item.image, params=_SOURCE)
        if reply.status_code in _REFUSED:
            raise BadData(
                f"the predictor at {self._url} refused {what} ({reply.status_code}: {reply.text[:300]}): remove or "
                "replace it"
            )
        return str(self._told(reply)["model_version"])

    def _call(
        self, method: str, path: str, what: str, accepted: Collection[int] = (), **request: Any
    ) -> httpx.Response:
        """One request about `what`. Raises Unavailable for every answer but a success and the accepted statuses."""
        try:
            reply = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"the predictor at {self._url} did not answer, asked for {what} ({type(error).__name__}): see its log"
            ) from None
        if reply.is_success or reply.status_code in accepted:
            return reply
        raise Unavailable(
            f"the predictor at {self._url} answered {reply.status_code}, asked for {what}: {reply.text[:300]}"
        )

    def _told(self, reply: httpx.Response) -> dict[str, Any]:
        try:
            return dict(reply.json())
        except (ValueError, TypeError):
            raise Unavailable(f"what answers at {self._url} is not the predictor: {reply.text[:100]!r}") from None
