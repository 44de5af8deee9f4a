"""Requests to the predictor, read within their limits: a body never grows past what is accepted, wherever it goes."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedback.problems import TooLarge, problem
from hardloop.core.errors import BadImage, BadInput

FIELDS = ("source", "group_id", "burst_id")


class BodyLimit:
    """Answers 413 as soon as a request's body is longer than `max_bytes`, by its header or by counting."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; see the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await problem(413, self._detail())(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise TooLarge(self._detail())
            return message

        await self._app(scope, counted, send)

    def _detail(self) -> str:
        return f"the request is larger than the {self._max_bytes:,} bytes accepted: send fewer or smaller images"


@dataclass(frozen=True, slots=True)
class Upload:
    """One image of a request and what the caller said about where it comes from."""

    image: bytes
    source: str
    group_id: str | None
    burst_id: str | None


async def one_upload(request: Request, max_image_bytes: int) -> Upload:
    """The image of a request: its body, or the one file of a form. Raises BadInput, BadImage or TooLarge."""
    if not _is_form(request):
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_image_bytes:
                break  # what else it holds need not be read to refuse it
        return _uploads(request, None, [_sized(bytes(body), max_image_bytes)])[0]
    uploads = await many_uploads(request, max_image_bytes, 1)
    return uploads[0]


async def many_uploads(request: Request, max_image_bytes: int, max_images: int) -> list[Upload]:
    """The images of a form in their order. Raises BadInput, BadImage or TooLarge."""
    if not _is_form(request):
        raise BadInput("expected a multipart/form-data request with image files")
    try:
        async with request.form(max_files=max_images, max_fields=3 * max_images + 3) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            images = [_sized(await file.read(), max_image_bytes) for file in files]
            if not images:
                raise BadInput("the form holds no file: send each image as a file field, e.g. -F image=@shoe.jpg")
            return _uploads(request, form, images)
    except HTTPException as error:  # how Starlette says that a form is malformed or has too many parts
        raise BadInput(f"the form cannot be read ({error.detail}): at most {max_images} files are accepted") from None


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


def _sized(data: bytes, max_image_bytes: int) -> bytes:
    if not data:
        raise BadImage("the image is empty (zero bytes): send the encoded file as the body or as a file field")
    if len(data) > max_image_bytes:
        raise TooLarge(f"the image has more than the {max_image_bytes:,} bytes accepted: shrink it")
    return data


def _uploads(request: Request, form: FormData | None, images: Sequence[bytes]) -> list[Upload]:
    columns = {name: _column(request, form, name, len(images)) for name in FIELDS}
    return [
        Upload(image, columns["source"][row] or "http", columns["group_id"][row], columns["burst_id"][row])
        for row, image in enumerate(images)
    ]


def _column(request: Request, form: FormData | None, name: str, rows: int) -> list[str | None]:
    """A field for each image, from the form, the query or a header `X-Source`, in this order: one for all, or each."""
    given = [str(value) for value in form.getlist(name)] if form is not None else []
    given = given or request.query_params.getlist(name)
    header = request.headers.get("x-" + name.replace("_", "-"))
    if not given and header is not None:
        given = [header]
    if len(given) not in (0, 1, rows):
        raise BadInput(f"{name} is given {len(given)} times for {rows} images: give it once, or once for each image")
    if len(given) != rows:
        return [given[0] if given else None] * rows
    return list(given)
