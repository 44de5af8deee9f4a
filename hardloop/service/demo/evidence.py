"""What the servers' own answers show of one round: Label Studio's tasks, and the training that took its labels.

Plain functions of what was fetched, so that each can be checked without a server.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from hardloop.core.errors import Unavailable
from hardloop.service.connections import Connections

Row = Mapping[str, Any]

_UNSURE = ("low_confidence", "small_margin")  # the policies that look at the champion alone


@dataclass(frozen=True, slots=True)
class Audit:
    """One round in Label Studio: how many tasks it holds of the picked samples, how many of them with a pre-annotation.

    duplicates: tasks and collected answers beyond one per sample. lost: answers given there that were never collected.
    """

    tasks: int
    pre_annotated: int
    duplicates: int
    lost: int


def tasks_of(connections: Connections, project: int) -> list[dict[str, Any]]:
    """All tasks of a project with their annotations and pre-annotations, by Label Studio's own API.

    Raises Unavailable where it does not give them.
    """
    url = connections.label_studio_url
    token = connections.label_studio_key.get_secret_value()
    with httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=60.0, trust_env=False) as http:
        try:
            return list(_tasks(http, project))
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unavailable(
                f"Label Studio at {url} did not list the tasks of project {project} ({error}): see its log"
            ) from None


def _tasks(http: httpx.Client, project: int) -> Iterator[dict[str, Any]]:
    page, seen = 1, 0
    while True:
        include = "id,data,annotations,predictions"
        query = f"project={project}&page={page}&page_size=100&fields=all&include={include}"
        found = http.get(f"/api/tasks?{query}").raise_for_status().json()
        yield from found["tasks"]
        seen += len(found["tasks"])
        if seen >= found["total"] or not found["tasks"]:
            return
        page += 1


def captured(stats: Row) -> tuple[bool, str]:
    """Whether Capture kept what the loop is for, by its counters: unsure answers and disputed ones, not draws alone."""
    taken = dict.fromkeys((*_UNSURE, "disagreement"), 0) | stats["taken"]
    happened = stats["written"] > 0 and any(taken[name] for name in _UNSURE) and taken["disagreement"] > 0
    by_policy = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in taken.items())
    return happened, f"{stats['written']} samples in the store, taken for {by_policy}"


def same_process(stats: Row, answered: int) -> tuple[bool, str]:
    """Whether a predictor still counts all images it answered: a process that was started again begins at nothing."""
    counted = sum(stats["images"].values())
    return counted >= answered, f"it counts {counted} of the {answered} images answered since the demo began"


def audit(tasks: Sequence[Row], samples: Collection[str], collected: Sequence[Row]) -> Audit:
    """Compare what Label Studio holds for some samples with the answers that the loop collected."""
    ours = [task for task in tasks if task["data"].get("sample_id") in samples]
    per_task = Counter(task["data"]["sample_id"] for task in ours)
    # One stand-in answers each task once: two standing answers to one sample are one answer stored twice.
    per_answer = Counter(row["sample_id"] for row in collected if row["deleted_at"] is None)
    given = {answer["id"] for task in ours for answer in task["annotations"]}
    return Audit(
        tasks=len(ours),
        pre_annotated=sum(bool(task["predictions"]) for task in ours),
        duplicates=sum(count - 1 for counts in (per_task, per_answer) for count in counts.values()),
        lost=len(given - {row["annotation_id"] for row in collected}),
    )


def training_of(samples: Collection[str], labels: Sequence[Row], trainings: Sequence[Row]) -> Row | None:
    """The finished training whose dataset version took account of every label of these samples; None before there is.

    A training that began on a part of them does not count: the one on the rest, which holds all of them, does.
    """
    used = [row["used_in"] for row in labels if row["sample_id"] in samples and row["label"] is not None]
    if not used or None in used:
        return None
    newest = max(used)
    trained = [t for t in trainings if t["dataset_number"] == newest and t["state"] == "trained"]
    return trained[-1] if trained else None


def labels_in(dataset: Row) -> int:
    """Labels bought that a dataset version took account of: trained on, held out for audit, or left out as too near.

    The gate's own (legacy) labels are none of them.
    """
    return int(sum(count for split, count in dataset["counts"].items() if split != "legacy") + len(dataset["excluded"]))
