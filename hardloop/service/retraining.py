"""From labels to a candidate: when a training is due, what it is given, and how it gets through crashes and faults."""

import shutil
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from feedback.trigger import TriggerDecision, TriggerState, decide
from hardloop.core import ids
from hardloop.core.errors import BadData, Busy, Conflict, HardloopError, Interrupted, Unavailable
from hardloop.core.ports import Progress
from hardloop.core.records import DatasetRow, Split
from hardloop.service import database as db
from hardloop.service import stored_images
from hardloop.service.loop import Loop
from training import datasets, leakage

_STOP_S = 10.0  # from the signal that ends everything to the service's own stop; a training costs more than that
MAX_ATTEMPTS = 3  # a training that takes the process down this often is given up, not tried for ever


def due(loop: Loop, manual: bool = False) -> TriggerDecision:
    """Whether a training is due, why, and otherwise what it waits for."""
    trainings = loop.lineage.trainings()
    ended = [t for t in trainings if t["state"] != "running"]
    if manual and len(ended) == len(trainings):
        return TriggerDecision(fire=True, reason="a person asked for it", waits_for="")
    # Which labels are unused is a mark on their rows, not a matter of clocks; legacy ones only measure.
    unused = [row["changed_at"] for row in loop.work.labels() if row["used_in"] is None and row["origin"] != "legacy"]
    state = TriggerState.from_moments(
        unused,
        loop.settings.trigger,
        training=len(ended) < len(trainings),
        started_at=max((t["started_at"] for t in trainings), default=None),
        ended_at=max((t["finished_at"] for t in ended), default=None),
        failures=sum(t["failures"] for t in takewhile(lambda t: t["state"] == "failed", reversed(ended))),
    )
    return decide(loop.settings.trigger, state, db.now())


def claim(loop: Loop, reason: str) -> Mapping[str, Any] | None:
    """Freeze the labels into a dataset version and claim its training; None where it has been trained on before.

    Labels whose image is gone are left out, and named. Raises BadData where there is no label, Conflict while another
    training of the loop runs.
    """
    labels = loop.work.labels()
    every = labelled_rows(loop, labels)
    lost = stored_images.missing(loop.blobs, list(loop.samples.get(row.sample_id for row in every).values()))
    rows = [row for row in every if row.sample_id not in lost]
    if not rows:
        raise BadData(f"loop {loop.name!r} has no label yet: bring labelled images (role 'seed'), or answer tasks")
    held_out = [leakage.Reserved(s.sample_id, s.group_id, s.fingerprint) for s in loop.samples.of_role("audit")]
    kept, excluded = leakage.assemble(rows, held_out)
    dataset = datasets.build(loop.name, loop.settings.labels, kept)
    key = datasets.store(loop.blobs, dataset)
    recipe, seed = loop.settings.recipe, loop.settings.seed
    chosen = {"dataset": dataset.digest, "recipe": recipe, "seed": seed, **loop.settings.recipe_settings}
    return loop.lineage.claim_training(
        ids.short_digest(chosen),
        recipe,
        seed,
        digest=dataset.digest,
        key=key,
        counts=dataset.counts,
        excluded=[f"{e.sample_id}: {e.reason}" for e in excluded]
        + [f"{sample_id}: its image is gone from the store" for sample_id in sorted(lost)],
        reason=reason,
        used=[(row["sample_id"], row["changed_at"]) for row in labels],
    )


def run(loop: Loop, training: Mapping[str, Any], progress: Progress) -> str:
    """Train and register a claimed training; returns the model version. Raises what it failed with, as its row says.

    What is away is waited for, however long. Anything else ends the training as failed, and so does a version whose
    number was another training's; its labels count as unused again, so that the trigger tries once more after a pause
    that doubles with every failure.
    """
    training_key = str(training["training_key"])
    version = loop.registry.find(training_key)
    if version is None:
        if loop.lineage.attempt_training(training_key) > MAX_ATTEMPTS:
            why = f"given up after {MAX_ATTEMPTS} attempts that ended with the process: see the service's log"
            raise _failed(loop, training_key, Interrupted(why))
        dataset = loop.lineage.dataset(training["dataset_number"], loop.settings.labels)
        folder = loop.folder / "trainings" / training_key
        try:
            model = loop.trainer(dataset.key, training["recipe"], training["seed"], folder, progress)
            version = loop.registry.register(model, training_key, dataset.key, dataset.digest)
        except (Unavailable, Busy):
            loop.lineage.attempt_training(training_key, -1)
            raise
        except Interrupted:
            # A stop of the service ends its training too, an instant before or after it tells us. Whoever stops three
            # times during a long training must not lose it; whatever else ended the training counts.
            if loop.stopping.wait(_STOP_S):
                loop.lineage.attempt_training(training_key, -1)
            raise
        except HardloopError as error:
            raise _failed(loop, training_key, error) from None
    if (reused := _reused(loop, training_key, version.version)) is not None:
        raise _failed(loop, training_key, reused)
    loop.lineage.end_training(training_key, version.version)
    shutil.rmtree(loop.folder / "trainings" / training_key, ignore_errors=True)  # the registry has it all
    loop.work.event("trainer", "trained", {"training": training_key, "model": version.version})
    return version.version


def labelled_rows(loop: Loop, labels: list[dict[str, Any]]) -> list[DatasetRow]:
    """Every sample that has a label and was not withdrawn, as a row of a dataset version."""
    agreed = {row["sample_id"]: row for row in labels if row["label"] is not None}
    split = {"audit": Split.HOLDOUT, "legacy": Split.LEGACY}
    return [
        DatasetRow(
            sample_id=sample_id,
            image_key=sample.image_key,
            label=agreed[sample_id]["label"],
            split=split.get(sample.role, Split.TRAIN),
            fold=-1,
            group_id=sample.group_id,
            source=sample.source,
            fingerprint=sample.fingerprint,
            origin=agreed[sample_id]["origin"],
            selection_id=agreed[sample_id]["selection_id"],
            annotation_ids=tuple(agreed[sample_id]["annotation_ids"]),
        )
        for sample_id, sample in loop.samples.get(agreed).items()
        if sample.role != "gone"
    ]


def _reused(loop: Loop, training_key: str, version: str) -> Conflict | None:
    """What to tell where a version's number was another training's before: decisions and predictions go by it."""
    earlier = [t["training_key"] for t in loop.lineage.trainings("trained") if t["model_version"] == version]
    if not earlier:
        return None
    return Conflict(
        f"loop {loop.name!r}: its model version {version} is training {training_key} in MLflow and was training "
        f"{earlier[0]} before, as in an MLflow that was set up anew or whose registered model was deleted. The new "
        "model is left alone: restore its database, or begin a new loop with this one's labels"
    )


def _failed(loop: Loop, training_key: str, error: HardloopError) -> HardloopError:
    loop.lineage.end_training(training_key, None, str(error))
    loop.work.event("trainer", "training failed", {"training": training_key, "why": str(error)})
    return error
