"""A whole loop in memory: real database, steps, miner, gate and ONNX scoring; fakes only where a server would be."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.engine import Engine

from feedback.capture import Capture, CapturePolicy
from feedback.predictor import Predictor
from feedback.trigger import TriggerPolicy
from hardloop.core import evaluations, images
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.errors import BadData
from hardloop.core.model_files import file_digest, read_card, write_card
from hardloop.core.ports import BlobStore, Progress
from hardloop.core.records import Evaluation, Split, TrainedModel
from hardloop.service.embeddings import EmbeddingStore
from hardloop.service.lineage import Lineage
from hardloop.service.loop import Loop
from hardloop.service.samples import Samples
from hardloop.service.scorers import scorers
from hardloop.service.settings import LoopSettings
from hardloop.service.work import Work
from miner.policy import MiningPolicy
from miner.select import PolicyMiner
from registry.gate import GatePolicy
from tests.fakes.annotation_tool import InMemoryAnnotationTool
from tests.fakes.onnx_models import linear_network, write_model
from tests.fakes.registry import InMemoryRegistry
from training import datasets

LABELS = ("red", "green", "blue")
ENCODER = "mean-rgb"


def picture(label: str, rng: np.random.Generator, clear: float = 0.8) -> bytes:
    """A noisy plain image whose hue is its label's, the less saturated the harder to tell."""
    hue = LABELS.index(label) / 3 + rng.normal(0, 0.03)
    saturation = float(np.clip(rng.normal(clear, 0.15), 0.05, 1.0))
    colour = np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, 0.9)) * 255
    pixels = np.clip(colour + rng.normal(0, 25, (12, 12, 3)), 0, 255).astype(np.uint8)
    return images.encode_png(pixels)


class MeanColourEncoder:
    """`ports.Encoder`: an image's mean colour, to unit length."""

    version = ENCODER

    def encode(self, images_: Sequence[bytes]) -> NDArray[np.float32]:
        means = np.stack([np.asarray(images.decode(data)).mean(axis=(0, 1)) for data in images_])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class MeanColourTrainer:
    """`ports.Trainer`: least squares on mean colours, cross-fitted over the dataset's folds, as a real model folder."""

    blobs: BlobStore
    calls: int = 0

    def __call__(self, dataset_key: str, recipe: str, seed: int, folder: Path, progress: Progress) -> TrainedModel:
        self.calls += 1
        dataset = datasets.load(self.blobs, dataset_key)
        rows = dataset.rows
        if len({r.label for r in rows if r.split is Split.TRAIN}) < 2:
            raise BadData("the training split has fewer than two classes: label samples of another")
        x = np.stack([np.asarray(images.decode(self.blobs.get(r.image_key))).mean(axis=(0, 1)) for r in rows]) / 255
        y = np.array([dataset.labels.index(r.label) for r in rows])
        train = np.array([r.split is Split.TRAIN for r in rows])
        fold = np.array([r.fold for r in rows])
        probs = _softmax(x @ _fit(x[train], y[train]))
        for held in range(5):
            inside, outside = train & (fold != held), train & (fold == held)
            if outside.any() and inside.any():
                probs[outside] = _softmax(x[outside] @ _fit(x[inside], y[inside]))
        names = {Split.TRAIN: "mined", Split.HOLDOUT: "audit", Split.LEGACY: "legacy"}
        evaluation = Evaluation(tuple(r.sample_id for r in rows), y, probs, tuple(names[r.split] for r in rows))
        members = [_fit(x[train], y[train]), _fit(x[train][:-1], y[train][:-1])]
        write_model(folder, LABELS, [linear_network(w) for w in members], encoder=ENCODER)
        (folder / "evaluation.parquet").write_bytes(evaluations.write(evaluation))
        card = read_card(folder)
        digests = {**card.files, "evaluation.parquet": file_digest(folder / "evaluation.parquet")}
        write_card(folder, card.model_copy(update={"files": digests}))
        accuracy = float((probs.argmax(axis=1) == y).mean())
        return TrainedModel(str(folder), LABELS, {"accuracy": accuracy}, {"recipe": recipe})


@dataclass
class FakeLoop:
    """A loop, and a hold on each of its parts."""

    loop: Loop
    blobs: DirectoryBlobs
    tool: InMemoryAnnotationTool
    registry: InMemoryRegistry
    trainer: MeanColourTrainer
    capture: Capture
    truth: dict[str, str] = field(default_factory=dict)

    def champion(self) -> Predictor:
        """The serving model, loaded."""
        champion = self.registry.champion()
        assert champion is not None
        return self.loop.scorer(champion)  # type: ignore[return-value]

    def answer_all(self) -> int:
        """Answer every waiting task truthfully."""
        done = 0
        while (task := self.tool.next_task()) is not None:
            self.tool.answer(task, self.truth[self.tool.draft(task).sample_id])
            done += 1
        return done


def fake_loop(engine: Engine, folder: Path, name: str = "colours", **settings: object) -> FakeLoop:
    """A loop over a migrated database, its files under a folder."""
    blobs = DirectoryBlobs(folder / "blobs")
    tool = InMemoryAnnotationTool(LABELS)
    registry = InMemoryRegistry(name)
    trainer = MeanColourTrainer(blobs)
    capture_policy = CapturePolicy(take_all=True, audit_share=0.1, exploration_share=0.0)
    chosen = LoopSettings.model_validate(
        {
            "name": name,
            "labels": LABELS,
            "budget": 10,
            "capture": capture_policy,
            "mining": MiningPolicy(),
            "trigger": TriggerPolicy(min_new_labels=5, debounce_s=0, cooldown_s=0),
            "gate": GatePolicy(min_mined=5),
            **settings,
        }
    )
    loop = Loop(
        settings=chosen,
        samples=Samples(engine, name),
        work=Work(engine, name),
        lineage=Lineage(engine, name),
        blobs=blobs,
        embeddings=EmbeddingStore(blobs, name),
        encoder=MeanColourEncoder(),
        miner=PolicyMiner(chosen.mining),
        tool=lambda: tool,
        trainer=trainer,
        registry=registry,
        scorer=scorers(registry, folder / "models"),
        folder=folder,
        champion_moved=lambda: None,
        image_address=lambda sample: blobs.uri(sample.image_key),
    )
    capture = Capture(blobs, name, LABELS, capture_policy, strict=True)
    return FakeLoop(loop, blobs, tool, registry, trainer, capture)


def _fit(x: NDArray[np.floating], y: NDArray[np.integer]) -> NDArray[np.floating]:
    """Weights (3, C) of a ridge regression onto the corners of the simplex, scaled into logits."""
    target = np.eye(len(LABELS))[y] - 1 / len(LABELS)
    return np.linalg.solve(x.T @ x + 1e-2 * np.eye(3), x.T @ target) * 6.0


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
