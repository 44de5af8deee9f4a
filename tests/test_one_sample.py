"""One sample's way through all six steps, top to bottom, with fakes where a server would be."""

from pathlib import Path

import numpy as np

from hardloop.service import steps
from hardloop.service.database import connect, migrate
from hardloop.service.intake import GivenImage
from tests.fakes.loops import LABELS, fake_loop, picture


def test_one_sample_goes_from_production_to_the_next_champion(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'loop.db'}")
    migrate(engine)
    world = fake_loop(engine, tmp_path)
    loop, rng = world.loop, np.random.default_rng(0)

    # A first model from six labels; sixty more only measure.
    for role, count in (("seed", 2), ("legacy", 20)):
        given = [
            GivenImage(f"{role}-{label}-{i}", picture(label, rng), "archive", role, label)
            for label in LABELS
            for i in range(count)
        ]
        assert steps.add_images(loop, given)["new"] == 3 * count
    first = steps.train(loop, manual=True)
    assert first is not None
    assert steps.promote(loop) == first

    # Production: the champion answers, capture keeps what it saw.
    predictor = world.champion()
    for _ in range(60):
        label = LABELS[rng.integers(3)]
        image = picture(label, rng, clear=0.35)
        scores = predictor.score([image])
        decision = world.capture.log(
            image=image,
            probabilities=scores.probs_NC[0],
            member_probabilities=scores.member_probs_MNC[:, 0],
            embedding=scores.embeddings_ND[0],
            encoder=predictor.encoder,
            model_version=first,
            source="line-1",
        )
        world.truth[decision.sample_id] = label
    assert world.capture.close()

    assert steps.ingest(loop)["new"] == 60
    selection = steps.mine(loop, "round-1")
    (item, *others) = loop.work.queue(selection_id=selection)
    assert len(others) == 9
    assert item["receipt"]["seed"] == 0
    assert item["receipt"]["reasons"]
    loop.work.decide("approved", "reviewer")
    assert steps.send(loop) == 10
    assert world.answer_all() == 10
    collected = steps.collect(loop)
    assert (collected["new"], collected["labels"]) == (10, 10)
    second = steps.train(loop)
    assert second not in (None, first)
    steps.promote(loop)

    # The sample's whole history can be read back, from the picture to the verdict on the model it helped to make.
    sample_id = item["sample_id"]
    label = {row["sample_id"]: row for row in loop.work.labels()}[sample_id]
    assert label["label"] == world.truth[sample_id]
    assert label["selection_id"] == selection
    assert label["annotation_ids"]
    assert loop.samples.predictions_of(sample_id)[0].model_version == first
    assert [d["model_version"] for d in loop.lineage.decisions()] == [first, second]
    assert all(d["applied_at"] is not None for d in loop.lineage.decisions())
    assert world.trainer.calls == 2

    # Every step again: nothing is left to do, and nothing is done twice.
    assert steps.ingest(loop)["new"] == 0
    assert steps.mine(loop, "round-1") == selection
    assert steps.send(loop) == 0
    assert steps.collect(loop)["new"] == 0
    assert steps.train(loop) is None
    steps.promote(loop)
    assert len(loop.work.queue()) == 10
    assert world.trainer.calls == 2
    engine.dispose()
