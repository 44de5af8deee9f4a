"""A loop's models and dataset versions side by side: what a person asks before a rollback, or after a refusal."""

from dataclasses import asdict
from typing import Any

from hardloop.core.errors import Missing
from hardloop.service.loop import Loop
from registry import comparison
from training import datasets


def models(loop: Loop) -> list[dict[str, Any]]:
    """The registry's versions, the oldest first: what each was trained on, whether it serves, what the gate decided."""
    champion = loop.registry.champion()
    numbers = {row["digest"]: row["number"] for row in loop.lineage.datasets()}
    made = {(t["model_version"], t["training_key"]) for t in loop.lineage.trainings("trained")}
    decisions = {row["model_version"]: row for row in loop.lineage.decisions()}
    return [
        {
            "version": version.version,
            "champion": champion is not None and version.version == champion.version,
            "training_key": version.training_key,
            "dataset_number": numbers.get(version.dataset_digest),
            "dataset_digest": version.dataset_digest,
            "decision": decisions.get(version.version) if (version.version, version.training_key) in made else None,
        }
        for version in loop.registry.versions()
    ]


def compare_models(loop: Loop, before: str, after: str) -> dict[str, Any]:
    """Two versions on the samples that both were evaluated on: by slice and class, with the gate's intervals.

    `moved` has a row for each true class in the order of `labels`: how many more, or fewer, are called each class.
    Raises Missing naming a version that is not there, BadModel where its evaluation was altered.
    """
    versions = {version.version: version for version in loop.registry.versions()}
    for number in (before, after):
        if number not in versions:
            raise Missing(
                f"no model version {number!r} in loop {loop.name!r}: ask for its models to see which there are"
            )
    old, new = (loop.registry.evaluation(versions[number]) for number in (before, after))
    gate, labels = loop.settings.gate, loop.settings.labels
    found = comparison.compare(
        old, new, labels, confidence=gate.confidence, resamples=gate.resamples, seed=loop.settings.seed
    )
    told = asdict(found)
    for part in told["slices"]:
        part["moved"] = part.pop("moved_CC").tolist()
    return {"before": before, "after": after, "labels": labels, **told}


def compare_datasets(loop: Loop, before: int, after: int) -> datasets.Diff:
    """What changed between two dataset versions. Raises Missing naming a number that is not there."""
    labels = loop.settings.labels
    old, new = (datasets.load(loop.blobs, loop.lineage.dataset(n, labels).key) for n in (before, after))
    return datasets.diff(old, new)
