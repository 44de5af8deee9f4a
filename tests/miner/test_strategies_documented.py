from pathlib import Path

import pytest

from miner.policy import METHODS

SECTIONS = {
    part.split("\n", 1)[0].strip(): part
    for part in (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8").split("\n## ")[1:]
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_cost_when_it_wins_and_its_source(method):
    assert method in SECTIONS, f"docs/strategies.md has no section '## {method}'"
    for part in ("**Cost**", "**Wins**", "**Source**"):
        assert part in SECTIONS[method]


def test_no_method_is_documented_that_does_not_exist():
    assert set(SECTIONS) - {"The arms of a budget"} == set(METHODS)
