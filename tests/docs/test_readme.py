"""The README and the other pages hold: their Python runs, their commands parse, their links lead somewhere."""

import asyncio
import re
import sys
import types
import xml.etree.ElementTree as ElementTree

import httpx
import numpy as np
import pytest
import typer

from hardloop.core import capture_records, ids, images
from hardloop.core.blobs import DirectoryBlobs
from hardloop.core.errors import BadSettings
from hardloop.service.cli import app
from tests.docs.pages import PAGES, ROOT, fenced, read, shell_commands

README = read("README.md")
COMMANDS = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in shell_commands(page.read_text())]


def block(word: str) -> str:
    """The README's only Python block that holds a word."""
    (found,) = [code for code in fenced(README, "python") if word in code]
    return found


def test_every_python_block_of_the_readme_is_run_by_a_test_below():
    assert len(fenced(README, "python")) == 2


def test_the_capture_block_brings_an_unsure_sample_to_the_store(tmp_path, monkeypatch):
    model = types.ModuleType("my_model")
    model.LABELS = ["boot", "sandal", "sneaker"]
    model.predict = lambda image: [0.4, 0.35, 0.25]
    monkeypatch.setitem(sys.modules, "my_model", model)
    monkeypatch.setenv("HARDLOOP_S3_URL", tmp_path.as_uri())
    names = {"__name__": "server"}
    exec(compile(block("Capture"), "README.md", "exec"), names)
    shoe = images.encode_png(np.full((8, 8, 3), 7, dtype=np.uint8))

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/classify", content=shoe)

    answer = asyncio.run(ask())
    assert answer.json() == {"probabilities": [0.4, 0.35, 0.25], "sample_id": ids.sample_id(shoe)}
    assert names["capture"].close()
    store = DirectoryBlobs(tmp_path)
    (key,) = store.keys(capture_records.prefix("shoes"))
    (record,) = capture_records.read(store.get(key))
    assert (record.labels, record.source) == (("boot", "sandal", "sneaker"), "shop-4")
    assert {
        "low_confidence": pytest.approx(0.4),
        "small_margin": pytest.approx(0.05),
    }.items() <= record.policies.items()
    assert store.get(record.image_key) == shoe


def test_the_capture_block_says_which_variables_it_needs(monkeypatch):
    model = types.ModuleType("my_model")
    model.LABELS, model.predict = ["boot", "sandal"], None
    monkeypatch.setitem(sys.modules, "my_model", model)
    for name in ("HARDLOOP_S3_URL", "HARDLOOP_S3_BUCKET", "HARDLOOP_S3_ACCESS_KEY", "HARDLOOP_S3_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadSettings, match="HARDLOOP_S3_URL, HARDLOOP_S3_BUCKET"):
        exec(compile(block("Capture"), "README.md", "exec"), {"__name__": "server"})


def test_the_selection_block_picks_what_it_says(capsys):
    names = {"__name__": "notebook"}
    exec(compile(block("select"), "README.md", "exec"), names)
    picks = [int(pick.sample_id) for pick in names["selection"].picks]
    assert len(set(picks)) == 20
    assert min(picks) >= 30, "the first thirty are labelled"
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_there_are_commands_to_check():
    assert {"README.md", "docs/cli.md", "docs/api.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "words"), [c for c in COMMANDS if c[1][0] == "hardloop"])
def test_every_hardloop_command_in_the_pages_parses(page, words):
    command, rest = typer.main.get_command(app), words[1:]
    while hasattr(command, "commands"):
        assert set(rest[:1]) & set(command.commands), f"{page} names {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[1], rest)  # ends with the command line's own complaint where it does not parse


@pytest.mark.parametrize(("page", "words"), [c for c in COMMANDS if c[1][0] == "make"])
def test_every_make_target_in_the_pages_exists(page, words):
    targets = re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE)
    assert words[1] in targets, f"{page} names {' '.join(words)}"


def test_no_other_program_is_named_than_those_that_are_checked_or_everywhere():
    assert {words[0] for _, words in COMMANDS} <= {"hardloop", "make", "curl"}


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"pip install '?\.\[(\w+)\]", README))))
def test_every_extra_the_readme_names_exists(extra):
    assert f"\n{extra} = [" in read("pyproject.toml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_in_a_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} is not there"
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_of_ours_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:hardloop|feedback|miner|annotation|training|registry|tests|docs|tools)/[\w/.-]+\.\w+)`", text
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_page_is_in_the_index():
    index, records = read("docs/index.md"), read("docs/adr/index.md")
    for page in PAGES:
        name = page.relative_to(ROOT).as_posix()
        if name.startswith("docs/adr/0"):
            assert f"({page.name})" in records
        elif name.startswith("docs/") and page.name != "index.md":
            assert f"({page.name})" in index


def test_the_picture_draws_the_six_steps_in_both_modes_of_colour():
    picture = read("docs/loop.svg")
    drawn = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    for number, step in enumerate(("ingest", "mine", "send", "collect", "train", "promote"), start=1):
        assert any(text.startswith(str(number)) and step in text for text in drawn if text)
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_names_a_folder_of_somebodys_machine(page):
    assert not re.findall(r"(?<![\w.}])/(?:root|home/\w+|Users/\w+)/", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_link_to_few_places_outside_and_no_index_of_packages_is_among_them(page):
    outside = set(re.findall(r"https?://([\w.-]+\.[a-z]{2,})", page.read_text(encoding="utf-8")))
    assert {host for host in outside if not host.endswith("example.com")} <= {"keepachangelog.com", "semver.org"}
