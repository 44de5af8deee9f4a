"""Small model folders as training leaves them; the networks are bytes, which no registry looks into."""

from pathlib import Path

import numpy as np

from hardloop.core import evaluations
from hardloop.core.model_files import ModelCard, file_digest, write_card
from hardloop.core.records import Evaluation, TrainedModel

LABELS = ("cat", "größe $x_{")


def trained_model(
    folder: Path, seed: int = 0, *, size: int = 2_000, audit_only: bool = False, labels: tuple[str, ...] = LABELS
) -> TrainedModel:
    """A whole model folder, its numbers named as training names them; another seed gives other weights and answers."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "member-0.onnx").write_bytes(rng.bytes(size))
    (folder / "member-0.safetensors").write_bytes(rng.bytes(size))
    evaluation = Evaluation(
        tuple(f"{i:032x}" for i in range(60)),
        rng.integers(len(labels), size=60),
        rng.dirichlet(np.ones(len(labels)), size=60).astype(np.float32),
        ("audit",) * 60 if audit_only else ("mined",) * 20 + ("audit",) * 25 + ("legacy",) * 15,
    )
    (folder / evaluations.FILE).write_bytes(evaluations.write(evaluation))
    names = ("member-0.onnx", "member-0.safetensors", evaluations.FILE)
    card = ModelCard(
        recipe="linear-probe",
        labels=labels,
        width=8,
        height=8,
        encoder=f"enc-{seed}",
        members=("member-0.onnx",),
        files={name: file_digest(folder / name) for name in names},
    )
    write_card(folder, card)
    metrics = {"train/loss": 0.5, "seconds": 1.25} | {
        f"train/support/{label}": float(i) for i, label in enumerate(labels)
    }
    return TrainedModel(str(folder), labels, metrics, {"lr": "0.1", "seed": str(seed)})
