"""What the tests of the documents share: the pages, their tables and their fenced blocks."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("docker/*.md")])


def read(path: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a `## ` heading, up to the next one. Raises AssertionError where there is none."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in found, f"no section '## {heading}': there are {', '.join(found)}"
    return found[heading]


def table(text: str) -> dict[str, list[str]]:
    """The first table's rows after its head, by the first cell; cells as they are written."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    found = {row[0]: row[1:] for row in rows[2:]}
    assert len(found) == len(rows[2:]), "a row stands there twice"
    return found


def tables(text: str) -> list[dict[str, list[str]]]:
    """Every table of a text."""
    blocks = re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.MULTILINE)
    return [table(block) for block in blocks]


def fenced(text: str, language: str) -> list[str]:
    """The content of every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_commands(text: str) -> list[list[str]]:
    """The commands of all console blocks, as words; lines that end in a backslash go on in the next."""
    joined = "\n".join(fenced(text, "console")).replace("\\\n", " ")
    return [shlex.split(line[2:]) for line in joined.splitlines() if line.startswith("$ ")]
