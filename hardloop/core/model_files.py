"""The files of one trained model: what training writes, the registry keeps and the predictor loads.

A folder holds `model.json` (this card), one ONNX file per member (the first is the champion's own network, the others
its committee) and the same weights as safetensors. Format, inputs and outputs: `docs/model-files.md`.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hardloop.core.errors import BadModel

CARD = "model.json"
MAX_FILE_BYTES = 2 * 1024**3  # ONNX's own limit for one protobuf file

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ModelCard(BaseModel):
    """What a predictor must know of a model before it opens a network file.

    Every network takes `image`, uint8 (N, height, width, 3) RGB as `core.images.to_array` makes it, and answers
    `logits`, float32 (N, C), and `embedding`, float32 (N, D). All preprocessing is inside the network.
    encoder: names the embedding's space; embeddings compare only within one encoder.
    temperature: divides the logits of every member before the softmax; fitted on out-of-fold predictions and then on
    the audit holdout, each time with a prior (`temperature.py`); 1 where there are neither.
    files: SHA-256 of every other file in the folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    recipe: str
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    width: Annotated[int, Field(ge=1, le=4096)]
    height: Annotated[int, Field(ge=1, le=4096)]
    encoder: str
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    members: Annotated[tuple[_FileName, ...], Field(min_length=1, max_length=16)]
    files: dict[_FileName, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("labels must be distinct")
        return labels


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card last and in one step, so that a folder with a card is a complete model."""
    temporary = folder / f".{CARD}.new"
    temporary.write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / CARD)


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder, its files checked against their digests.

    Raises BadModel naming the file that is missing, altered, not named by the card, or too large.
    """
    path = folder / CARD
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: the folder does not hold a complete model") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadModel(f"{path}: {where}: {first['msg']}") from None
    for name, expected in card.files.items():
        file = folder / name
        if not file.is_file():
            raise BadModel(f"{file} is missing though {CARD} names it: fetch the model again")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise BadModel(f"{file} is larger than the {MAX_FILE_BYTES:,} bytes accepted")
        if file_digest(file) != expected:
            raise BadModel(f"{file} does not have the SHA-256 that {CARD} gives: altered or cut off; fetch it again")
    for name in card.members:
        if name not in card.files:
            raise BadModel(f"{path}: member {name} has no digest")
    return card
