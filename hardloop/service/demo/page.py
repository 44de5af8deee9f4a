"""The report as one HTML page without any outside part: the template `report.html`, filled in.

Every text from the data (class names, notes, reasons) is escaped; the page forbids itself scripts and requests.
"""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from hardloop.service.demo import charts
from hardloop.service.demo.report import LINKS, STAGES, Report, problems
from hardloop.service.demo.terminal import gain_text, interval, saved_text, signed


def render(report: Report) -> str:
    """The page as text."""
    template = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{report.data.name} · Hardloop demo"),
        headline=_headline(report),
        tiles="".join(_tiles(report)),
        problems=_problems(report),
        figures="".join(_figures(report)),
        rounds=_rounds(report),
        links=_links(report),
        facts=_facts(report),
        notes=_list(report.data.notes) if report.data.notes else "<p>Nothing was left out.</p>",
        footer=escape(f"Hardloop {report.hardloop} · report format {report.format}"),
    )


def _headline(report: Report) -> str:
    wrong = problems(report)
    name = escape(report.data.name)
    if wrong:
        return f'<h1>The loop did not close on {name}</h1><p class="lead">{len(wrong)} problem(s), named below.</p>'
    last, n = report.rounds[-1], len(report.rounds)
    start = report.first_model
    rounds = "1 round" if n == 1 else f"{n} rounds"
    answers = last.labels_used - start.labels
    way = f"from {_pct(start.accuracy.value)} to {_pct(last.accuracy.value)}"
    return (
        f'<h1>The loop closed on {name}</h1><p class="lead">In {rounds} and {answers:,} answers '
        f"the candidate model went {way} on {report.data.sizes.get('test', 0):,} test images that nothing was ever "
        "trained or chosen on.</p>"
    )


def _tiles(report: Report) -> Iterable[str]:
    last, t = report.rounds[-1], report.totals
    a = last.accuracy
    yield _tile(_pct(a.value), "accuracy", f"95 %: {100 * a.low:.1f} to {100 * a.high:.1f}")
    if t.gain_points is not None:
        g = t.gain_points
        yield _tile(f"{gain_text(g)} pt", "gain over random", f"95 %: {signed(g.low)} to {signed(g.high)}")
    if last.labels_saved is not None:
        yield _tile(saved_text(last.labels_saved), "labels saved", f"at {last.labels_used:,} labels used")
    candidates = sum(r.picked > 0 for r in report.rounds)
    yield _tile(f"{t.promotions} of {candidates}", "candidates promoted", f"serving v{last.served_version}")
    yield _tile(f"{t.duplicates} / {t.lost}", "duplicates / lost", f"of {t.tasks_pushed:,} tasks")
    yield _tile(_clock(report.seconds.total), "in all", f"loop {_clock(report.seconds.loop)}")


def _tile(value: str, name: str, more: str) -> str:
    return f"<div class=tile><dt>{escape(name)}</dt><dd><b>{escape(value)}</b><span>{escape(more)}</span></dd></div>"


def _problems(report: Report) -> str:
    wrong = problems(report)
    return f'<section class="wrong"><h2>What went wrong</h2>{_list(wrong)}</section>' if wrong else ""


def _figures(report: Report) -> Iterable[str]:
    key = _legend([("ours", "mined"), ("random", "random, mean over seeds")])
    yield _figure(
        "Accuracy for labels",
        "Frozen test set. Whiskers: 95 % Wilson intervals. Band: 95 % interval of random picking's mean over seeds. "
        "A hollow dot is a candidate the gate did not let through.",
        key + charts.accuracy(report),
        _curve_table(report),
    )
    bars = charts.saved(report)
    if bars:
        text = "How many more labels random picking needs for the same accuracy. ≥: random never got there."
        rows = [[str(r.number), str(r.labels_used), saved_text(r.labels_saved)] for r in report.rounds]
        yield _figure("Labels saved", text, bars, _table(["round", "labels used", "labels saved"], rows))
    rows = [[f"{n:,}" for n in (r.number, r.streamed, r.captured, r.picked, r.labels_new)] for r in report.rounds]
    yield _figure(
        "From traffic to labels",
        "What production sent, what Capture kept, what the miner picked, what people answered.",
        charts.funnel(report),
        _table(["round", "streamed", "captured", "picked", "labelled"], rows),
    )
    drawing, legend = charts.stages(report)
    rows = [[str(r.number), *(f"{getattr(r.seconds, s):.1f}" for s in STAGES)] for r in report.rounds]
    rows.append(["all", *(f"{getattr(report.seconds.stages, s):.1f}" for s in STAGES)])
    yield _figure(
        "Where the time goes",
        "Seconds per stage. Annotating is the stand-in's time, not a person's.",
        _legend([(kind, f"{name} {value:.0f} s") for kind, name, value in legend]) + drawing,
        _table(["round", *STAGES], rows),
    )


def _figure(title: str, text: str, drawing: str, twin: str) -> str:
    return (
        f"<figure><figcaption><h2>{escape(title)}</h2><p>{escape(text)}</p></figcaption>{drawing}"
        f"<details><summary>The same as a table</summary>{twin}</details></figure>"
    )


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    return f"<ul class=legend>{''.join(f'<li><i class={kind}></i>{escape(name)}</li>' for kind, name in entries)}</ul>"


def _curve_table(report: Report) -> str:
    curve = {p.labels: interval(p.accuracy) for p in report.random_curve}
    start = report.first_model
    rows = [["start", f"{start.labels:,}", interval(start.accuracy), curve.get(start.labels, "")]]
    for r in report.rounds:
        random = "" if r.random_accuracy is None else interval(r.random_accuracy)
        rows.append([f"round {r.number}", f"{r.labels_used:,}", interval(r.accuracy), random])
    measured = {start.labels, *(r.labels_used for r in report.rounds if r.random_accuracy is not None)}
    further = [p for p in report.random_curve if p.labels not in measured]
    rows += [["random alone", f"{p.labels:,}", "", interval(p.accuracy)] for p in further]
    return _table(["", "labels", "mined, %", "random, %"], rows)


def _rounds(report: Report) -> str:
    head = [
        "round",
        "labels used",
        "new",
        "picked",
        "tasks pushed",
        "answers collected",
        "skipped",
        "wrong answers",
        "webhooks, missed",
        "doubled, lost",
        "left in queue",
        "candidate, %",
        "served, %",
        "gate",
    ]
    rows = []
    reasons = []
    notes = []
    for r in report.rounds:
        picked = f"{r.picked:,} of {report.settings.budget:,}"
        numbers = (r.tasks_pushed, r.annotations_collected, r.skipped, r.wrong_answers)
        pairs = (f"{r.webhooks_received:,}, {r.webhooks_missed:,}", f"{r.duplicates:,}, {r.lost:,}")
        verdict = f"v{r.model_version} {'promoted' if r.verdict.promoted else 'kept back'}" if r.picked else "none"
        reasons.append(f"Round {r.number}, version {r.model_version}: {r.verdict.reason}")
        notes += [f"Round {r.number}: {note}" for note in r.notes]
        cells = [
            f"{r.labels_used:,}",
            f"{r.labels_new:,}",
            picked,
            *(f"{n:,}" for n in numbers),
            *pairs,
            f"{r.queue:,}",
        ]
        rows.append([str(r.number), *cells, interval(r.accuracy), f"{100 * r.served_accuracy.value:.1f}", verdict])
    short = f"<h3>Fewer picks than the budget</h3>{_list(notes)}" if notes else ""
    return f"{_table(head, rows)}{short}<h3>What the gate said</h3>{_list(reasons)}"


def _links(report: Report) -> str:
    items = []
    for link in report.links:
        mark, word = ("yes", "happened") if link.happened else ("no", "did not happen")
        what = LINKS.get(link.name, link.name)
        items.append(
            f'<li class={mark}><b>{escape(what[:1].upper() + what[1:])}</b> <span class="mark">{word}</span>'
            f"<p>{escape(link.evidence)}</p></li>"
        )
    return f"<ol class=links>{''.join(items)}</ol>"


def _facts(report: Report) -> str:
    s, d, sec = report.settings, report.data, report.seconds
    sizes = ", ".join(f"{name} {n:,}" for name, n in d.sizes.items())
    pairs = [
        ("images", sizes),
        (f"{len(d.labels)} classes", ", ".join(d.labels)),
        ("rounds and budget", f"{s.rounds} × {s.budget} labels after the first {s.first_labels}"),
        ("annotator's error rate", f"{100 * s.annotator_error:g} %"),
        ("recipe", s.recipe),
        ("seed", f"{s.seed}; random picking over {s.random_seeds} seed(s)"),
        (
            "time",
            f"data {sec.data:.0f} s, services {sec.services:.0f} s, first model {sec.first_model:.0f} s, loop "
            f"{sec.loop:.0f} s, random {sec.random:.0f} s",
        ),
    ]
    return "<dl class=facts>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    # Focusable, so that a keyboard can scroll it sideways.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>"


def _pct(value: float) -> str:
    """A share in per cent; the sign must not be left alone on a new line."""
    return f"{100 * value:.1f}\u00a0%"


def _clock(seconds: float) -> str:
    """Seconds as a person says them: `48 s`, `4 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
