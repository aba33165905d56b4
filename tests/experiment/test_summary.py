"""Totals, peaks and last values of a run."""

from fedsparse.experiment.summary import summarise

ROUNDS = [
    {"round": 0, "accuracy": 0.5, "loss": 2.0, "density": 1.0, "nnz": 40, "bytes_down": 7, "bytes_up": 5,
     "client_seconds": 1.0, "peak_bytes": 300, "flops_modelled": 8, "joules": None},
    {"round": 1, "accuracy": None, "loss": None, "density": 0.1, "nnz": 4, "bytes_down": 3, "bytes_up": 2,
     "client_seconds": 0.25, "peak_bytes": 200, "flops_modelled": 9, "joules": 1.0},
]  # fmt: skip


def test_totals_are_sums_and_peaks_the_largest():
    summary = summarise(ROUNDS)
    assert summary["bytes_down"] == 10
    assert summary["bytes_up"] == 7
    assert summary["client_seconds"] == 1.25
    assert summary["peak_bytes"] == 300
    assert summary["density"] == 0.1
    assert summary["nnz"] == 4


def test_the_last_evaluated_round_gives_the_accuracy():
    summary = summarise(ROUNDS)
    assert (summary["accuracy"], summary["loss"]) == (0.5, 2.0)
    assert (summary["best_accuracy"], summary["best_round"]) == (0.5, 0)


def test_accuracy_loss_and_perplexity_can_be_means_over_the_last_evaluations():
    scores = [0.25, None, 0.5, 1.0, None]
    rounds = [{"round": n, "accuracy": a, "loss": a, "perplexity_token": a, "nnz": n} for n, a in enumerate(scores)]
    found = {count: summarise(rounds, evaluations=count) for count in (1, 2, 3, 9)}
    for name in ("accuracy", "loss", "perplexity_token"):
        assert [found[count][name] for count in found] == [1.0, 0.75, 1.75 / 3, 1.75 / 3]
    assert {(summary["nnz"], summary["best_accuracy"]) for summary in found.values()} == {(4, 1.0)}


def test_the_best_round_is_the_first_that_reached_the_best_accuracy():
    scores = [{"round": n, "accuracy": a} for n, a in enumerate([0.2, 0.9, 0.9, 0.4])]
    summary = summarise(scores)
    assert (summary["accuracy"], summary["best_accuracy"], summary["best_round"]) == (0.4, 0.9, 1)


def test_a_quantity_that_was_missing_once_has_no_total():
    assert summarise(ROUNDS)["joules"] is None


def test_modelled_quantities_keep_their_suffix():
    summary = summarise(ROUNDS)
    assert summary["flops_modelled"] == 17
    assert "flops" not in summary
    costs = [{"flops_paper_modelled": 3 + n, "bytes_up_paper_modelled": n, "memory_total_modelled": -n} for n in (1, 2)]
    summary = summarise(costs)
    assert (summary["flops_paper_modelled"], summary["bytes_up_paper_modelled"]) == (9, 3)
    assert summary["memory_total_modelled"] == -1


def test_a_run_without_rounds_has_no_numbers():
    assert summarise([]) == dict.fromkeys(["accuracy", "loss", "density", "nnz", "best_accuracy", "best_round"])
