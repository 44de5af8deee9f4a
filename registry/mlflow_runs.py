"""One training, one finished run in MLflow, however often the attempt to write it was interrupted."""

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hardloop.core.errors import Conflict
from registry import run_contents as contents
from registry.mlflow_client import Calls, Exists, MlflowSettings, dataset_input, log_numbers


def finished_run(calls: Calls, settings: MlflowSettings, trained: contents.Trained, tags: Mapping[str, str]) -> str:
    """The id of this training's finished run: one that is there already, or a new one.

    Half-written runs of interrupted attempts, and runs of other files under this key, are moved to MLflow's trash.
    """
    experiment = experiment_id(calls, settings)
    runs = calls.search_runs(
        [experiment], f"tags.`{contents.TRAINING_KEY}` = '{tags[contents.TRAINING_KEY]}'", max_results=100
    )
    whole = [
        run
        for run in runs
        if run.info.status == "FINISHED" and run.data.tags.get(contents.CARD_DIGEST) == trained.card_digest
    ]
    for run in runs:
        if run not in whole[:1]:
            calls.delete_run(run.info.run_id)
    return whole[0].info.run_id if whole else _new_run(calls, settings, experiment, trained, tags)


def experiment_id(calls: Calls, settings: MlflowSettings) -> str:
    """The loop's experiment, made where it is missing. Raises Conflict where somebody deleted it."""
    name = settings.model_name
    experiment = calls.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(calls.create_experiment(name, tags={contents.LOOP: settings.loop}))
        except Exists:
            experiment = calls.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        raise Conflict(
            f"the MLflow experiment {name!r} was deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return str(experiment.experiment_id)


def _new_run(
    calls: Calls, settings: MlflowSettings, experiment: str, trained: contents.Trained, tags: Mapping[str, str]
) -> str:
    found = contents.environment()
    key, digest, commit = tags[contents.DATASET_KEY], tags[contents.DATASET_DIGEST], tags[contents.CODE_COMMIT]
    more = {"mlflow.source.git.commit": commit, "mlflow.source.name": "hardloop", "mlflow.user": "hardloop"}
    run = calls.create_run(
        experiment,
        tags=dict(tags) | more | contents.environment_tags(found),
        run_name=f"{trained.card.recipe}-{digest[:8]}-{secrets.token_hex(2)}",
    )
    run_id = str(run.info.run_id)
    calls.log_inputs(run_id, datasets=[dataset_input(key, digest, settings)])
    log_numbers(calls, run_id, run.info.start_time, trained.model.params, trained.metrics)
    with tempfile.TemporaryDirectory(prefix="hardloop-run-") as folder:
        contents.stage(trained, found, Path(folder))
        calls.log_artifacts(run_id, folder)
    calls.set_terminated(run_id, "FINISHED")
    return run_id
