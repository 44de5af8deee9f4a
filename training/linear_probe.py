"""Recipe `linear-probe`: multinomial logistic regression on the fixed descriptor. Trains in well under a second.

The embedding is the descriptor itself, so it stays comparable from one model version to the next.
"""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from hardloop.core.records import Floats
from training import descriptor
from training.checkpoints import Checkpoint
from training.descriptor import Descriptor
from training.recipe import Examples, Weights, generator

# Keeps the bias of a class without any training sample finite, and its probability near half a percent.
_BIAS_PENALTY = 1e-3
_TOLERANCE = 1e-6  # probabilities then agree with the exact optimum to about three digits or better
_TUNING_TOLERANCE = 3e-4  # enough to rank penalties that lie a factor of four apart


class LinearProbeConfig(BaseModel):
    """Settings of `linear-probe`. strengths: candidate L2 penalties; with several, cross-validation chooses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[int, Field(ge=16, le=512, multiple_of=2)] | None = None
    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-2, 2.5e-3, 6e-4, 1.5e-4, 4e-5, 1e-5,
    )  # fmt: skip
    folds: Annotated[int, Field(ge=2, le=5)] = 5
    committee: Annotated[int, Field(ge=0, le=7)] = 1


class LinearHead(nn.Module):
    """Descriptor rows (N, D) to (logits (N, C), the rows themselves)."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(Descriptor.DIMENSION, n_classes)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.linear(rows), rows


class LinearProbe:
    """The recipe, see `recipe.Recipe`."""

    name = "linear-probe"

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config
        self.size = config.size
        self.folds = config.folds
        self.committee = config.committee

    def space(self, size: int) -> str:
        return f"{descriptor.VERSION}-{size}"

    def front(self, size: int) -> nn.Module:
        return Descriptor(size).eval()

    def body(self, n_classes: int, size: int) -> nn.Module:  # noqa: ARG002
        return LinearHead(n_classes)

    def encoder(self, size: int, weights: Weights) -> str:  # noqa: ARG002
        return self.space(size)

    def tune(self, examples: Examples, seed: int) -> Mapping[str, float]:  # noqa: ARG002
        """The L2 penalty with the least log loss on left-out folds; the middle one where there is only one fold."""
        strengths = sorted(self.config.strengths, reverse=True)
        losses = np.zeros(len(strengths))
        present = np.unique(examples.folds_N)
        if len(strengths) == 1 or len(present) < 2:
            return {"l2": strengths[len(strengths) // 2]}
        with _one_thread():
            problem = _Problem(examples)
            for fold in present:
                held_N = examples.folds_N == fold
                solution: Floats | None = None
                for i, strength in enumerate(strengths):
                    solution = problem.solve((~held_N).astype(np.float64), strength, solution, _TUNING_TOLERANCE)
                    losses[i] += problem.loss(solution, held_N)
        return {"l2": strengths[int(np.argmin(losses))]}

    def fit(
        self,
        examples: Examples,
        tuned: Mapping[str, float],
        seed: int,
        member: int,
        checkpoint: Checkpoint,  # noqa: ARG002 - there is nothing worth saving within a fit of milliseconds
    ) -> Weights:
        """Members after the first weigh the rows by a Bayesian bootstrap (Rubin 1981), so that they truly disagree."""
        row_weights_N = torch.ones(len(examples.labels_N), dtype=torch.float64)
        if member:
            row_weights_N.exponential_(generator=generator(seed, "bootstrap", member))
        with _one_thread():
            problem = _Problem(examples)
            return problem.weights(problem.solve(row_weights_N.numpy(), tuned["l2"], None, _TOLERANCE))


def _one_thread() -> threadpool_limits:
    """Thousands of products of a few hundred rows each: threads cost more than they bring.

    Once, on two busy cores: 4 to 19 times the processor time for 50 to 440 rows. One thread also adds in the same order
    on every machine.
    """
    return threadpool_limits(limits=1, user_api="blas")


class _Problem:
    """A convex problem over standardised rows, solved in the space the rows span: same solution, fewer unknowns.

    Variances are shrunk half way to their mean: full standardisation lets the quietest features speak as loud as the
    strongest, which costs accuracy when labels are few (measured, docs/recipes.md).
    """

    def __init__(self, examples: Examples) -> None:
        rows_ND = examples.inputs.astype(np.float64)
        self._mean_D = rows_ND.mean(axis=0)
        variance_D = rows_ND.var(axis=0)
        typical = max(float(variance_D.mean()), 1e-12)
        # The square root of D makes the mean squared length of a row about 1, whatever D.
        self._scale_D = np.sqrt((variance_D + typical) / 2) * rows_ND.shape[1] ** 0.5
        standard_ND = (rows_ND - self._mean_D) / self._scale_D
        if len(standard_ND) < standard_ND.shape[1]:
            left, singular, self._basis = np.linalg.svd(standard_ND, full_matrices=False)
            rotated = left * singular
        else:
            rotated, self._basis = standard_ND, np.eye(standard_ND.shape[1])
        self._rows = np.column_stack([rotated, np.ones(len(rotated))])  # the last column carries the bias
        self._truth_NC = np.eye(examples.n_classes)[examples.labels_N]

    def solve(self, row_weights_N: Floats, strength: float, start: Floats | None, tolerance: float) -> Floats:
        """(C, R + 1): weights and, last, the bias, minimising the weighted mean log loss plus the L2 penalty.

        By L-BFGS of scipy: torch's gives the same, but importing its optimisers takes longer than all the fits here.
        tolerance: largest entry of the gradient at which to stop.
        """
        used_N = row_weights_N > 0
        rows, truth_NC = self._rows[used_N], self._truth_NC[used_N]
        share_N1 = (row_weights_N[used_N] / row_weights_N.sum())[:, None]
        penalties = np.full(rows.shape[1], strength)
        penalties[-1] = _BIAS_PENALTY
        shape = (truth_NC.shape[1], rows.shape[1])

        def objective(flat: Floats) -> tuple[float, Floats]:
            unknowns = flat.reshape(shape)
            log_probs_NC = log_softmax(rows @ unknowns.T, axis=1)
            penalised = unknowns * penalties
            loss = (penalised * unknowns).sum() / 2 - (log_probs_NC * truth_NC * share_N1).sum()
            gradient = ((np.exp(log_probs_NC) - truth_NC) * share_N1).T @ rows + penalised
            return float(loss), gradient.ravel()

        first = np.zeros(shape) if start is None else start
        options = {"maxiter": 500, "gtol": tolerance, "ftol": tolerance**2}
        found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        solution: Floats = found.x.reshape(shape)
        return solution

    def loss(self, solution: Floats, chosen_N: NDArray[np.bool_]) -> float:
        """The summed log loss of the chosen rows."""
        log_probs_NC = log_softmax(self._rows[chosen_N] @ solution.T, axis=1)
        return float(-(log_probs_NC * self._truth_NC[chosen_N]).sum())

    def weights(self, solution: Floats) -> Weights:
        """The solution as weights on descriptor rows, the standardisation folded in."""
        weights_CD = (solution[:, :-1] @ self._basis) / self._scale_D
        bias_C = solution[:, -1] - weights_CD @ self._mean_D
        return {
            "linear.weight": torch.from_numpy(np.ascontiguousarray(weights_CD, dtype=np.float32)),
            "linear.bias": torch.from_numpy(bias_C.astype(np.float32)),
        }
