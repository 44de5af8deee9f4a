"""What a run holds besides the model's own files: tags, the environment, metrics, pictures. No server is asked here."""

import functools
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hardloop.core import evaluations
from hardloop.core.errors import BadInput, BadModel
from hardloop.core.model_files import CARD, ModelCard, file_digest, read_card
from hardloop.core.records import Evaluation, Interval, SliceVerdict, TrainedModel, Verdict
from registry import plots
from registry.metrics import SliceReport, flat_metrics, report, storable

MODEL_FOLDER = "model"
VERDICT_FILE = "verdict.json"
MAX_CARD_BYTES = 4 * 1024**2  # a card names labels and files: 10,000 labels stay under a megabyte

LOOP, TRAINING_KEY, CARD_DIGEST = "hardloop.loop", "hardloop.training_key", "hardloop.card_sha256"
DATASET_KEY, DATASET_DIGEST, LABELS = "hardloop.dataset_key", "hardloop.dataset_digest", "hardloop.labels"
CODE_COMMIT, VERDICT = "hardloop.code_commit", "hardloop.verdict"

# What decides how a model comes out; everything else installed is listed in environment.json.
_KEY_PACKAGES = ("hardloop", "numpy", "torch", "onnx", "onnxruntime", "scikit-learn", "mlflow", "pillow")


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model folder that was opened and found whole, with what identifies it."""

    model: TrainedModel
    card: ModelCard
    card_digest: str
    evaluation: Evaluation
    reports: tuple[SliceReport, ...]

    @property
    def metrics(self) -> Mapping[str, float]:
        """What training measured, and every number of the evaluation by slice and class."""
        return {**storable(self.model.metrics, self.card.labels), **flat_metrics(self.reports)}


def opened(model: TrainedModel) -> Trained:
    """The trained model's folder, checked. Raises BadModel where it is not whole or contradicts itself."""
    folder = Path(model.folder)
    card = read_card(folder)
    if evaluations.FILE not in card.files:
        raise BadModel(f"{folder / CARD} does not name {evaluations.FILE}: train again, or log its evaluation")
    if card.labels != tuple(model.labels):
        raise BadModel(f"{folder / CARD} has labels {list(card.labels)}, the training {list(model.labels)}")
    evaluation = read_evaluation(folder, card)
    return Trained(model, card, file_digest(folder / CARD), evaluation, report(evaluation, card.labels))


def read_evaluation(folder: Path, card: ModelCard) -> Evaluation:
    """The evaluation in a folder, its digest checked against the card. Raises BadModel."""
    file = folder / evaluations.FILE
    if card.files.get(evaluations.FILE) != file_digest(file):
        raise BadModel(f"{evaluations.FILE} does not have the SHA-256 that {CARD} gives: altered or cut off")
    try:
        evaluation = evaluations.read(file.read_bytes(), evaluations.FILE)
    except BadInput as error:
        raise BadModel(str(error)) from None
    if len(evaluation.ids) and evaluation.probs_NC.shape[1] != len(card.labels):
        raise BadModel(
            f"{evaluations.FILE} has {evaluation.probs_NC.shape[1]} classes, {CARD} {len(card.labels)} labels"
        )
    return evaluation


@functools.cache  # 400 packages' metadata take half a second to read and cannot change under a running process
def environment() -> dict[str, Any]:
    """Python, platform and every installed distribution with its version: where this process runs."""
    packages = sorted(
        {(dist.metadata["Name"] or "").lower(): dist.version for dist in metadata.distributions()}.items()
    )
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "packages": dict(packages),
    }


def environment_tags(found: Mapping[str, Any]) -> dict[str, str]:
    """The versions that matter most, as tags a person can filter runs by."""
    packages = found["packages"]
    tags = {f"hardloop.env.{name}": packages[name] for name in _KEY_PACKAGES if name in packages}
    return {"hardloop.env.python": found["python"], "hardloop.env.platform": found["platform"]} | tags


def stage(trained: Trained, found: Mapping[str, Any], folder: Path) -> None:
    """Lay out everything the run will hold as files under an empty folder, the model's files linked where possible."""
    source, target = Path(trained.model.folder), folder / MODEL_FOLDER
    target.mkdir(parents=True)
    for name in (CARD, *trained.card.files):
        shutil.copyfile(source / name, target / name)
    _write_json(folder / "environment.json", found)
    _write_json(folder / "metrics.json", [_report_json(part) for part in trained.reports])
    pictures = folder / "plots"
    pictures.mkdir()
    if trained.reports:
        (pictures / "slices.png").write_bytes(plots.slices(trained.reports))
    for part in trained.reports:
        (pictures / f"confusion-{part.name}.png").write_bytes(plots.confusion_matrix(part))


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """The verdict in a few short texts, as a person reads them on the version's page."""
    tags = {VERDICT: "promote" if verdict.promote else "keep the champion", f"{VERDICT}.reason": verdict.reason}
    word = {True: "passed", False: "failed", None: "too small to say"}
    for part in verdict.slices:
        moved = "" if part.difference is None else f", difference {_interval(part.difference)}"
        tags[f"{VERDICT}.{part.name}"] = (
            f"{part.rule}: {word[part.passed]}; accuracy {_interval(part.candidate)}{moved}, n = {part.n}"
        )
    return tags


def verdict_json(verdict: Verdict) -> str:
    """The verdict with all its numbers."""
    return json.dumps({"format": 1} | asdict(verdict), indent=2)


def verdict_from(data: bytes) -> Verdict:
    """The verdict in the JSON of `verdict_json`. Raises BadModel for anything else."""
    try:
        told = json.loads(data)
        slices = tuple(
            SliceVerdict(
                **{
                    **part,
                    **{key: Interval(**part[key]) if part[key] else None for key in ("champion", "difference")},
                    "candidate": Interval(**part["candidate"]),
                }
            )
            for part in told["slices"]
        )
        return Verdict(told["promote"], told["reason"], slices, told["champion_version"], told["seed"])
    except (ValueError, TypeError, KeyError) as error:
        raise BadModel(f"{VERDICT_FILE} does not hold a verdict ({error}): let the gate decide again") from None


def _report_json(part: SliceReport) -> dict[str, Any]:
    told = {field: getattr(part, field) for field in ("name", "n", "macro_f1", "nll")}
    classes = [{key: None if value != value else value for key, value in asdict(one).items()} for one in part.classes]
    return told | {"accuracy": asdict(part.accuracy), "confusion": part.confusion_CC.tolist(), "classes": classes}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _interval(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
