"""Pictures of an evaluation as PNG files, made to be read beside a run. The one file that draws with matplotlib."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.metrics import SliceReport

DOTS_PER_INCH = 120
MAX_NAMED_CLASSES = 40  # above it cells are too small to hold a number or a name
_INK, _QUIET, _BAR, _MARK = "#1b1f24", "#6b7280", "#9db8d9", "#1f4e8c"
_TOLD = {
    "mined": "mined (out-of-fold)",
    "audit": "audit (uniform production slice)",
    "legacy": "legacy (your test set)",
}


def confusion_matrix(report: SliceReport) -> bytes:
    """The confusion matrix of a slice: colour is the share of the true class, numbers are samples."""
    figure, (axes,) = _figure(*_matrix_inches(len(report.classes)))
    counts_CC = report.confusion_CC
    totals = counts_CC.sum(axis=1, keepdims=True)
    shares_CC = np.divide(counts_CC, totals, out=np.zeros(counts_CC.shape), where=totals > 0)
    picture = axes.imshow(shares_CC, cmap="Blues", vmin=0, vmax=1)
    labels = [_short(one.label) for one in report.classes]
    if len(labels) <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(
            range(len(labels)), [f"{t}  ({one.support})" for t, one in zip(labels, report.classes, strict=True)]
        )
        for row, column in zip(*np.nonzero(counts_CC), strict=True):
            ink = "white" if shares_CC[row, column] > 0.55 else _INK
            axes.text(column, row, str(counts_CC[row, column]), ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlabel("what the model said")
    axes.set_ylabel("the label people gave (samples)")
    accuracy = report.accuracy
    axes.set_title(
        f"{_TOLD[report.name]}: {100 * accuracy.value:.1f} % of {report.n} right "
        f"[{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]",
        loc="left",
    )
    bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return _png(figure)


def slices(reports: Sequence[SliceReport]) -> bytes:
    """Recall per class, one panel per slice, the slice's accuracy and its interval as a band; worst classes on top."""
    n_classes = max(len(report.classes) for report in reports)
    figure, axes = _figure(min(5.2 * len(reports), 16), 1.6 + 0.28 * min(n_classes, MAX_NAMED_CLASSES), len(reports))
    for report, panel in zip(reports, axes, strict=True):
        there = sorted((one for one in report.classes if one.support), key=lambda one: (one.recall, one.label))
        shown = there[:MAX_NAMED_CLASSES]
        accuracy = report.accuracy
        panel.axvspan(100 * accuracy.low, 100 * accuracy.high, color=_MARK, alpha=0.12, lw=0)
        panel.axvline(100 * accuracy.value, color=_MARK, lw=1.4)
        panel.barh(range(len(shown)), [100 * one.recall for one in shown], color=_BAR, height=0.72)
        for row, one in enumerate(shown):
            panel.text(1.5, row, f"{100 * one.recall:.0f} % of {one.support}", va="center", fontsize=8, color=_INK)
        panel.set_yticks(range(len(shown)), [_short(one.label) for one in shown])
        panel.invert_yaxis()
        panel.set_xlim(0, 100)
        panel.set_xlabel("recall, % (line and band: the slice's accuracy, 95 % interval)")
        hidden = f", worst {len(shown)} of {len(there)} classes" if len(there) > len(shown) else ""
        panel.set_title(f"{_TOLD[report.name]}\n{100 * accuracy.value:.1f} % of {report.n} right{hidden}", loc="left")
    return _png(figure)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its panels from left to right."""
    # Figures made without pyplot draw with Agg, hold no global state and are safe off the main thread.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for one in axes:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color(_QUIET)
        one.tick_params(colors=_INK, labelsize=8, length=0)
        one.title.set_fontsize(10)
    return figure, axes


def _matrix_inches(n_classes: int) -> tuple[float, float]:
    side = 3.2 + 0.42 * min(n_classes, MAX_NAMED_CLASSES)
    return side + 1.6, side


def _short(label: str) -> str:
    # "$" would start a formula, and a broken one raises when it is drawn
    return (label if len(label) <= 24 else label[:23] + "…").replace("$", r"\$")


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
