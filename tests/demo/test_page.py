"""The HTML page: complete, safe with hostile names, without outside parts, and readable at both widths."""

import re
from html.parser import HTMLParser

import pytest

from hardloop.service.demo.page import render
from hardloop.service.demo.report import LINKS, DataFacts, GateVerdict, Link, write_html

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Outline(HTMLParser):
    """Checks that every element is closed in its order, and keeps the texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_says_the_numbers_of_the_report(report_with):
    text = re.sub(r"\s+", " ", " ".join(Outline(render(report_with())).text))
    assert "The loop closed on digits" in text
    assert "In 3 rounds and 120 answers the candidate model went from 60.0 % to 82.0 % on 400 test images" in text
    for said in ("82.0 (77.9–85.5)", "95 %: +1.1 to +7.3", "≥ 80", "2 min 19 s", "300", "seed 40, legacy 60"):
        assert said in text
    for what in LINKS.values():
        assert what[1:] in text


def test_every_chart_has_a_name_and_a_table_of_the_same_numbers(report_with):
    outline = Outline(render(report_with()))
    images = [attrs["aria-label"] for tag, attrs in outline.tags if tag == "svg"]
    assert len(images) == 4
    assert images[0].endswith("82.0\xa0%, 77.9\xa0% to 85.5\xa0%. Random picking reaches 77.0\xa0% with as many.")
    assert images[1].endswith("round 1: +30; round 2: +93; round 3: ≥ 80.")
    assert images[2].endswith("In all 900 streamed, 300 captured, 120 picked, 120 labelled.")
    assert images[3].endswith("promote 6.6 s, other stages 9.6 s in all rounds.")
    assert sum(tag == "details" for tag, _ in outline.tags) == 4


def test_nothing_comes_from_outside_and_no_script_runs(report_with):
    page = render(report_with())
    outline = Outline(page)
    assert not [tag for tag, attrs in outline.tags if tag in ("script", "link", "img", "iframe") or "src" in attrs]
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_names_from_the_data_cannot_become_markup(report_with, round_with):
    evil = '<script>alert("x")</script>&amp;$title'
    facts = DataFacts(name=evil, labels=(evil, "b"), sizes={evil: 1}, notes=(evil,))
    links = tuple(Link(name=name, happened=name != "gate", evidence=evil) for name in LINKS)
    outline = Outline(render(report_with(data=facts, links=links)))
    assert "script" not in [tag for tag, _ in outline.tags]
    assert sum(evil in text for text in outline.text) >= 5


def test_a_loop_that_did_not_close_says_so_first(report_with, round_with):
    page = render(report_with((round_with(1, 292, lost=2),)))
    assert page.index("The loop did not close on digits") < page.index("Round 1 lost 2 answer(s)") < page.index("<svg")


def test_a_round_without_picks_says_why_and_has_no_dot_in_the_curve(report_with, round_with):
    none = GateVerdict(promoted=False, reason="Nothing was picked, so there is no candidate.")
    idle = round_with(2, 292, picked=0, tasks_pushed=0, verdict=none, notes=("0 of 40 were picked; none was eligible",))
    page = render(report_with((round_with(1, 292), idle, round_with(3, 328))))
    text = re.sub(r"\s+", " ", " ".join(Outline(page).text))
    assert "Round 2: 0 of 40 were picked; none was eligible" in text
    assert "Nothing was picked, so there is no candidate." in text
    assert "40 of 40" in text
    assert "candidates promoted 2 of 2" in text
    assert page.count("not promoted") == 0
    assert page.count("<title>mined, ") == 3, "the start and two candidates"


def test_a_report_without_random_has_no_chart_of_labels_saved(report_with, round_with):
    rounds = tuple(round_with(i, 292 + i, random_accuracy=None, labels_saved=None) for i in (1, 2, 3))
    outline = Outline(render(report_with(rounds, random_curve=())))
    assert sum(tag == "svg" for tag, _ in outline.tags) == 3


def test_a_perfect_model_on_one_round_can_be_drawn(report_with, round_with):
    Outline(render(report_with((round_with(1, 400),), random_curve=())))


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_its_window_without_asking_anyone(report_with, tmp_path, chromium, width, scheme):
    from playwright.sync_api import sync_playwright

    write_html(report_with(), tmp_path / "page.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto((tmp_path / "page.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            smallest = page.evaluate(
                "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
            )
            assert smallest >= 11.5, "chart text must stay readable"
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (max(map(int, re.findall(r"\d+", ground))) < 60) is (scheme == "dark")
            assert asked == [(tmp_path / "page.html").as_uri()]
        finally:
            browser.close()
