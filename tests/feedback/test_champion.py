"""The champion: a version that cannot serve, asked for again and again."""

import traceback
from pathlib import Path

import pytest

from feedback.champion import Champion
from hardloop.core.errors import BadModel


def test_a_failure_told_at_every_poll_does_not_grow(tmp_path: Path):
    champion = Champion(lambda: ("7", lambda folder: folder))
    depths = []
    for _ in range(5):
        with pytest.raises(BadModel, match="version 7 cannot serve") as caught:
            champion.refresh()
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[1:] == [depths[1]] * 4
