"""A model is fetched and loaded once, whoever asks for it at the same time."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hardloop.core.records import ModelVersion
from hardloop.service.scorers import scorers
from tests.fakes.onnx_models import linear_network, write_model


def test_two_lanes_that_ask_for_a_new_champion_at_once_fetch_it_once(tmp_path: Path) -> None:
    fetched: list[str] = []

    class Slow:
        def fetch(self, version: ModelVersion, folder: Path) -> Path:
            fetched.append(version.version)
            time.sleep(0.2)
            write_model(folder, ("red", "green", "blue"), [linear_network(np.eye(3))], encoder="mean-rgb")
            return folder

    scorer = scorers(Slow(), tmp_path)  # type: ignore[arg-type]
    version = ModelVersion("hardloop-colours", "1", "run", "key", "digest", ("red", "green", "blue"))
    with ThreadPoolExecutor(4) as lanes:
        loaded = list(lanes.map(scorer, [version] * 4))
    assert fetched == ["1"]
    assert len({id(predictor) for predictor in loaded}) == 1
