"""What the command line says about a running installation."""

import sys
from collections.abc import Mapping
from typing import Any

from hardloop.service.connections import FILE, Connections
from hardloop.service.embedded.label_studio_server import USERNAME
from hardloop.service.embedded.private_files import Secrets
from hardloop.service.settings import Settings


def show(connections: Connections, settings: Settings) -> str:
    """Addresses, and how a model server reaches the store.

    In a terminal also the secrets that were made here; elsewhere, where output is kept for long and read by many, only
    the files they lie in. A secret that the user brought is known to them and shown nowhere.
    """
    terminal = sys.stdout.isatty()
    token = f"token: {connections.admin_token.get_secret_value()}" if terminal else "with the token"
    lines = [
        "",
        f"service       {connections.service_url}   (API under /docs; {token})",
        *(
            f"predictor     {address}   (loop {loop}: POST an image to /predict)"
            for loop, address in connections.predictors.items()
        ),
        f"Label Studio  {connections.label_studio_url}{_login(settings, terminal)}",
        f"MLflow        {connections.mlflow_url}",
    ]
    if connections.s3 is not None:
        s3, own = connections.s3, settings.store.url is not None
        key, secret = (s3.access_key, s3.secret_key.get_secret_value()) if terminal and not own else ("…", "…")
        lines += [
            f"S3            {s3.url}   (bucket {s3.bucket})",
            "",
            "for your own model server:",
            f"  export HARDLOOP_S3_URL={s3.url} HARDLOOP_S3_BUCKET={s3.bucket}",
            f"  export HARDLOOP_S3_ACCESS_KEY={key} HARDLOOP_S3_SECRET_KEY={secret}" + ("   (your own)" if own else ""),
        ]
    else:
        lines += ["", "for your own model server:", f"  export HARDLOOP_S3_URL=file://{connections.blobs_dir}"]
    if not terminal:
        folder = settings.data_dir
        lines += ["", f"the secrets: {folder / FILE}, Label Studio's password: {folder / 'secrets.json'}"]
    return "\n".join(lines) + "\n"


def status_lines(loop: Mapping[str, Any]) -> list[str]:
    """One loop's status in a few lines for people."""
    samples, queue = loop["samples"], loop["queue"]
    held_out = samples.get("audit", 0)
    running = [key for key, state in loop["trainings"].items() if state == "running"]
    training = f"training {running[0]}" if running else f"next training: {loop['next_training']['waits_for'] or 'due'}"
    lines = [
        f"loop {loop['loop']}",
        f"  samples   {samples.get('pool', 0)} in the pool, {held_out} held out, {loop['refusals']} refused",
        f"  picks     {loop['unasked']} never picked" + _when_picked(loop["mines_from"]),
        f"  queue     {queue['queued']} to review, {queue['approved']} to send, {queue['open']} with annotators",
        f"  labels    {queue['labelled']} answered, {loop['given_labels']} given, {loop['disputed']} disputed",
        f"  models    champion {loop['champion'] or 'none yet'}; {training}",
    ]
    return lines + [f"  trouble   {step}: {why}" for step, why in loop["errors"].items()]


def _when_picked(mines_from: int | None) -> str:
    if mines_from is None:
        return ", none are until somebody mines"
    return f"; when little waits, from {mines_from} on the service picks by itself"


def _login(settings: Settings, with_password: bool) -> str:
    if settings.label_studio.url:
        return ""
    if not with_password:
        return f"   (login {USERNAME})"
    password = Secrets(settings.data_dir / "secrets.json").get("label_studio_password")
    return f"   (login {USERNAME}, password {password})"
