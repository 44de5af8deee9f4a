"""A model folder loaded for scoring: the one door to ONNX Runtime.

Everything about the folder is checked before the first request: the card and its digests, that networks are complete in
their own files, their inputs and outputs, and a probe run whose answers must be finite and of the right shape.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feedback.onnx_parts import has_external_data
from hardloop.core import images, model_files
from hardloop.core.errors import BadImage, BadModel
from hardloop.core.model_files import ModelCard
from hardloop.core.records import Floats

# Read when the runtime is loaded: from 1.29 on it reports its use to its maker unless told not to (0 allows it).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

TOLERANCE = 1e-5
"""How far a probability may move with the images it is scored beside.

Matrix kernels take another path for one row than for many, and add in another order. Rows never change places.
"""

_INPUT, _LOGITS, _EMBEDDING = "image", "logits", "embedding"


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a model says of N images.

    probs_NC: the first network's probabilities; member_probs_MNC: the further members', M = 0 without a committee; rows
    sum to 1. embeddings_ND: the first network's embedding, float32, not normalised.
    """

    probs_NC: Floats
    member_probs_MNC: Floats
    embeddings_ND: Floats


class Predictor:
    """Scores images with one model version. Safe between threads; answers agree within `TOLERANCE` whatever the batch.

    threads: cores that one call may use. batch: images run through the networks at once, which bounds memory.
    Raises BadModel naming the file and what is wrong with it.
    """

    def __init__(self, folder: Path, threads: int = 1, batch: int = 32) -> None:
        if batch < 1:
            raise BadModel(f"a predictor's batch is {batch}: it must hold at least one image")
        self.card: ModelCard = model_files.read_card(folder)
        self._batch = batch
        self._sessions = tuple(_open(folder / name, self.card, threads) for name in self.card.members)
        self._embedding_size = self._probe()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.card.labels

    @property
    def encoder(self) -> str:
        """Names the space of the embeddings."""
        return self.card.encoder

    def score(self, images_: Sequence[bytes]) -> Scores:
        """Score encoded image files, in their order. Raises BadImage naming the position of the first bad one."""
        parts = [self._run(pixels_NHWC) for pixels_NHWC in self._batches(images_)]
        classes, members = len(self.card.labels), len(self._sessions) - 1
        if not parts:
            return Scores(
                np.zeros((0, classes)),
                np.zeros((members, 0, classes)),
                np.zeros((0, self._embedding_size), dtype=np.float32),
            )
        all_MNC = np.concatenate([probs_MNC for probs_MNC, _ in parts], axis=1)
        embeddings_ND = np.concatenate([embeddings for _, embeddings in parts], axis=0)
        return Scores(all_MNC[0], all_MNC[1:], embeddings_ND)

    def _batches(self, images_: Sequence[bytes]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(images_), self._batch):
            part = images_[start : start + self._batch]
            yield np.stack([self._pixels(data, start + row) for row, data in enumerate(part)])

    def _pixels(self, data: bytes, position: int) -> NDArray[np.uint8]:
        return images.to_array(images.decode(data, f"image {position}"), self.card.width, self.card.height)

    def _run(self, pixels_NHWC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Probabilities of every member, the champion's network first, and the champion's embeddings."""
        answers = [session.run([_LOGITS, _EMBEDDING], {_INPUT: pixels_NHWC}) for session in self._sessions]
        probs_MNC = np.stack([softmax(logits / self.card.temperature) for logits, _ in answers])
        if not np.isfinite(probs_MNC).all() or not np.isfinite(answers[0][1]).all():
            raise BadImage("the model's answer to an image is not finite: the image is outside what it was trained on")
        return probs_MNC, answers[0][1]

    def _probe(self) -> int:
        """Run black and noise through every network, which also warms it. Returns the embedding's size."""
        card = self.card
        pixels_NHWC = np.zeros((2, card.height, card.width, 3), dtype=np.uint8)
        pixels_NHWC[1] = np.random.default_rng(0).integers(0, 256, pixels_NHWC.shape[1:], dtype=np.uint8)
        sizes = []
        for name, session in zip(card.members, self._sessions, strict=True):
            try:
                logits_NC, embeddings_ND = session.run([_LOGITS, _EMBEDDING], {_INPUT: pixels_NHWC})
            except Exception as error:  # the runtime raises its own types, one per status code
                raise BadModel(
                    f"{name} cannot be run on {card.width} x {card.height} images: {_first(error)}"
                ) from None
            if logits_NC.shape != (2, len(card.labels)):
                raise BadModel(
                    f"{name} answers 2 images with logits of shape {logits_NC.shape}: "
                    f"expected (2, {len(card.labels)}), one for each label"
                )
            if embeddings_ND.ndim != 2 or len(embeddings_ND) != 2 or embeddings_ND.shape[1] < 1:
                raise BadModel(f"{name} answers 2 images with an embedding of shape {embeddings_ND.shape}")
            if not np.isfinite(logits_NC).all() or not np.isfinite(embeddings_ND).all():
                raise BadModel(f"{name} answers a plain image with values that are not finite: its weights are broken")
            sizes.append(embeddings_ND.shape[1])
        return int(sizes[0])


def softmax(logits_NC: Floats) -> Floats:
    """Probabilities from logits, in double precision; rows sum to 1."""
    shifted = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    weights = np.exp(shifted)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _open(path: Path, card: ModelCard, threads: int) -> ort.InferenceSession:
    if has_external_data(path):
        raise BadModel(f"{path} keeps weights in other files: export it as one file")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Waiting threads would otherwise spin on the cores that the requests need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise BadModel(f"{path} is not a network that ONNX Runtime can load: {_first(error)}") from None
    _check_interface(path, session, card)
    return session


def _check_interface(path: Path, session: ort.InferenceSession, card: ModelCard) -> None:
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    if set(inputs) != {_INPUT} or not {_LOGITS, _EMBEDDING} <= set(outputs):
        raise BadModel(
            f"{path} takes {sorted(inputs)} and answers {sorted(outputs)}: expected to take '{_INPUT}' and to answer "
            f"'{_LOGITS}' and '{_EMBEDDING}'"
        )
    wanted = ((inputs[_INPUT], "tensor(uint8)"), (outputs[_LOGITS], "tensor(float)"),
              (outputs[_EMBEDDING], "tensor(float)"))  # fmt: skip
    for node, kind in wanted:
        if node.type != kind:
            raise BadModel(f"{path}: {node.name} is a {node.type}: expected a {kind}")
    shape = inputs[_INPUT].shape
    sized = [size if isinstance(size, int) else None for size in shape]
    if (
        len(shape) != 4
        or sized[0] is not None
        or any(size not in (None, given) for size, given in zip(sized[1:], (card.height, card.width, 3), strict=True))
    ):
        raise BadModel(f"{path} takes images of shape {shape}: expected (any, {card.height}, {card.width}, 3)")


def _first(error: Exception) -> str:
    """The first line of a runtime's message, which may go on for pages."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


if TYPE_CHECKING:  # the port that the service hands a Predictor in for
    from hardloop.core.ports import Scorer

    _predictor_is_a_scorer: type[Scorer] = Predictor
