"""One sample's way, top to bottom: ingest → mine → send → collect → train → promote.

Each step may be repeated, and killed at any point: it looks at what is there and does what is missing. What must happen
once has a unique key in the database. Doors (API, CLI, schedules) call a step and do nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from feedback.capture_files import is_capture_file, relist_from
from hardloop.core import capture_records
from hardloop.core.errors import BadData, Missing
from hardloop.core.ports import AnnotationTool, Progress
from hardloop.core.records import Prediction, TaskDraft
from hardloop.service import database as db
from hardloop.service import intake, judging, pool, retraining, stored_images
from hardloop.service.loop import Loop


def silent(what: str, done: int, total: int) -> None:
    """The progress of a step that nobody watches."""


# ---------------------------------------------------------------- 1. ingest


def ingest(loop: Loop, everything: bool = False, progress: Progress = silent) -> dict[str, int]:
    """Take over what Capture wrote since the last time. Returns counts: files, records, new, refused.

    everything: look at all capture files, for one that a clock far behind has named too early.
    """
    prefix = capture_records.prefix(loop.name)
    newest = loop.samples.cursor("captures")
    start_after = "" if everything else relist_from(loop.name, newest or None, db.now())
    known = loop.samples.capture_files(start_after)
    keys = [key for key in loop.blobs.keys(prefix, start_after) if key not in known]
    totals = dict.fromkeys(("files", "records", "new", "refused"), 0)
    for number, key in enumerate(keys):
        found = intake.read_capture_file(
            loop.blobs, key, loop.name, loop.settings.labels, loop.settings.capture.audit_share
        )
        for sample_ids, vectors_ND in intake.encode(loop.encoder, found):
            loop.embeddings.add(loop.encoder.version, sample_ids, vectors_ND)
        new = loop.samples.add(found.samples, found.predictions, (key, found.records), found.refusals)
        for name, value in zip(totals, (1, found.records, new, len(found.refusals)), strict=True):
            totals[name] += value
        progress("reading capture files", number + 1, len(keys))
    timed = [key for key in keys if is_capture_file(key)]  # the name of a stray file says nothing about time
    if timed:
        loop.samples.move_cursor("captures", max(newest, *timed))
    return totals


def add_images(loop: Loop, given: Sequence[intake.GivenImage]) -> dict[str, int]:
    """Take images from a person: unlabelled ones into the pool, labelled ones as seed or legacy.

    Returns counts: new, known, refused. A refused image is remembered with its reason, and so is a label that
    contradicts what is known of its image. What was withdrawn stays out.
    """
    unknown = {g.label for g in given if g.label is not None} - set(loop.settings.labels)
    if unknown:
        raise BadData(f"label {min(map(str, unknown))!r} is not one of the loop's: {', '.join(loop.settings.labels)}")
    intake.check_agreement(given)
    found = intake.store_given(loop.blobs, given, loop.name, loop.settings.capture.audit_share, db.now())
    for sample_ids, vectors_ND in intake.encode(loop.encoder, found):
        loop.embeddings.add(loop.encoder.version, sample_ids, vectors_ND)
    new = loop.samples.add(found.samples, refusals=found.refusals)
    refused = len(intake.take_labels(loop.samples, loop.work, given))
    gone = {i for i, s in loop.samples.get(s.sample_id for s in found.samples).items() if s.role == "gone"}
    refused += sum(s.sample_id in gone for s in found.samples if s.role in ("pool", "audit"))
    known = len(found.samples) - new - refused
    return {"new": new, "known": max(0, known), "refused": len(found.refusals) + refused}


def withdraw(loop: Loop, sample_ids: Sequence[str], reason: str, actor: str) -> int:
    """Take samples out of the loop for good: a wrong label brought by a person, an image that must not be used.

    Returns how many left. Raises Missing naming a sample that is not there; then none leaves.
    """
    unknown = sorted(set(sample_ids) - loop.samples.get(sample_ids).keys())
    if unknown:
        raise Missing(f"no sample {unknown[0]!r} in loop {loop.name!r}: nothing was withdrawn")
    return stored_images.withdraw(loop.samples, loop.work, dict.fromkeys(sample_ids, reason), actor)


# ---------------------------------------------------------------- 2. mine


def mine(loop: Loop, selection_id: str, budget: int | None = None, progress: Progress = silent) -> str:
    """Pick the samples worth a person's time into the review queue. Repeating a selection id changes nothing."""
    if loop.work.selection(selection_id) is not None:
        return selection_id
    champion = serving(loop)
    space, lost = pool.refresh(loop.samples, loop.embeddings, loop.blobs, loop.encoder, champion, progress)
    # Before there is a champion of ours, what the user's own model said is all there is to go by.
    version = champion.version if champion else loop.samples.newest_version()
    candidates = pool.assemble(loop.samples, loop.work, loop.embeddings, space, version, loop.settings.labels, lost)
    seed = loop.settings.seed + len(loop.work.selections())
    selection = loop.miner(candidates, budget or loop.settings.budget, seed)
    state = "approved" if loop.settings.review == "automatic" else "queued"
    policy = loop.settings.mining.model_dump(mode="json")  # what the digest in every receipt stands for
    loop.work.add_selection(selection_id, selection, state, space, version, policy)
    return selection_id


# ---------------------------------------------------------------- 3. send


def send(loop: Loop) -> int:
    """Make a task of every approved queue item whose image is there. Returns how many tasks are new to us."""
    waiting = loop.work.to_send()
    known = loop.samples.get(item["sample_id"] for item in waiting)
    lost = stored_images.missing(loop.blobs, list(known.values()))
    loop.samples.refuse([("sample", i, "its image is gone from the store: no task was made of it") for i in lost])
    loop.work.drop(lost, "service")
    items = [item for item in waiting if item["sample_id"] not in lost]
    if not items:
        return 0
    tool = loop.tool()
    loop.work.check_project(tool.project_id, tool.task_ids())
    versions = {row["selection_id"]: row["model_version"] for row in loop.work.selections()}
    drafts = []
    for rank, item in enumerate(items, start=1):
        receipt = item["receipt"]
        drafts.append(
            TaskDraft(
                sample_id=item["sample_id"],
                image_uri=loop.image_address(known[item["sample_id"]]),
                rank=rank,
                reason="; ".join(receipt["reasons"]),
                selection_id=item["selection_id"],
                prediction=_pre_annotation(loop, item, versions),
            )
        )
    sent = tool.send(drafts)
    _renew_open_predictions(loop, tool, versions[items[-1]["selection_id"]])
    # Last, so that a call that broke anywhere above is made again: from here on the items count as sent.
    return loop.work.add_tasks(tool.project_id, sent)


# ---------------------------------------------------------------- 4. collect


def collect(loop: Loop, everything: bool = False, deleted: bool = False) -> Mapping[str, int]:
    """Take over what annotators answered, changed, skipped or deleted. Returns counts of each.

    everything: read all tasks, for answers stamped by a clock that was put back. deleted: a person says that tasks
    which are all gone at once, or in another project, were deleted; without it that raises Conflict.
    """
    tool = loop.tool()
    changes = tool.changes("" if everything or deleted else loop.samples.cursor("annotations"))
    alive = tool.task_ids()
    ours = loop.samples.get({task.sample_id for task in changes.tasks})
    states = [task for task in changes.tasks if task.sample_id in ours]
    if not deleted:
        loop.work.check_project(tool.project_id, alive, states)
    known = {task["task_id"] for task in loop.work.tasks() if task["project_id"] == tool.project_id}
    # A send that was killed after Label Studio had taken its tasks: they are ours, so adopt them. Those that nobody has
    # answered stay to be sent, or their predictions would never come.
    unsent = {item["sample_id"] for item in loop.work.to_send()}
    found = [s for s in states if s.annotations or s.refused or s.sample_id not in unsent]
    loop.work.add_tasks(tool.project_id, {s.sample_id: s.task_id for s in found if s.task_id not in known})
    counts = loop.work.collect(states, changes.cursor)
    return {**counts, "deleted_tasks": loop.work.mark_deleted_tasks(tool.project_id, alive)}


# ---------------------------------------------------------------- 5. train


def train(loop: Loop, manual: bool = False, progress: Progress = silent) -> str | None:
    """Train and register a candidate when one is due, after finishing one that was interrupted.

    Returns the model version made, or None where nothing was due. Raises what the training failed with; its row says
    it too.
    """
    interrupted = loop.lineage.trainings("running")
    if interrupted:
        return retraining.run(loop, interrupted[0], progress)
    decision = retraining.due(loop, manual)
    training = retraining.claim(loop, decision.reason) if decision.fire else None
    return retraining.run(loop, training, progress) if training else None


# ---------------------------------------------------------------- 6. promote


def promote(loop: Loop) -> str | None:
    """Put every undecided candidate through the gate and carry out what it says. Returns the champion's version."""
    with loop.champion_lock:
        judging.carry_out(loop)
        decided = {d["model_version"] for d in loop.lineage.decisions()}
        for training in loop.lineage.trainings("trained"):
            if training["model_version"] not in decided:
                judging.decide(loop, training["model_version"])
                judging.carry_out(loop)
        champion = loop.registry.champion()
    return champion.version if champion else None


def roll_back(loop: Loop, reason: str, actor: str) -> str:
    """Serve the version before the champion again. Raises Conflict where there is none. Returns its number."""
    with loop.champion_lock:
        judging.carry_out(loop)  # a promotion half done would otherwise be finished after, and over, the rollback
        version = loop.registry.rollback(reason)
    loop.work.event(actor, "rolled back", {"model": version.version, "why": reason})
    loop.champion_moved()
    return version.version


# ---------------------------------------------------------------- what several steps ask


def serving(loop: Loop) -> pool.ServingModel | None:
    """The champion, loaded; None before the first promotion."""
    champion = loop.registry.champion()
    if champion is None:
        return None
    scorer = loop.scorer(champion)
    return pool.ServingModel(champion.version, scorer.encoder, scorer)


def _pre_annotation(loop: Loop, item: Mapping[str, Any], versions: Mapping[str, str | None]) -> Prediction | None:
    receipt, version = item["receipt"], versions[item["selection_id"]]
    if version is None or receipt["predicted"] < 0 or receipt["confidence"] is None:
        return None
    return _said(loop, version, receipt["predicted"], receipt["confidence"])


def _renew_open_predictions(loop: Loop, tool: AnnotationTool, version: str | None) -> None:
    """Let tasks that wait since an earlier champion show what the present one says: the tool shows one version only."""
    if version is None:
        return
    said = loop.samples.predictions(version)
    tool.predict(
        {
            item["task_id"]: _said(loop, version, int(said[i].probs_C.argmax()), float(said[i].probs_C.max()))
            for item in loop.work.open_items()
            if (i := item["sample_id"]) in said and item["receipt"]["predicted"] >= 0
        }
    )


def _said(loop: Loop, version: str, predicted: int, confidence: float) -> Prediction:
    # A model's own rounding may leave a probability a hair above 1, for which the tool would refuse the whole batch.
    return Prediction(version, loop.settings.labels[predicted], min(1.0, max(0.0, confidence)))
