"""One loop with everything its steps need; put together in `wiring.py`."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hardloop.core.ports import AnnotationTool, BlobStore, Encoder, Miner, Registry, Scorer, Trainer
from hardloop.core.records import ModelVersion
from hardloop.service.embeddings import EmbeddingStore
from hardloop.service.lineage import Lineage
from hardloop.service.samples import Sample, Samples
from hardloop.service.settings import LoopSettings
from hardloop.service.work import Work


@dataclass(frozen=True)
class Loop:
    """Settings, tables and ports of one loop.

    tool: made at the first call, since Label Studio may be away at the start. champion_moved: tells the predictor to
    look. image_address: where the annotation tool finds a sample's image. champion_lock: held while the champion is
    moved; a person's rollback and the gate's promotion must not cross. stopping: set once the service begins to stop.
    """

    settings: LoopSettings
    samples: Samples
    work: Work
    lineage: Lineage
    blobs: BlobStore
    embeddings: EmbeddingStore
    encoder: Encoder
    miner: Miner
    tool: Callable[[], AnnotationTool]
    trainer: Trainer
    registry: Registry
    scorer: Callable[[ModelVersion], Scorer]
    folder: Path
    champion_moved: Callable[[], None]
    image_address: Callable[[Sample], str]
    champion_lock: threading.RLock = field(default_factory=threading.RLock)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """The loop's name."""
        return self.settings.name
