"""One run in a handful of numbers: totals, peaks and last values of its rounds."""

from collections.abc import Iterable, Mapping, Sequence

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
LAST = ("accuracy", "loss", "density", "nnz")
LAST_OF_TEXT = ("perplexity_token", "perplexity_story")
Record = Mapping[str, object]


def summarise(records: Sequence[Record]) -> dict[str, object]:
    """Numbers of a run from the lines of its `metrics.jsonl`.

    Totals (bytes, seconds, joules) and the largest peaks (bytes of memory) are over all rounds.
    A quantity that was unavailable in any round has no total: it is None, never a partial sum. The suffix
    `_modelled` is kept.
    """
    summary: dict[str, object] = {name: _last(records, name) for name in LAST}
    summary |= {name: _last(records, name) for name in _present(records, LAST_OF_TEXT)}
    summary |= _best(records)
    for name in _present(records, TOTALS):
        values = _available(records, name)
        summary[name] = None if values is None else sum(values)
    for name in _present(records, PEAKS):
        values = _available(records, name)
        summary[name] = None if values is None else max(values)
    return summary


def _last(records: Sequence[Record], name: str) -> object:
    """The newest value; rounds without evaluation have none."""
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


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
