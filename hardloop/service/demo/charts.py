"""The report's charts as inline SVG, drawn by hand so that the page's own colours, light or dark, reach into them.

Every chart is drawn WIDTH units wide, which is about its width on a telephone: text keeps a readable size there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hardloop.service.demo.report import STAGES, Report
from hardloop.service.demo.terminal import saved_text

WIDTH = 440
_STAGE_COLOURS = 5  # more cannot be told apart at a glance; the other stages are added up
_CHAR = 6.6  # the average width of a 12-unit character, for room beside bars


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from data to drawing units, with round tick values inside its range."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the range, about as many as asked for."""
        step = _round_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def accuracy(report: Report) -> str:
    """Accuracy against labels used: our candidates with intervals, random picking with the interval of its mean."""
    start = report.first_model
    ours = [
        (start.labels, start.accuracy, True),
        # A round without picks has no candidate of its own.
        *((r.labels_used, r.accuracy, r.verdict.promoted) for r in report.rounds if r.picked),
    ]
    random = [(p.labels, p.accuracy) for p in report.random_curve] or [
        (r.labels_used, r.random_accuracy) for r in report.rounds if r.random_accuracy is not None
    ]
    intervals = [i for _, i, _ in ours] + [i for _, i in random]
    low = max(0.0, min(i.low for i in intervals))
    high = min(1.0, max(i.high for i in intervals))
    pad = max(0.01, 0.06 * (high - low))
    y = Axis(max(0.0, low - pad), min(1.0, high + pad), 250, 14)
    every = [labels for labels, *_ in ours] + [labels for labels, _ in random]
    x = Axis(min(every), max(max(every), min(every) + 1), 60, WIDTH - 20)
    parts = _grid_y(y, WIDTH, percent=True) + [_text(x.at(v), 268, f"{v:,.0f}", "middle") for v in x.ticks()]
    parts.append(_text((46 + WIDTH - 14) / 2, 288, "labels used", "middle", "quiet"))
    if random:
        band = [(x.at(n), y.at(i.high)) for n, i in random] + [(x.at(n), y.at(i.low)) for n, i in reversed(random)]
        parts.append(f'<polygon class="band" points="{_points(band)}"/>')
        parts.append(
            f'<polyline class="line random" points="{_points([(x.at(n), y.at(i.value)) for n, i in random])}"/>'
        )
        parts += [
            _dot(x.at(n), y.at(i.value), 2.6, "random", f"random, {n:,} labels: {_pct(i.value)}") for n, i in random
        ]
    parts.append(f'<polyline class="line ours" points="{_points([(x.at(n), y.at(i.value)) for n, i, _ in ours])}"/>')
    for n, i, promoted in ours:
        parts.append(f'<path class="whisker" d="M{x.at(n):.1f} {y.at(i.low):.1f}V{y.at(i.high):.1f}"/>')
        said = f"mined, {n:,} labels: {_pct(i.value)} ({_pct(i.low)} to {_pct(i.high)})"
        kind, note = ("ours", "") if promoted else ("ours open", ", not promoted")
        parts.append(_dot(x.at(n), y.at(i.value), 4.5, kind, said + note))
    last = ours[-1][1]
    said = (
        f"With {ours[-1][0]:,} mined labels the accuracy is {_pct(last.value)}, {_pct(last.low)} to {_pct(last.high)}."
    )
    at_same = report.rounds[-1].random_accuracy
    if at_same is not None:
        said += f" Random picking reaches {_pct(at_same.value)} with as many."
    return _svg(296, "Accuracy on the frozen test set against labels used", said, parts)


def saved(report: Report) -> str:
    """Labels saved against random picking, a bar per round; negative ones hang below the line."""
    rows = [(r.number, r.labels_saved) for r in report.rounds if r.labels_saved is not None]
    if not rows:
        return ""
    values = [s.value for _, s in rows]
    low, high = min(0, *values), max(0, *values)
    span = max(1, high - low)
    y = Axis(low - (0.12 * span if low < 0 else 0), high + (0.12 * span if high > 0 else 0.05 * span), 250, 14)
    parts = _grid_y(y, WIDTH, percent=False)
    slot = (WIDTH - 60) / len(rows)
    width = min(56.0, 0.6 * slot)
    zero = y.at(0)
    for i, (number, s) in enumerate(rows):
        centre = 46 + slot * (i + 0.5)
        top = y.at(s.value)
        kind = "less" if s.value < 0 else "ours"
        word = f"round {number}: {saved_text(s)} labels saved"
        parts.append(_bar(centre - width / 2, min(zero, top), width, max(1.0, abs(top - zero)), kind, word))
        parts.append(_text(centre, top - 6 if s.value >= 0 else top + 15, saved_text(s), "middle", "strong"))
        parts.append(_text(centre, 268, f"{number}", "middle"))
    parts.append(f'<path class="zero" d="M46 {zero:.1f}H{WIDTH - 14}"/>')
    parts.append(_text((46 + WIDTH - 14) / 2, 288, "round", "middle", "quiet"))
    said = "; ".join(f"round {number}: {saved_text(s)}" for number, s in rows) + "."
    return _svg(296, "Labels saved against random picking", said, parts)


def funnel(report: Report) -> str:
    """Per round, how many samples were streamed, captured, picked and labelled."""
    steps = ("streamed", "captured", "picked", "labelled")
    top = max(1, *(r.streamed for r in report.rounds), *(r.captured for r in report.rounds))
    left = 162
    x = Axis(0, top, left, WIDTH - 14 - _CHAR * len(f"{top:,}"))
    parts: list[str] = []
    y = 8.0
    for r in report.rounds:
        parts.append(_text(0, y + 12, f"round {r.number}", "start", "strong"))
        for step, count in zip(steps, (r.streamed, r.captured, r.picked, r.labels_new), strict=True):
            parts.append(_text(left - 8, y + 12, step, "end", "quiet"))
            width = max(1.0, x.at(count) - left)
            parts.append(_bar(left, y + 2, width, 12, f"step-{step}", f"round {r.number}: {count:,} {step}"))
            parts.append(_text(left + width + 5, y + 12, f"{count:,}", "start"))
            y += 17
        y += 9
    t = report.totals
    said = f"In all {t.streamed:,} streamed, {t.captured:,} captured, {t.picked:,} picked, {t.labels_new:,} labelled."
    return _svg(y, "From production traffic to labels, per round", said, parts)


def stages(report: Report) -> tuple[str, list[tuple[str, str, float]]]:
    """Seconds per stage, stacked per round, and its legend: (colour class, name, seconds in all rounds)."""
    sums = {stage: float(getattr(report.seconds.stages, stage)) for stage in STAGES}
    shown = set(sorted(STAGES, key=lambda stage: -sums[stage])[:_STAGE_COLOURS])
    names = [stage for stage in STAGES if stage in shown]
    legend = [(f"hue{i}", stage, sums[stage]) for i, stage in enumerate(names)]
    legend.append(("hue-rest", "other stages", sum(v for s, v in sums.items() if s not in shown)))
    left = 70
    longest = max(0.001, *(r.seconds.total() for r in report.rounds))
    x = Axis(0, longest, left, WIDTH - 16 - _CHAR * len(f"{longest:.0f} s"))
    parts: list[str] = []
    for i, r in enumerate(report.rounds):
        y = 8.0 + 34 * i
        parts.append(_text(0, y + 15, f"round {r.number}", "start", "strong"))
        at = 0.0
        rest = sum(float(getattr(r.seconds, stage)) for stage in STAGES if stage not in shown)
        for kind, name, length in [(k, n, float(getattr(r.seconds, n))) for k, n, _ in legend[:-1]] + [
            ("hue-rest", "other stages", rest)
        ]:
            if length > 0:
                word = f"round {r.number}, {name}: {length:.1f} s"
                parts.append(_bar(x.at(at), y, max(0.5, x.at(at + length) - x.at(at)), 22, kind, word))
            at += length
        parts.append(_text(x.at(at) + 6, y + 15, f"{at:.0f} s", "start"))
    said = ", ".join(f"{name} {value:.1f} s" for _, name, value in legend) + " in all rounds."
    return _svg(8 + 34 * len(report.rounds), "Seconds per stage, per round", said, parts), legend


def _round_step(step: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(step))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= step * (1 - 1e-9))


def _grid_y(y: Axis, width: float, percent: bool) -> list[str]:
    parts: list[str] = []
    ticks = y.ticks()
    digits = 1 if percent and any(abs(100 * t - round(100 * t)) > 1e-6 for t in ticks) else 0
    for value in ticks:
        text = f"{100 * value:.{digits}f}\u00a0%" if percent else f"{value:,.0f}"
        parts.append(f'<path class="grid" d="M46 {y.at(value):.1f}H{width - 14}"/>')
        parts.append(_text(40, y.at(value) + 4, text, "end"))
    return parts


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, kind: str, said: str) -> str:
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(said)}</title></circle>'


def _bar(x: float, y: float, width: float, height: float, kind: str, said: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="bar {kind}" {place} rx="2"><title>{escape(said)}</title></rect>'


def _svg(height: float, title: str, said: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}. {escape(said)}">'
        f"{''.join(parts)}</svg>"
    )


def _pct(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"
