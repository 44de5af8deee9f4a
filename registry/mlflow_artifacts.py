"""What was stored with a version, brought back and checked: artifact bytes are never trusted."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hardloop.core import evaluations
from hardloop.core.errors import BadModel, Conflict, Missing
from hardloop.core.model_files import CARD, MAX_FILE_BYTES, ModelCard, file_digest, read_card
from hardloop.core.records import Evaluation, ModelVersion, Verdict
from registry import run_contents as contents
from registry.mlflow_client import Calls

Sizes = Mapping[str, int | None]


def fetch(calls: Calls, version: ModelVersion, folder: Path) -> Path:
    """The version's model files in `folder`, which appears whole or not at all; one that holds them is kept.

    Raises BadModel; Conflict where the folder holds something that is not a model.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and any(folder.iterdir()) and not (folder / CARD).is_file():
        raise Conflict(f"{folder} holds files that are not a model: name an empty or new folder")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        sizes = _sizes(calls, version, contents.MODEL_FOLDER)
        card = _card(calls, version, sizes, Path(temporary))
        fetched = Path(temporary) / contents.MODEL_FOLDER
        if _same_model(fetched / CARD, folder):
            return folder
        for name in card.files:
            _download(calls, version, sizes, _inside(name), Path(temporary), MAX_FILE_BYTES)
        read_card(fetched)
        if folder.exists():
            folder.rename(Path(temporary) / "replaced")
        fetched.rename(folder)
    return folder


def evaluation(calls: Calls, version: ModelVersion) -> Evaluation:
    """The evaluation logged with the version. Raises BadModel where it was altered."""
    with tempfile.TemporaryDirectory(prefix="hardloop-fetch-") as temporary:
        folder = Path(temporary)
        sizes = _sizes(calls, version, contents.MODEL_FOLDER)
        card = _card(calls, version, sizes, folder)
        _download(calls, version, sizes, _inside(evaluations.FILE), folder, evaluations.MAX_BYTES)
        return contents.read_evaluation(folder / contents.MODEL_FOLDER, card)


def verdict(calls: Calls, version: ModelVersion) -> Verdict | None:
    """The latest verdict recorded on the version, None where there is none."""
    with tempfile.TemporaryDirectory(prefix="hardloop-fetch-") as folder:
        try:
            sizes = _sizes(calls, version, None)
            file = _download(calls, version, sizes, contents.VERDICT_FILE, Path(folder), contents.MAX_CARD_BYTES)
        except Missing:
            return None
        return contents.verdict_from(file.read_bytes())


def _card(calls: Calls, version: ModelVersion, sizes: Sizes, folder: Path) -> ModelCard:
    """The version's card, downloaded and found to be the one that was registered."""
    tags = calls.get_model_version(version.name, version.version).tags
    file = _download(calls, version, sizes, _inside(CARD), folder, contents.MAX_CARD_BYTES)
    if tags.get(contents.CARD_DIGEST) != file_digest(file):
        raise BadModel(f"{CARD} of version {version.version} is not the one that was registered: altered or cut off")
    return ModelCard.model_validate_json(file.read_bytes())


def _sizes(calls: Calls, version: ModelVersion, parent: str | None) -> Sizes:
    """Bytes of each artifact directly below `parent`, by path; None where the store does not tell."""
    return {entry.path: entry.file_size for entry in calls.list_artifacts(version.run_id, parent)}


def _download(calls: Calls, version: ModelVersion, sizes: Sizes, path: str, folder: Path, max_bytes: int) -> Path:
    """One artifact of a version's run, below `folder`. Raises Missing or BadModel; BadModel where it is too large."""
    if path not in sizes:
        # A model without its files is no model; a verdict may well be missing.
        kind = BadModel if path.startswith(_inside("")) else Missing
        raise kind(f"version {version.version} of {version.name!r} holds no {path} in MLflow: was it deleted there?")
    if (sizes[path] or 0) > max_bytes:
        raise BadModel(f"{path} of version {version.version} has {sizes[path]:,} bytes, {max_bytes:,} are accepted")
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    # Where below the given folder the client puts a file depends on the store behind the server.
    got = Path(calls.download_artifacts(version.run_id, path, str(target.parent)))
    if got != target:
        got.replace(target)
    return target


def _inside(name: str) -> str:
    return f"{contents.MODEL_FOLDER}/{name}"


def _same_model(card: Path, folder: Path) -> bool:
    """Whether a folder holds, whole and unaltered, the model this card describes."""
    with suppress(BadModel):
        read_card(folder)
        return file_digest(card) == file_digest(folder / CARD)
    return False
