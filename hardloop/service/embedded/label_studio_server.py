"""Label Studio as a child, in its own environment, each data folder with credentials of its own."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import httpx

from hardloop.core.errors import Unavailable
from hardloop.core.ports import Progress
from hardloop.service.children import Check, Child, Command, PortTaken
from hardloop.service.embedded.label_studio_env import (
    DATABASE,
    InstallFailed,
    ensure_label_studio_env,
    environment,
    home,
    template,
)
from hardloop.service.embedded.place import Place, Running, start_on_free_ports

NAME = "label-studio"
USERNAME = "admin@hardloop.localhost"


@dataclass(frozen=True, slots=True)
class LabelStudioEndpoint:
    """A Label Studio and its administrator. `token` is a legacy one (header `Authorization: Token ...`)."""

    url: str
    username: str
    token: str = field(repr=False)
    password: str = field(repr=False)


def start(place: Place, progress: Progress) -> tuple[Running, LabelStudioEndpoint]:
    """Start it on the data folder; installs it first where this machine has not. Raises Unavailable."""
    try:
        program = ensure_label_studio_env(progress)
    except InstallFailed as error:
        raise Unavailable(str(error)) from None
    folder = place.folder(NAME)
    _copy_template(template(home()), folder)
    password = place.secrets.get("label_studio_password")
    # The column behind legacy tokens holds 40 characters.
    token = place.secrets.get("label_studio_token", lambda: token_hex(20))

    def command(ports: Sequence[int]) -> Command:
        (port,) = ports
        url = f"http://127.0.0.1:{port}"
        variables = {
            "LABEL_STUDIO_HOST": url,
            "LABEL_STUDIO_ALLOWED_HOSTS": "127.0.0.1,localhost",
            "LABEL_STUDIO_CSRF_TRUSTED_ORIGINS": f"{url},http://localhost:{port}",
            "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            # The administrator is made at the first start on a data folder and left alone ever after.
            "LABEL_STUDIO_USERNAME": USERNAME,
            "LABEL_STUDIO_PASSWORD": password,
            "LABEL_STUDIO_USER_TOKEN": token,
        }
        return Command(
            name="Label Studio",
            argv=[
                str(program), "start", "--no-browser", "--enable-legacy-api-token",
                "--internal-host", "127.0.0.1", "--port", str(port),
            ],
            log=place.log(NAME),
            healthy=_answers(url, token),
            environment=environment(folder, **variables),
            folder=folder,
            start_s=240.0,
            locks=place.locks,
        )  # fmt: skip

    running = start_on_free_ports(place, NAME, 1, command, progress)
    return running, LabelStudioEndpoint(f"http://127.0.0.1:{running.ports[0]}", USERNAME, token, password)


def _answers(url: str, token: str) -> Check:
    """Healthy: is up and knows our administrator by the token that only this data folder's database holds."""

    def check(child: Child) -> bool:
        if "is in use." in child.said():
            raise PortTaken(f"Label Studio found {url} taken and would have moved to another port")
        with httpx.Client(base_url=url, timeout=5.0, trust_env=False) as client:
            if client.get("/health").status_code != 200:
                return False
            answer = client.get("/api/current-user/whoami", headers={"Authorization": f"Token {token}"})
            return answer.status_code == 200 and answer.json()["email"] == USERNAME

    return check


def _copy_template(source: Path, folder: Path) -> None:
    """Give a new data folder the migrated database. The rename comes last: killed half-way, it is copied again."""
    if (folder / DATABASE).exists():
        return
    partial = folder / f".{DATABASE}.partial"
    shutil.copyfile(source / DATABASE, partial)
    partial.chmod(0o600)
    partial.replace(folder / DATABASE)
