"""The report's rounds as a table in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hardloop.service.demo.report import Interval, LabelsSaved, Report, Round

_WIDE = 98  # what all columns need


def rounds_table(report: Report, width: int) -> Table:
    """One row per round and one for the totals; below 98 columns only what a reader needs first."""
    wide = width >= _WIDE
    table = Table(
        title=f"{report.data.name}: mined labels against random ones",
        caption=_caption(report),
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    names = ["round", "labels", "accuracy (95 %)", "random", "gain", "saved", "pushed", "answers", "dup/lost"]
    for name in [*names, *(("webhooks", "served", "s") if wide else ())]:
        table.add_column(name, justify="right", no_wrap=True)
    start = report.first_model
    random = next((f"{100 * p.accuracy.value:.1f}" for p in report.random_curve if p.labels == start.labels), "")
    blanks = [""] * (8 if wide else 5)
    table.add_row("start", str(start.labels), interval(start.accuracy), random, *blanks)
    for r in report.rounds:
        table.add_row(*_row(r, report.settings.budget, wide))
    t = report.totals
    totals = ["", gain_text(t.gain_points), "", str(t.tasks_pushed), str(t.annotations_collected)]
    totals.append(f"{t.duplicates}/{t.lost}")
    if wide:
        webhooks = f"{t.webhooks_received}/{t.webhooks_received + t.webhooks_missed}"
        totals += [webhooks, "", f"{report.seconds.stages.total():.0f}"]
    table.add_section()
    table.add_row("all", str(t.labels_used), "", *totals)
    return table


def _row(r: Round, budget: int, wide: bool) -> list[str]:
    random = "" if r.random_accuracy is None else f"{100 * r.random_accuracy.value:.1f}"
    gain = "" if r.random_accuracy is None else signed(100 * (r.accuracy.value - r.random_accuracy.value))
    cells = [
        str(r.number),
        str(r.labels_used),
        interval(r.accuracy),
        random,
        gain,
        saved_text(r.labels_saved),
        f"{r.tasks_pushed}/{budget}" if r.picked < budget else str(r.tasks_pushed),
        str(r.annotations_collected),
        f"{r.duplicates}/{r.lost}",
    ]
    if wide:
        served = f"v{r.served_version}" + (" kept" if r.picked and not r.verdict.promoted else "")
        cells += [
            f"{r.webhooks_received}/{r.webhooks_received + r.webhooks_missed}",
            served,
            f"{r.seconds.total():.0f}",
        ]
    return cells


def interval(accuracy: Interval) -> str:
    """An accuracy in per cent with its interval: `93.1 (91.6–94.4)`."""
    return f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}–{100 * accuracy.high:.1f})"


def signed(points: float) -> str:
    """Points with their sign, a true minus: `+2.4`, `−0.3`."""
    return f"{points:+.1f}".replace("-", "−")


def gain_text(gain: Interval | None) -> str:
    """A gain in points: `+2.4`."""
    return "" if gain is None else signed(gain.value)


def saved_text(saved: LabelsSaved | None) -> str:
    """Labels saved: `+120`, `≥ 300` where random never got there, nothing where random was not run."""
    if saved is None:
        return ""
    return f"≥ {saved.value}".replace("-", "−") if saved.at_least else f"{saved.value:+d}".replace("-", "−")


def _caption(report: Report) -> str:
    gain = report.totals.gain_points
    if gain is None:
        said = "Accuracy in per cent on the frozen test set; random picking was not run."
    else:
        said = (
            f"Per cent on {report.data.sizes.get('test', 0):,} frozen test images. Mean gain over random "
            f"{signed(gain.value)} points (95 % {signed(gain.low)} to {signed(gain.high)})."
        )
    budget = report.settings.budget
    short = [f"{r.picked} in round {r.number}" for r in report.rounds if r.picked < budget]
    return said + (f" Fewer than {budget} picked: {', '.join(short)}." if short else "")
