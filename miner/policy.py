"""How a loop mines: every number of the objective that a person may set, with its meaning and its default's reason."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hardloop.core.ids import settings_digest

Method = Literal["uncertainty-coverage", "coverage", "margin", "random"]
METHODS: tuple[Method, ...] = ("uncertainty-coverage", "coverage", "margin", "random")

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Priority = Annotated[float, Field(ge=0.0, le=1000.0)]


class MiningPolicy(BaseModel):
    """The settings of one selection. Its digest stands in every receipt, so that a pick can be traced to them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[Method, Field(description="Strategy of the main part of the budget; see docs/strategies.md.")] = (
        "uncertainty-coverage"
    )
    audit_share: Annotated[
        Share, Field(description="Part of every budget drawn uniformly from the audit holdout, never trained on.")
    ] = 0.05
    exploration_share: Annotated[
        Share,
        Field(description="Part of every budget drawn uniformly from the eligible, one of a burst; propensity logged."),
    ] = 0.05
    neighbours: Annotated[
        int, Field(ge=1, le=4096, description="K: how many nearest neighbours each sample has in the graph.")
    ] = 32
    center: Annotated[
        bool,
        Field(
            description="Subtract the mean embedding before normalising. Embeddings that are never negative (pixels, "
            "ReLU features) all point one way; without this their similarities say nothing."
        ),
    ] = True
    cold_sigma: Annotated[
        float, Field(gt=0.0, le=100.0, description="Kernel width, in distance of unit vectors, before warm_labels.")
    ] = 1.0
    warm_sigma_quantile: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Afterwards the width is this quantile of labelled-to-labelled distances."),
    ] = 0.1
    warm_labels_per_class: Annotated[
        Count, Field(description="Labels per class, on average, before uncertainty is listened to at all.")
    ] = 5
    lam: Annotated[
        Share | None,
        Field(description="Weight of uncertainty against plain coverage; None lets the audit decide."),
    ] = None
    lam_without_audit: Annotated[
        Share, Field(description="That weight once warm while the audit holds too few errors to decide.")
    ] = 1.0
    min_audit_errors: Annotated[
        int, Field(ge=2, description="Mistakes (and as many right answers) the audit must hold to decide on lam.")
    ] = 20
    min_audit_labels: Annotated[
        int, Field(ge=2, description="Audit labels needed to fit the temperature; with fewer it stays 1.")
    ] = 50
    duplicates_exponent: Annotated[
        Share, Field(description="gamma: a sample that stands for m near-duplicates weighs m to this power.")
    ] = 0.5
    near_duplicate_similarity: Annotated[
        float | None,
        Field(
            gt=0.0,
            le=1.0,
            description="tau: cosine similarity from which two samples count as one. None switches grouping and "
            "exclusion off.",
        ),
    ] = 0.98
    outlier_quantile: Annotated[
        Share, Field(description="Samples whose K-th neighbour is less similar than this quantile are likely garbage.")
    ] = 0.02
    outlier_damping: Annotated[Share, Field(description="Factor on the weight of likely garbage.")] = 0.1
    quality_floor: Annotated[
        Share, Field(description="Image quality below which a sample counts as likely garbage.")
    ] = 0.5
    one_per_burst: Annotated[
        bool, Field(description="Ask for at most one sample of a burst (same source, same burst id), ever.")
    ] = True
    class_cap: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(description="Most picks of one selection with one predicted class.")
    ] = None
    source_cap: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(description="Most picks of one selection from one source.")
    ] = None
    class_quotas: Annotated[
        dict[Count, Count], Field(description="Least picks by predicted class index, served before anything else.")
    ] = {}
    source_quotas: Annotated[
        dict[str, Count], Field(description="Least picks by source, served before anything else.")
    ] = {}
    class_balance: Annotated[
        Share,
        Field(
            description="How much more samples weigh whose predicted class has few labels: (mean labels of a class / "
            "labels of this one) to this power, each counted one higher. 0: all classes alike."
        ),
    ] = 0.5
    class_priorities: Annotated[
        dict[Count, Priority], Field(description="Factor on the weight of samples by predicted class index; else 1.")
    ] = {}
    source_priorities: Annotated[
        dict[str, Priority], Field(description="Factor on the weight of samples by source; else 1.")
    ] = {}

    @field_validator("near_duplicate_similarity", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        # TOML has no null; `false` says the same.
        return None if value is False else value

    @model_validator(mode="after")
    def _shares_fit(self) -> "MiningPolicy":
        if self.audit_share + self.exploration_share > 1.0:
            raise ValueError("audit_share and exploration_share together exceed the whole budget")
        return self

    @property
    def digest(self) -> str:
        """16 hexadecimal digits; equal settings have equal digests."""
        return settings_digest(self.model_dump(mode="json"))
