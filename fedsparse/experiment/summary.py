"""One run in a handful of numbers: totals, peaks and last values of its rounds."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

__all__ = ["summarise"]

MODELLED = "_modelled"
TOTALS = (
    "bytes_down",
    "bytes_up",
    "bytes_down_dense",
    "bytes_up_dense",
    "client_seconds",
    "server_seconds",
    "flops",
    "flops_exact",
    "flops_paper",
    "bytes_down_paper",
    "bytes_up_paper",
    "joules",
)
PEAKS = ("peak_bytes", "memory_total", "memory_paper")
LAST = ("density", "nnz")
EVALUATED = ("accuracy", "loss")
EVALUATED_OF_TEXT = ("perplexity_token", "perplexity_story")
Record = Mapping[str, object]


def summarise(records: Sequence[Record], *, evaluations: int = 1) -> dict[str, object]:
    """Numbers of a run from the lines of its `metrics.jsonl`.

    Accuracy, loss and perplexities are means over the last `evaluations` rounds that have them, over all if those are
    fewer: where cohorts differ, so do neighbouring evaluations.

    Totals (bytes, seconds, joules) and the largest peaks (bytes of memory) are over all rounds.
    A quantity that was unavailable in any round has no total: it is None, never a partial sum. The suffix
    `_modelled` is kept.
    """
    evaluated = (*EVALUATED, *_present(records, EVALUATED_OF_TEXT))
    summary: dict[str, object] = {name: _mean_of_last(records, name, evaluations) for name in evaluated}
    summary |= {name: _last(records, name) for name in LAST}
    summary |= _best(records)
    for name in _present(records, TOTALS):
        values = _available(records, name)
        summary[name] = None if values is None else sum(values)
    for name in _present(records, PEAKS):
        values = _available(records, name)
        summary[name] = None if values is None else max(values)
    return summary


def _last(records: Sequence[Record], name: str) -> object:
    """The newest value."""
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def _mean_of_last(records: Sequence[Record], name: str, count: int) -> float | None:
    """Mean over the newest `count` values, or as many as there are."""
    newest = [value for record in records if isinstance(value := record.get(name), int | float)][-count:]
    return newest[0] if len(newest) == 1 else fmean(newest) if newest else None


def _best(records: Sequence[Record]) -> dict[str, object]:
    """The highest accuracy and the first round that reached it."""
    scored = [(record["accuracy"], record["round"]) for record in records if record.get("accuracy") is not None]
    best = max((accuracy for accuracy, _ in scored if isinstance(accuracy, float | int)), default=None)
    return {"best_accuracy": best, "best_round": next((r for a, r in scored if a == best), None)}


def _present(records: Iterable[Record], names: Sequence[str]) -> list[str]:
    keys = {key: None for record in records for key in record}
    return [key for key in keys if key.removesuffix(MODELLED) in names]


def _available(records: Sequence[Record], name: str) -> list[int | float] | None:
    """All values of a quantity, or None when it was unavailable in a line that has it."""
    values = [record[name] for record in records if name in record]
    numbers = [value for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(values) else None
