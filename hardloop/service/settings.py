"""Settings: `hardloop.toml` and `HARDLOOP_…` variables, checked as a whole before anything starts."""

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from annotation.label_schema import check_labels
from feedback.capture import CapturePolicy
from feedback.trigger import TriggerPolicy
from hardloop.core.errors import BadSettings
from hardloop.core.ids import loop_name
from miner.policy import MiningPolicy
from registry.gate import GatePolicy

CONFIG = "hardloop.toml"
Label = Annotated[str, Field(min_length=1, max_length=200)]


def _http(url: str | None) -> str | None:
    """An address as it is, None where it was left empty. Raises ValueError: here, not where it is first used."""
    if not url:
        return None
    with suppress(ValueError):  # brackets that do not close, a port that is no number
        parts = urlsplit(url)
        plain = not parts.query and not parts.fragment
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and plain:
            return url
    raise ValueError("expected http(s)://host[:port][/path]")


Address = Annotated[str | None, AfterValidator(_http)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoopSettings(_Strict):
    """One loop: one model, its labels, and how samples are picked, models trained and judged."""

    name: Annotated[str, Field(description="The loop's name: 2 to 48 of a-z, 0-9 and '-'.")]
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=1000, description="The classes, in order.")]
    budget: Annotated[int, Field(ge=1, le=100_000, description="Samples per selection.")] = 100
    review: Annotated[
        Literal["manual", "automatic"],
        Field(description="Whether a person approves queue items before they become tasks."),
    ] = "manual"
    mine: Annotated[
        Literal["automatic", "manual"],
        Field(description="automatic: a new selection whenever fewer than `low_water` samples are waiting for labels."),
    ] = "automatic"
    low_water: Annotated[int, Field(ge=0, description="See `mine`.")] = 10
    recipe: Annotated[Literal["linear-probe", "small-cnn"], Field(description="How a candidate is trained.")] = (
        "linear-probe"
    )
    recipe_settings: Annotated[
        dict[str, int | float | str | bool], Field(description="The recipe's own settings, see docs/recipes.md.")
    ] = {}
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of everything drawn at random.")] = 0
    capture: CapturePolicy = CapturePolicy()
    mining: MiningPolicy = MiningPolicy()
    trigger: TriggerPolicy = TriggerPolicy()
    gate: GatePolicy = GatePolicy()

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        try:
            return loop_name(name)
        except BadSettings as error:
            raise ValueError(str(error)) from None

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        try:
            check_labels(labels)  # before the first image is captured, not when the first task is sent
        except BadSettings as error:
            raise ValueError(str(error)) from None
        return labels


class StoreSettings(_Strict):
    """Your own S3-compatible server; without a url an embedded one is started."""

    url: Annotated[Address, Field(description="http(s)://host:port of the server.")] = None
    bucket: Annotated[str, Field(description="The bucket, created if it is missing.")] = "hardloop"
    access_key: str = ""
    secret_key: SecretStr = SecretStr("")
    region: str = "us-east-1"
    url_for_label_studio: Annotated[
        Address, Field(description="The address under which Label Studio reaches the server, where it differs.")
    ] = None


class LabelStudioSettings(_Strict):
    """Your own Label Studio; without a url an embedded one is started."""

    url: Address = None
    api_key: Annotated[SecretStr, Field(description="A legacy token or a personal access token.")] = SecretStr("")
    project_id: Annotated[int | None, Field(gt=0, description="A project of yours to use; else one is created.")] = None


class MlflowSettings(_Strict):
    """Your own MLflow tracking server; without a url an embedded one is started."""

    url: Address = None


class Settings(BaseSettings):
    """All settings of one service. Variables override the file, e.g. HARDLOOP_STORE__URL."""

    model_config = SettingsConfigDict(
        env_prefix="HARDLOOP_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    loops: Annotated[tuple[LoopSettings, ...], Field(min_length=1)]
    data_dir: Annotated[Path, Field(description="Where the service and embedded servers keep their files.")] = Path(
        ".hardloop"
    )
    database_url: Annotated[str | None, Field(description="postgresql://…; without it SQLite in the data folder.")] = (
        None
    )
    store: StoreSettings = StoreSettings()
    label_studio: LabelStudioSettings = LabelStudioSettings()
    mlflow: MlflowSettings = MlflowSettings()
    host: Annotated[str, Field(description="Address the service and the predictors listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port of the service; 0 takes a free one.")] = 8420
    webhook_url: Annotated[
        Address, Field(description="Where Label Studio reaches this service; without it http://host:port.")
    ] = None
    tick_s: Annotated[float, Field(gt=0, le=3600, description="How often the service looks for work.")] = 2.0
    poll_s: Annotated[float, Field(gt=0, description="How often answers are polled when no webhook comes.")] = 30.0

    @model_validator(mode="after")
    def _distinct_loops(self) -> "Settings":
        names = [loop.name for loop in self.loops]
        if len(set(names)) != len(names):
            raise ValueError(f"loop names must be distinct: {', '.join(sorted(names))}")
        return self

    @model_validator(mode="after")
    def _project_of_one_loop(self) -> "Settings":
        number = self.label_studio.project_id
        if number is not None and len(self.loops) > 1:
            names = ", ".join(loop.name for loop in self.loops)
            raise ValueError(
                f"label_studio.project_id {number} cannot serve {len(self.loops)} loops ({names}): leave it out, and "
                "each gets a project of its own"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose content arrives as constructor arguments."""
        return env_settings, init_settings


def load(path: Path) -> Settings:
    """The settings in a file, with the environment's on top. Raises BadSettings naming the setting and the fault."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadSettings(f"{path} does not exist: run 'hardloop init' to write one") from None
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"{path} is not valid TOML: {error}") from None
    try:
        settings = Settings(**content)
    except ValidationError as error:
        raise BadSettings(f"{path}: {told(error)}") from None
    except SettingsError as error:
        raise BadSettings(f"{path}, with HARDLOOP_… variables on top: {error}") from None
    if settings.data_dir.is_absolute():
        return settings
    return settings.model_copy(update={"data_dir": (path.parent / settings.data_dir).resolve()})


def told(error: ValidationError) -> str:
    """Every fault that was found, each with its place, in one line."""
    faults = []
    for fault in error.errors():
        where, what = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
        faults.append(f"{where}: {what}" if where else what)
    return "; ".join(faults)
