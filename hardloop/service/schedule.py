"""What is due in a loop now: the one place that decides which steps run without anybody asking."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hardloop.core import capture_records
from hardloop.service import retraining
from hardloop.service.loop import Loop


@dataclass(slots=True)
class Attention:
    """What the schedule remembers of one loop between two looks, in seconds of a monotonic clock.

    collected_at: when answers were last asked for. hinted: whether a webhook came since. swept_at: when capture files
    were last listed from a little before the cursor, and listed_at from the beginning, for those that slow clocks and
    very slow clocks stamped too early. reread_at: when the answers of all tasks were last read, for those that Label
    Studio stamped too early; unlike the others it is set when that has succeeded.
    """

    collected_at: float = float("-inf")
    swept_at: float = float("-inf")
    listed_at: float = float("-inf")
    reread_at: float = float("-inf")
    hinted: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """Steps to run now, in their order, with their arguments."""

    chain: tuple[str, ...]
    arguments: Mapping[str, object] = field(default_factory=dict)


LIST_S = 24 * 3600.0
# Listing from before the cursor costs a request and a query; late files are rare.
SWEEP_S = 60.0


def due(
    loop: Loop, attention: Attention, now_s: float, poll_s: float, troubles: dict[str, Exception] | None = None
) -> list[Due]:
    """What is due in a loop, most of the time nothing. Nothing counts as looked at before `asked` says so.

    troubles: takes up, by step, why it could not be looked for, and the others are looked for all the same; without it
    the first such error is raised.
    """
    chains = []
    for step, look in _LOOKS.items():
        try:
            found = look(loop, attention, now_s, poll_s)
        except Exception as error:  # the store, the database: whatever is away now is no fault of the other steps
            if troubles is None:
                raise
            troubles[step] = error
        else:
            chains += [found] if found else []
    return chains


def asked(attention: Attention, due: Due, now_s: float) -> None:
    """Remember that steps due at `now_s` were queued; what could not be queued stays due."""
    if "ingest" in due.chain:
        attention.swept_at = now_s  # every reading begins a little before the cursor
        if due.arguments.get("everything"):
            attention.listed_at = now_s
    if "collect" in due.chain:
        attention.hinted = False
        attention.collected_at = now_s


def undecided(loop: Loop) -> bool:
    """Whether a candidate waits for the gate, or a decision for being carried out."""
    decisions = loop.lineage.decisions()
    decided = {d["model_version"] for d in decisions}
    return any(d["applied_at"] is None for d in decisions) or any(
        t["model_version"] not in decided for t in loop.lineage.trainings("trained")
    )


def _ingest(loop: Loop, attention: Attention, now_s: float, poll_s: float) -> Due | None:  # noqa: ARG001
    if now_s - attention.listed_at >= LIST_S:
        return Due(("ingest",), {"everything": True})
    return Due(("ingest",)) if _captured(loop, attention, now_s) else None


def _mine(loop: Loop, attention: Attention, now_s: float, poll_s: float) -> Due | None:  # noqa: ARG001
    return Due(("mine",)) if _asks_for_more(loop) else None


def _send(loop: Loop, attention: Attention, now_s: float, poll_s: float) -> Due | None:  # noqa: ARG001
    return Due(("send",)) if loop.work.to_send() else None


def _collect(loop: Loop, attention: Attention, now_s: float, poll_s: float) -> Due | None:
    if not loop.work.has_tasks() or not (attention.hinted or now_s - attention.collected_at >= poll_s):
        return None
    return Due(("collect",), {"everything": True} if now_s - attention.reread_at >= LIST_S else {})


def _train(loop: Loop, attention: Attention, now_s: float, poll_s: float) -> Due | None:  # noqa: ARG001
    if loop.lineage.trainings("running") or retraining.due(loop).fire:
        return Due(("train", "promote"))
    return Due(("promote",)) if undecided(loop) else None


_LOOKS = {"ingest": _ingest, "mine": _mine, "send": _send, "collect": _collect, "train": _train}


def _captured(loop: Loop, attention: Attention, now_s: float) -> bool:
    cursor = loop.samples.cursor("captures")
    known = loop.samples.capture_files(cursor)
    if any(key not in known for key in loop.blobs.keys(capture_records.prefix(loop.name), cursor)):
        return True
    return bool(cursor) and now_s - attention.swept_at >= SWEEP_S


def _asks_for_more(loop: Loop) -> bool:
    if loop.settings.mine == "manual":
        return False
    last = loop.work.last_selection()
    if (
        last is not None
        and last["picks"] < last["budget"]
        and loop.samples.pool_since(last["at"]) < loop.settings.budget
    ):
        return False  # what is left is nothing the miner would pick: more of production must come first
    counts = loop.work.counts()
    waiting = counts["queued"] + counts["approved"] + counts["open"]
    return waiting < loop.settings.low_water and loop.samples.unasked() >= loop.settings.budget
