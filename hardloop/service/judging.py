"""From candidate to champion: what the gate is shown, and how its decisions are carried out exactly once."""

import numpy as np
from pydantic import TypeAdapter

from hardloop.core.errors import BadModel, BlobMissing, Missing
from hardloop.core.records import Evaluation, Floats, ModelVersion, Split, Verdict
from hardloop.service import stored_images
from hardloop.service.loop import Loop
from registry import gate
from training import datasets

_VERDICT = TypeAdapter(Verdict)


def decide(loop: Loop, version: str) -> None:
    """Put a candidate through the gate and store what it says. A candidate that is gone or broken is refused."""
    candidate = ours(loop).get(version)
    if candidate is None:
        verdict = _refused(loop, f"Version {version} is not in the registry any more: somebody deleted it.")
    else:
        verdict = judge(loop, candidate)
    loop.lineage.decide(version, verdict)


def judge(loop: Loop, candidate: ModelVersion) -> Verdict:
    """What the gate says of a candidate against the present champion, on samples neither was trained on."""
    try:
        evaluation = loop.registry.evaluation(candidate)
    except (BadModel, Missing) as error:
        # Without it there is nothing to judge by, ever; later candidates must not wait behind this one.
        return _refused(loop, f"Version {candidate.version} cannot be judged: {error}.")
    champion = loop.registry.champion()
    policy, seed = loop.settings.gate, loop.settings.seed
    if champion is None:
        return gate.decide(evaluation, None, policy, seed)
    trained_on = _training_ids(loop, champion)
    unseen = evaluation.keep([i not in trained_on for i in evaluation.ids])
    stored = loop.samples.get(unseen.ids)
    scorer = loop.scorer(champion)
    said: dict[str, Floats] = {}
    wanted = [stored[i] for i in unseen.ids if stored[i].role != "gone"]
    for part, data in stored_images.read(loop.samples, loop.blobs, wanted):
        said.update(zip((s.sample_id for s in part), scorer.score(data).probs_NC, strict=True))
    ours = unseen.keep([i in said for i in unseen.ids])
    probs_NC = np.stack([said[i] for i in ours.ids]) if said else np.zeros((0, len(candidate.labels)))
    theirs = Evaluation(ours.ids, ours.truth_N, probs_NC, ours.slices)
    return gate.decide(ours, theirs, policy, seed, champion_version=champion.version)


def carry_out(loop: Loop) -> None:
    """Do what was decided and not yet done. Decisions are stored first: a crash repeats the deed, not the judgement."""
    pending = [d for d in loop.lineage.decisions() if d["applied_at"] is None]
    if not pending:
        return
    versions = ours(loop)
    for decision in pending:
        number, verdict = decision["model_version"], _VERDICT.validate_python(decision["verdict"])
        version = versions.get(number)
        if version is None:
            verdict = _refused(loop, f"Version {number} is not in the registry any more: somebody deleted it.")
        else:
            loop.registry.record(version, verdict)
            if verdict.promote:
                loop.registry.promote(version, verdict.reason)
        loop.lineage.applied(number)
        kind = "promoted" if verdict.promote else "refused by the gate"
        loop.work.event("gate", kind, {"model": number, "why": verdict.reason})
        if verdict.promote:
            loop.champion_moved()


def ours(loop: Loop) -> dict[str, ModelVersion]:
    """The registry's versions that this loop's trainings became, by number, the oldest first.

    A number alone says nothing: they begin again in an MLflow that was set up anew.
    """
    made = {t["model_version"]: t["training_key"] for t in loop.lineage.trainings("trained")}
    return {v.version: v for v in loop.registry.versions() if made.get(v.version) == v.training_key}


def _refused(loop: Loop, reason: str) -> Verdict:
    return Verdict(False, reason, (), None, loop.settings.seed)


def _training_ids(loop: Loop, version: ModelVersion) -> set[str]:
    """The samples a version was fitted on, by the manifest that its registry entry names."""
    try:
        dataset = datasets.load(loop.blobs, datasets.key_of(loop.name, version.dataset_digest))
    except BlobMissing:
        return set()  # a champion from outside: nothing it could have seen was labelled by this loop
    return {row.sample_id for row in dataset.rows if row.split is Split.TRAIN}
