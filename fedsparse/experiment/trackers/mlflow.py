"""MLflow: a run of the active experiment at the place that MLFLOW_TRACKING_URI names, by default `mlruns` here."""

from collections.abc import Mapping

import mlflow

from fedsparse.experiment.trackers.sink import TrackedRun, numbers, recall, remember

__all__ = ["Tracker"]


class Tracker:
    """Logs to MLflow; a round that comes again after a resume is a second value of the same step."""

    def __init__(self) -> None:
        self._id = ""

    def open(self, run: TrackedRun) -> None:
        known = recall(run, "mlflow")
        self._id = mlflow.start_run(run_id=known, run_name=None if known else run.name).info.run_id
        remember(run, "mlflow", self._id)
        if known is None:  # parameters cannot be logged twice
            mlflow.log_params(dict(run.settings))

    def record(self, metrics: Mapping[str, object]) -> None:
        mlflow.log_metrics(numbers(metrics), step=int(str(metrics["round"])), run_id=self._id)

    def close(self) -> None:
        mlflow.end_run()
