"""How much accuracy a label buys: our strategies and their special cases on three image sets, from no label at all.

    python -m benchmarks.label_efficiency --data ../shared/data --out benchmarks/results/label_efficiency.json

Two protocols. Both: pixels, 64 principal components fitted on the unlabelled pool, multinomial logistic regression
retrained at each budget, accuracy on images that are never in the pool, means over seeds.
"cold": from no label at all, 20 to 400; margin has no model at first and draws its first round at random.
"loop": as a running loop works, 20 labels at random that all strategies share, then small rounds up to 180.
Data sets whose files are absent are skipped by name; digits comes with scikit-learn.
"""

import argparse
import csv
import gzip
import io
import json
import multiprocessing
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from hardloop.core.images import decode, to_array
from hardloop.core.records import Pool, PoolState
from miner.policy import MiningPolicy
from miner.select import mine

PROTOCOLS: dict[str, tuple[int, ...]] = {"cold": (20, 40, 60, 100, 200, 400), "loop": (20, 40, 60, 80, 100, 140, 180)}
COMPONENTS = 64
BARE: dict[str, Any] = {"audit_share": 0.0, "exploration_share": 0.0}
STRATEGIES: dict[str, MiningPolicy] = {
    # Baselines as their papers have them: no near-duplicate rule.
    "random": MiningPolicy(method="random", near_duplicate_similarity=None, **BARE),
    "margin": MiningPolicy(method="margin", near_duplicate_similarity=None, **BARE),
    "coverage": MiningPolicy(method="coverage", **BARE),
    "uncertainty-coverage": MiningPolicy(**BARE),
    "uncertainty-coverage, 5 % exploration": MiningPolicy(audit_share=0.0),
}


@dataclass(frozen=True)
class Images:
    """One data set: flattened pixels in [0, 1] and class indices. test rows None: drawn from all, afresh per seed."""

    pixels_ND: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    pool_size: int
    test_pixels: NDArray[np.float32] | None = None
    test_labels: NDArray[np.int64] | None = None

    def deal(self, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Pool and test of a seed."""
        order = np.random.default_rng(seed).permutation(len(self.labels_N))
        pool, rest = order[: self.pool_size], order[self.pool_size :]
        if self.test_pixels is not None and self.test_labels is not None:
            return self.pixels_ND[pool], self.labels_N[pool], self.test_pixels, self.test_labels
        return self.pixels_ND[pool], self.labels_N[pool], self.pixels_ND[rest], self.labels_N[rest]


def read_digits(_: Path) -> Images:
    """scikit-learn's digits, 8 x 8: 1,297 for the pool, 500 to test."""
    pixels, labels = load_digits(return_X_y=True)
    return Images((pixels / 16.0).astype(np.float32), labels.astype(np.int64), 1297)


def read_fashion(data: Path) -> Images:
    """Fashion-MNIST: 8,000 of the training images for the pool, the 10,000 test images to test."""

    def idx(name: str, header: int) -> NDArray[np.uint8]:
        return np.frombuffer(
            gzip.decompress((data / "fashion-mnist" / name).read_bytes()), dtype=np.uint8, offset=header
        )

    train, test = idx("train-images-idx3-ubyte.gz", 16), idx("t10k-images-idx3-ubyte.gz", 16)
    return Images(
        train.reshape(-1, 784).astype(np.float32) / 255.0,
        idx("train-labels-idx1-ubyte.gz", 8).astype(np.int64),
        8000,
        test.reshape(-1, 784).astype(np.float32) / 255.0,
        idx("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64),
    )


def read_clothing(data: Path) -> Images:
    """clothing10 at 32 x 32 RGB: 90 % of its training split for the pool, validation and test to test."""
    parts: dict[bool, list[tuple[NDArray[np.float32], int]]] = {True: [], False: []}
    with zipfile.ZipFile(data / "clothing10" / "clothing10.zip") as archive:
        for row in csv.DictReader(io.StringIO(archive.read("labels.csv").decode())):
            pixels = to_array(decode(archive.read(row["file"]), row["file"]), 32, 32)
            parts[row["split"] == "train"].append((pixels.ravel().astype(np.float32) / 255.0, int(row["label_id"])))
    (train, train_labels), (test, test_labels) = (
        (np.stack([p for p, _ in parts[k]]), np.array([c for _, c in parts[k]], dtype=np.int64)) for k in (True, False)
    )
    return Images(train, train_labels, int(0.9 * len(train)), test, test_labels)


READERS: dict[str, Callable[[Path], Images]] = {
    "fashion-mnist": read_fashion,
    "clothing10": read_clothing,
    "digits": read_digits,
}


def run_once(
    policy: MiningPolicy, images: Images, seed: int, budgets: Sequence[int], random_start: bool
) -> list[dict[str, float]]:
    """One strategy from no label to the last budget on one deal; per budget the accuracy and the seconds of mining."""
    pool_pixels, truth_N, test_pixels, test_truth = images.deal(seed)
    pca = PCA(min(COMPONENTS, pool_pixels.shape[1]), random_state=seed, svd_solver="randomized").fit(pool_pixels)
    features_ND = pca.transform(pool_pixels).astype(np.float32)
    test_features = pca.transform(test_pixels).astype(np.float32)
    n, classes = len(truth_N), int(images.labels_N.max()) + 1
    ids = tuple(f"{row:05d}" for row in range(n))
    state_N = np.zeros(n, dtype=np.int8)
    probs_NC = None
    rounds = []
    for budget in budgets:
        pool = Pool(
            ids, features_ND, state_N.copy(), np.where(state_N == PoolState.LABELLED, truth_N, -1), classes, probs_NC
        )
        started = time.perf_counter()
        cold = probs_NC is None and (random_start or policy.method == "margin")
        selection = mine(pool, budget - int(state_N.sum()), STRATEGIES["random"] if cold else policy, seed)
        seconds = time.perf_counter() - started
        state_N[[int(pick.sample_id) for pick in selection.picks]] = PoolState.LABELLED
        known = state_N == PoolState.LABELLED
        model = LogisticRegression(max_iter=2000).fit(features_ND[known], truth_N[known])
        probs_NC = np.zeros((n, classes))
        probs_NC[:, model.classes_] = model.predict_proba(features_ND)
        accuracy = float(model.score(test_features, test_truth))
        terms = selection.terms
        rounds.append(
            {
                "labels": int(known.sum()),
                "accuracy": accuracy,
                "seconds": seconds,
                "lam": terms["lam"],
                "sigma": terms["sigma"],
            }
        )
    return rounds


def main() -> None:
    """Run all, show progress on stderr, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/label_efficiency.json"))
    parser.add_argument("--sets", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one process each")
    chosen = parser.parse_args()
    started = time.perf_counter()
    results: dict[str, Any] = {}
    for name in chosen.sets:
        try:
            found = compare(name, chosen.data, chosen.seeds, chosen.jobs)
        except FileNotFoundError as error:
            print(f"skipped {name}: {error.filename} is not there", file=sys.stderr)
            continue
        results[name] = found
        for protocol, budgets in PROTOCOLS.items():
            print(table(f"{name}, {protocol}", budgets, found[protocol]), flush=True)
    report = {
        "protocols": (__doc__ or "").split("\n\n")[2].strip().replace("\n", " "),
        "budgets": PROTOCOLS,
        "seeds": list(range(chosen.seeds)),
        "policies": {strategy: policy.model_dump(mode="json") for strategy, policy in STRATEGIES.items()},
        "machine": machine(),
        "total_seconds": round(time.perf_counter() - started),
        "results": results,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def compare(name: str, data: Path, seeds: int, jobs: int) -> dict[str, Any]:
    """Every strategy in both protocols on the same deals, summarised; FileNotFoundError where the set is absent."""
    _open(name, data)  # here first: a missing file is then an exception, not a broken pool of workers
    work = [(protocol, strategy, seed) for protocol in PROTOCOLS for strategy in STRATEGIES for seed in range(seeds)]
    runs: dict[str, dict[str, list[list[dict[str, float]]]]] = {p: {s: [] for s in STRATEGIES} for p in PROTOCOLS}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_open, initargs=(name, data)) as pool:
        for done, (job, rounds) in enumerate(zip(work, pool.map(_work, work), strict=True), 1):
            runs[job[0]][job[1]].append(rounds)
            print(f"\r{name}: {done}/{len(work)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {p: {s: summarise(found) for s, found in of.items()} for p, of in runs.items()}


_open_set: dict[str, Images] = {}


def _open(name: str, data: Path) -> None:
    _open_set["images"] = READERS[name](data)


def _work(job: tuple[str, str, int]) -> list[dict[str, float]]:
    protocol, strategy, seed = job
    return run_once(STRATEGIES[strategy], _open_set["images"], seed, PROTOCOLS[protocol], protocol == "loop")


def summarise(runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Means over seeds, and every seed's own mean over budgets for paired comparison."""
    accuracy_SB = np.array([[r["accuracy"] for r in run] for run in runs]) * 100.0
    return {
        "accuracy_percent": accuracy_SB.mean(axis=0).round(2).tolist(),
        "mean_percent": round(float(accuracy_SB.mean()), 2),
        "mean_percent_by_seed": accuracy_SB.mean(axis=1).round(2).tolist(),
        "mining_seconds": np.mean([[r["seconds"] for r in run] for run in runs], axis=0).round(2).tolist(),
    }


def table(title: str, budgets: Sequence[int], found: dict[str, Any]) -> str:
    """A Markdown table; the last column is the paired difference from random and its standard error."""
    lines = [f"\n| {title} | " + " | ".join(map(str, budgets)) + " | mean | over random |"]
    lines.append("| --- " * (len(budgets) + 3) + "|")
    for strategy, one in found.items():
        difference = np.subtract(one["mean_percent_by_seed"], found["random"]["mean_percent_by_seed"])
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
        cells = " | ".join(f"{a:.1f}" for a in [*one["accuracy_percent"], one["mean_percent"]])
        lines.append(f"| {strategy} | {cells} | {difference.mean():+.1f} ± {error:.1f} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it ran."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    names = ("hardloop", "numpy", "scikit-learn", "numba")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
