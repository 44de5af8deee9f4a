"""What mining gains over random picking in a running loop: the demo's protocol without its servers, over many seeds.

    python -m benchmarks.loop_gain --data ../shared/data --out benchmarks/results/loop_gain.json

Every part that decides is the product's own: the demo's cut of the data, the capture policy, the recipe `linear-probe`
with its committee and temperature, the miner with its arms. Left out is what moves bytes (store, Label Studio, MLflow)
and the gate: every candidate serves. As in `hardloop demo`: 20 first labels, three rounds of 40, 2 % wrong answers, the
labels of all arms count as spent though audit labels are never trained on, random picking draws from all traffic that
production had seen by then with the same recipe and the same wrong answers. One seed is one cut, one first model, one
run of each strategy and RANDOM_DRAWS baselines. Measured on the data's test set, as the demo's report does, and on the
gate's set, which is the data's own validation split or drawn from the traffic. Data sets whose files are absent are
skipped by name.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.label_efficiency import machine
from feedback.policies import CapturePolicy, decide
from hardloop.core import ids
from hardloop.core.records import Floats, Pool, PoolState
from hardloop.core.temperature import fit_temperature, softmax
from hardloop.service.demo.data import load, partition
from hardloop.service.demo.items import DemoData
from miner.policy import MiningPolicy
from miner.select import mine
from training import recipes
from training.checkpoints import Checkpoint
from training.leakage import fold_of
from training.recipe import Examples, Weights, logits, own_stream

MEASURED = ("test set", "gate's set")
LOOP, ROUNDS, BUDGET, ERROR, LIMIT, RANDOM_DRAWS = "demo", 3, 40, 0.02, 10_000, 5
SETS: dict[str, str | None] = {"digits": None, "fashion-mnist": "fashion-mnist", "clothing10": "clothing10"}
STRATEGIES: dict[str, MiningPolicy] = {
    "default": MiningPolicy(),
    "without class balance": MiningPolicy(class_balance=0.0),
    "coverage (λ = 0)": MiningPolicy(method="coverage"),
    "λ = 0.5": MiningPolicy(lam_without_audit=0.5),
    "margin": MiningPolicy(method="margin"),
}


@dataclass(frozen=True)
class Images:
    """One data set, prepared for the recipe: rows in the order of `data.items`."""

    data: DemoData
    inputs: NDArray[np.float32]
    size: int

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.data.labels)


@dataclass(frozen=True)
class Model:
    """The fitted members, the first of which serves, and the temperature of their answers."""

    members: list[Weights]
    temperature: float


class Run:
    """One seed on one data set."""

    def __init__(self, images: Images, seed: int) -> None:
        data = images.data
        self.images, self.seed = images, seed
        self.recipe = recipes.named("linear-probe")
        self.names = [item.sample_id for item in data.items]
        self.row = {name: row for row, name in enumerate(self.names)}
        self.folds_N = np.array([fold_of(name) for name in self.names], dtype=np.int64)
        self.truth_N = np.array([data.labels.index(item.label) for item in data.items], dtype=np.int64)
        parts = partition(data, seed, max(2 * len(data.labels), 20), BUDGET, ROUNDS)
        self.first, self.stream, *self.measured = (
            np.array([self.row[item.sample_id] for item in part])
            for part in (parts.seed, parts.stream, parts.test, parts.legacy)
        )
        self.cuts = [len(self.stream) * k // ROUNDS for k in range(ROUNDS + 1)]
        rng = np.random.default_rng([seed, 1])
        wrong_N = rng.random(len(self.truth_N)) < ERROR
        wrong_N[self.first] = False
        shift_N = rng.integers(1, len(data.labels), len(self.truth_N))
        self.answers_N = np.where(wrong_N, (self.truth_N + shift_N) % len(data.labels), self.truth_N)

    def mined(self, policy: MiningPolicy) -> list[list[float]]:
        """Accuracy after each round of our own picking, on both sets."""
        capture = CapturePolicy()
        trained_on, audited, pool = list(self.first), set[int](), list[int]()
        found = []
        for number in range(ROUNDS):
            model = self._fit(trained_on, self.seed, committee=True)
            pool += self._captured(capture, model, self.stream[self.cuts[number] : self.cuts[number + 1]])
            asked = number * BUDGET
            selection = mine(
                self._pool(capture, model, pool, trained_on, audited, asked), BUDGET, policy, self.seed + number
            )
            for pick in selection.picks:
                row = self.row[pick.sample_id]
                if pick.receipt.arm == "audit":
                    audited.add(row)
                else:
                    trained_on.append(row)
            found.append(self._accuracy(trained_on, self.seed))
        return found

    def random(self, draw: int) -> list[list[float]]:
        """The same of labels drawn uniformly from what production had seen by then."""
        order = np.random.default_rng([self.seed, 2, draw]).permutation(len(self.stream))
        return [
            self._accuracy(
                [*self.first, *self.stream[order[order < self.cuts[n + 1]][: BUDGET * (n + 1)]]], self.seed + draw
            )
            for n in range(ROUNDS)
        ]

    def _fit(self, rows: Sequence[int], seed: int, committee: bool) -> Model:
        chosen = np.array(sorted(rows, key=lambda row: self.names[row]))
        examples = Examples(
            self.images.inputs[chosen], self.answers_N[chosen], self.folds_N[chosen], self.images.n_classes
        )
        with own_stream():
            tuned = self.recipe.tune(examples, seed)
            members = [self.recipe.fit(examples, tuned, seed, k, Checkpoint(None, "")) for k in range(1 + committee)]
            if not committee:
                return Model(members, 1.0)
            left_NC = np.zeros((len(chosen), self.images.n_classes))
            for fold in np.unique(examples.folds_N):
                out_N = examples.folds_N == fold
                weights = self.recipe.fit(examples.where(~out_N), tuned, seed, 0, Checkpoint(None, ""))
                left_NC[out_N] = self._logits(weights, chosen[out_N])
        return Model(members, fit_temperature(left_NC, examples.labels_N))

    def _logits(self, weights: Weights, rows: NDArray[np.int64]) -> Floats:
        body = self.recipe.body(self.images.n_classes, self.images.size)
        return logits(body, weights, self.images.inputs[rows], self.images.n_classes)

    def _said(self, model: Model, rows: NDArray[np.int64]) -> list[Floats]:
        return [softmax(self._logits(weights, rows), model.temperature) for weights in model.members]

    def _accuracy(self, rows: Sequence[int], seed: int) -> list[float]:
        model = self._fit(rows, seed, committee=False)
        return [
            float((self._said(model, held)[0].argmax(axis=1) == self.truth_N[held]).mean()) for held in self.measured
        ]

    def _captured(self, policy: CapturePolicy, model: Model, rows: NDArray[np.int64]) -> list[int]:
        serving_NC, member_NC = self._said(model, rows)
        return [
            int(row)
            for row, probs_C, member_C in zip(rows, serving_NC, member_NC, strict=True)
            if decide(policy, LOOP, self.names[row], self.names[row], probs_C, member_C[None]).policies
        ]

    def _pool(
        self,
        capture: CapturePolicy,
        model: Model,
        pool: list[int],
        trained_on: list[int],
        audited: set[int],
        asked: int,
    ) -> Pool:
        rows = np.array(sorted({*pool, *trained_on}))
        serving_NC, member_NC = self._said(model, rows)
        labelled, given = set(trained_on), set(self.first.tolist())
        state_N = np.zeros(len(rows), dtype=np.int8)
        labels_N = np.full(len(rows), -1, dtype=np.int64)
        for i, row in enumerate(rows.tolist()):
            if row in given:
                serving_NC[i] = member_NC[i] = np.nan  # nobody asks a model about its own first labels
            if row not in given and ids.reserved(self.names[row], LOOP, capture.audit_share):
                state_N[i] = PoolState.AUDIT
            elif row in labelled:
                state_N[i] = PoolState.LABELLED
            if row in labelled or row in audited:
                labels_N[i] = self.answers_N[row]
        names = tuple(self.names[row] for row in rows)
        return Pool(
            names, self.images.inputs[rows], state_N, labels_N, self.images.n_classes, serving_NC, member_NC[None],
            audit_asked_N=np.array([row in audited for row in rows.tolist()]), asked_before=asked,
        )  # fmt: skip


_images: dict[str, Images] = {}


def prepare(name: str, folder: Path) -> None:
    """Read a data set and describe its images, once in each process. Raises BadData where it cannot be read."""
    place = SETS[name]
    data = load(None if place is None else folder / place, lambda *_: None, LIMIT, 0)
    recipe = recipes.named("linear-probe")
    size = recipes.choose_size([32 if name != "clothing10" else 128])
    inputs = recipes.prepare(recipe, [item.image for item in data.items], size)
    _images[name] = Images(data, inputs.astype(np.float32), size)


def work(job: tuple[str, int]) -> dict[str, Any]:
    """One seed: accuracy by round and set (in [0, 1]) of every strategy, and of each random draw."""
    name, seed = job
    run = Run(_images[name], seed)
    return {
        "seed": seed,
        "mined": {strategy: run.mined(policy) for strategy, policy in STRATEGIES.items()},
        "random": [run.random(draw) for draw in range(RANDOM_DRAWS)],
    }


def summarise(runs: Sequence[Mapping[str, Any]], strategy: str, held: int) -> dict[str, Any]:
    """Gain over random in points on one set: by round, and its mean over rounds with a 95 % interval over seeds."""
    mined_SR = np.array([r["mined"][strategy] for r in runs])[:, :, held]
    gains_SR = 100 * (mined_SR - np.array([r["random"] for r in runs])[..., held].mean(axis=1))
    mean_S = gains_SR.mean(axis=1)
    half = 1.96 * mean_S.std(ddof=1) / len(mean_S) ** 0.5 if len(mean_S) > 1 else float("nan")
    return {
        "accuracy_percent": (100 * mined_SR.mean(axis=0)).round(2).tolist(),
        "gain_points_by_round": gains_SR.mean(axis=0).round(2).tolist(),
        "gain_points": round(float(mean_S.mean()), 2),
        "gain_interval": [round(float(mean_S.mean() - half), 2), round(float(mean_S.mean() + half), 2)],
        "gain_points_by_seed": mean_S.round(2).tolist(),
        "seeds_behind_random": int((mean_S < 0).sum()),
    }


def table(name: str, found: Mapping[str, Any], seeds: int) -> str:
    """A Markdown table of one data set."""
    lines = [
        f"\n| {name}, {seeds} seeds | {' | '.join(str(20 + BUDGET * n) for n in range(1, ROUNDS + 1))} "
        "| gain in points (95 %) | behind random |",
        "| --- " * (ROUNDS + 3) + "|",
        f"| random | {' | '.join(f'{a:.1f}' for a in found['random']['accuracy_percent'])} | | |",
    ]
    for strategy in STRATEGIES:
        one = found[strategy]
        low, high = one["gain_interval"]
        cells = " | ".join(f"{a:.1f}" for a in one["accuracy_percent"])
        lines.append(
            f"| {strategy} | {cells} | {one['gain_points']:+.1f} ({low:+.1f} to {high:+.1f}) "
            f"| {one['seeds_behind_random']} of {seeds} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all, show progress on stderr, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loop_gain.json"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, one process each")
    chosen = parser.parse_args()
    started, results = time.perf_counter(), dict[str, Any]()
    for name in chosen.sets:
        place = SETS[name]
        if place is not None and not (chosen.data / place).exists():
            print(f"skipped {name}: {chosen.data / place} is not there", file=sys.stderr)
            continue
        spawn = multiprocessing.get_context("spawn")
        runs = []
        with ProcessPoolExecutor(chosen.jobs, spawn, initializer=prepare, initargs=(name, chosen.data)) as pool:
            for done, run in enumerate(pool.map(work, [(name, seed) for seed in range(chosen.seeds)]), 1):
                runs.append(run)
                print(f"\r{name}: {done}/{chosen.seeds} seeds", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        results[name] = {}
        for held, on in enumerate(MEASURED):
            accuracy = 100 * np.array([r["random"] for r in runs])[..., held].mean(axis=(0, 1))
            results[name][on] = {"random": {"accuracy_percent": accuracy.round(2).tolist()}}
            results[name][on].update({strategy: summarise(runs, strategy, held) for strategy in STRATEGIES})
            print(table(f"{name}, {on}", results[name][on], chosen.seeds), flush=True)
    report = {
        "protocol": (__doc__ or "").split("\n\n")[2].strip().replace("\n", " "),
        "seeds": chosen.seeds,
        "policies": {strategy: policy.model_dump(mode="json") for strategy, policy in STRATEGIES.items()},
        "machine": machine(),
        "total_seconds": round(time.perf_counter() - started),
        "results": results,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
