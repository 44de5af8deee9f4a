"""Who may be picked, on both databases: nobody is asked about what could never be trained on."""

from pathlib import Path

import numpy as np
from sqlalchemy.engine import Engine

from hardloop.core import ids, images
from hardloop.service import steps
from hardloop.service.intake import GivenImage
from tests.fakes.loops import fake_loop, picture


def test_a_look_alike_of_a_sample_that_measures_is_not_asked_about(engine: Engine, tmp_path: Path) -> None:
    world = fake_loop(engine, tmp_path, capture={"audit_share": 0.0, "take_all": True})
    rng = np.random.default_rng(0)
    held, other = picture("red", rng), picture("green", rng)
    pixels = np.asarray(images.decode(held)).copy()
    pixels[0, 0] ^= 1
    copy = images.encode_png(pixels)
    steps.add_images(world.loop, [GivenImage("held", held, "archive", "legacy", "red")])
    steps.add_images(world.loop, [GivenImage("copy", copy, "shop"), GivenImage("other", other, "shop")])
    steps.mine(world.loop, "s1", 2)
    assert [item["sample_id"] for item in world.loop.work.queue()] == [ids.sample_id(other)]
    world.capture.close()
