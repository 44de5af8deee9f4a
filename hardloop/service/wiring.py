"""The one place where adapters are chosen: settings and connections in, loops ready to run out."""

import threading
from collections.abc import Callable, Mapping

import httpx
from sqlalchemy.engine import Engine

from annotation.label_studio import LabelStudioTool
from annotation.label_studio_api import ImageStorage, LabelStudioSettings
from hardloop.core.ports import AnnotationTool, BlobStore, Registry
from hardloop.service import code, image_links
from hardloop.service.connections import Connections
from hardloop.service.embeddings import EmbeddingStore
from hardloop.service.lineage import Lineage
from hardloop.service.loop import Loop
from hardloop.service.samples import Sample, Samples
from hardloop.service.scorers import scorers
from hardloop.service.settings import LoopSettings, Settings
from hardloop.service.training_process import TrainingProcess
from hardloop.service.work import Work
from miner.select import PolicyMiner
from registry.mlflow_client import MlflowSettings
from registry.mlflow_registry import MlflowRegistry
from training.descriptor import BuiltInEncoder


def build_loops(settings: Settings, connections: Connections, engine: Engine) -> dict[str, Loop]:
    """Every loop of the settings with its real adapters. Opens no connection: what is away shows when it is used."""
    blobs = connections.blobs()
    encoder = BuiltInEncoder()
    loops = {}
    for loop in settings.loops:
        registry = build_registry(loop, connections)
        loops[loop.name] = Loop(
            settings=loop,
            samples=Samples(engine, loop.name),
            work=Work(engine, loop.name),
            lineage=Lineage(engine, loop.name),
            blobs=blobs,
            embeddings=EmbeddingStore(blobs, loop.name),
            encoder=encoder,
            miner=PolicyMiner(loop.mining),
            tool=_once(lambda loop=loop: _annotation_tool(loop, settings, connections)),  # type: ignore[misc]
            trainer=TrainingProcess(connections, loop.recipe_settings, settings.data_dir / "cache" / loop.name),
            registry=registry,
            scorer=scorers(registry, settings.data_dir / "models" / loop.name),
            folder=settings.data_dir / "work" / loop.name,
            champion_moved=_reloader(connections, loop.name),
            image_address=_image_addresses(blobs, connections, loop.name),
        )
    return loops


def build_registry(loop: LoopSettings, connections: Connections) -> Registry:
    """The loop's model registry."""
    s3 = connections.s3
    settings = MlflowSettings(
        tracking_url=connections.mlflow_url, loop=loop.name, store_url=f"s3://{s3.bucket}/" if s3 else ""
    )
    return MlflowRegistry(settings, code_commit=code.commit())


def _annotation_tool(loop: LoopSettings, settings: Settings, connections: Connections) -> AnnotationTool:
    s3 = connections.s3
    storage = None
    if s3 is not None:
        storage = ImageStorage(
            url=s3.label_studio_url,
            bucket=s3.bucket,
            access_key=s3.access_key,
            secret_key=s3.secret_key,
            region=s3.region,
        )
    tool = LabelStudioTool(
        LabelStudioSettings(
            url=connections.label_studio_url,
            api_key=connections.label_studio_key,
            project_id=settings.label_studio.project_id,
            storage=storage,
        ),
        loop.labels,
        loop.name,
    )
    # Where Label Studio refuses our address, answers are polled for; nothing is lost but time.
    tool.ensure_webhook(
        f"{connections.webhook_url}/webhooks/label-studio/{loop.name}", connections.webhook_secret.get_secret_value()
    )
    return tool


def _reloader(connections: Connections, loop: str) -> Callable[[], None]:
    def tell() -> None:
        address = connections.predictors.get(loop)
        if address is None:
            return
        secret = connections.webhook_secret.get_secret_value()
        try:
            httpx.post(f"{address}/reload", headers={"X-Hardloop-Secret": secret}, timeout=5.0)
        except httpx.HTTPError:
            return  # it polls the alias anyway; this only makes it sooner

    return tell


def _image_addresses(blobs: BlobStore, connections: Connections, loop: str) -> Callable[[Sample], str]:
    if connections.s3 is not None:
        return lambda sample: blobs.uri(sample.image_key)
    secret = connections.webhook_secret.get_secret_value()
    return lambda sample: image_links.link(connections.webhook_url, secret, loop, sample.sample_id)


def _once(make: Callable[[], AnnotationTool]) -> Callable[[], AnnotationTool]:
    """A function that makes the thing at the first call that succeeds and returns the same one ever after."""
    made: list[AnnotationTool] = []
    mutex = threading.Lock()

    def get() -> AnnotationTool:
        with mutex:
            if not made:
                made.append(make())
        return made[0]

    return get


def predictor_addresses(settings: Settings, ports: Mapping[str, int]) -> dict[str, str]:
    """Where each loop's predictor answers."""
    return {loop.name: f"http://{settings.host}:{ports[loop.name]}" for loop in settings.loops}
