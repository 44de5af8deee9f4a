"""One run of the demo from the first model to the report."""

import time

from hardloop import __version__
from hardloop.core.errors import BadSettings, HardloopError
from hardloop.service.demo import measure, report
from hardloop.service.demo.options import Watch
from hardloop.service.demo.turn import LOOP, Turn
from hardloop.service.demo.upload import upload

_TIMED = ("data", "services", "first_model", "loop", "random")


def play(turn: Turn, watch: Watch, began: float) -> report.Report:
    """First model, then round after round, then the comparison with random picking.

    An error after the first whole round ends the run and stands in the report, beside the rounds that ran; an earlier
    one is raised, for there is nothing to report. began: when the command did, on the monotonic clock.
    """
    with watch.of("first_model"):
        first = _first_model(turn)
    rounds: list[report.Round] = []
    compared, stopped = None, None
    try:
        with watch.of("loop"):
            for number in range(1, turn.options.rounds + 1):
                rounds.append(turn.round(number))
        with watch.of("random"):
            compared = turn.arena.compare(rounds, turn.lines)
    except HardloopError as error:
        if not rounds:
            raise
        stopped = str(error)
    compared = compared or measure.Compared(tuple(rounds), (), None, seeds=0)
    return _report(turn, watch, first, compared, stopped, began)


def _first_model(turn: Turn) -> report.FirstModel:
    seed = turn.parts.seed
    for role, items in (("legacy", turn.parts.legacy), ("seed", seed)):
        upload(turn.api.client, LOOP, items, role, turn.lines)
    turn.lines.say(f"training the first model on {len(seed)} labels")
    body = {"steps": ["train", "promote"], "manual": True}
    version = turn.api.run(body, "training the first model", key="first-model")["promote"]
    if version is None:
        why = turn.api.rows("decisions")[-1]["reason"]
        raise BadSettings(
            f"the gate refused the first model ({why}): give it more labels than {len(seed)} with --first-labels, or "
            "better data"
        )
    turn.wait_until_served(version)
    accuracy = turn.arena.accuracy(version)
    turn.links.see("first-model", True, f"version {version}, {100 * accuracy.value:.1f} % on the frozen test set")
    return report.FirstModel(labels=len(seed), model_version=version, accuracy=accuracy)


def _report(
    turn: Turn, watch: Watch, first: report.FirstModel, compared: measure.Compared, stopped: str | None, began: float
) -> report.Report:
    options, data, parts = turn.options, turn.data, turn.parts
    return report.Report(
        hardloop=__version__,
        data=report.DataFacts(
            name=data.name, labels=data.labels, sizes=parts.sizes(), notes=(*data.notes, *parts.notes)
        ),
        settings=report.Settings(
            rounds=options.rounds,
            budget=options.budget,
            first_labels=len(parts.seed),
            annotator_error=options.annotator_error,
            seed=options.seed,
            recipe=options.recipe,
            random_seeds=compared.seeds,
        ),
        first_model=first,
        rounds=compared.rounds,
        random_curve=compared.curve,
        totals=report.Totals.of(compared.rounds, compared.gain),
        seconds=report.Seconds(
            **{name: watch.seconds.get(name, 0.0) for name in _TIMED},
            total=time.monotonic() - began,
            stages=report.StageSeconds.sum([r.seconds for r in compared.rounds]),
        ),
        links=turn.links.told(),
        stopped=stopped,
    )
