"""Which backend computes a case, and in which words the others refuse it."""

import re
from dataclasses import replace

import pytest
import torch

from fedsparse.backends import Case, Geometry, backend, choose, explain, names
from fedsparse.backends.choose import break_even
from fedsparse.backends.cpu import CpuBackend
from fedsparse.errors import BackendError
from fedsparse.pattern import Pattern
from fedsparse.pattern.granularity import parse

LINEAR = Case((10, 20), (16, 20), 20)
CONV = Case((8, 4, 3, 3), (32, 4, 9, 9), 30, Geometry(padding=(1, 1)))

REFUSALS = [
    (replace(LINEAR, dtype=torch.float64), "cpu kernels compute float32 and bfloat16, the tensors are float64"),
    (replace(CONV, dtype=torch.float16), "cpu kernels compute float32 and bfloat16, the tensors are float16"),
    (replace(LINEAR, device="cuda"), "cpu kernels read main memory, the tensors are on cuda"),
    (replace(LINEAR, input=(0, 20)), "the batch is empty"),
    (
        replace(CONV, shape=(8, 4096, 191, 191), input=(2, 4096, 300, 300)),
        "offsets inside a tile of 16 images of shape (4096, 300, 300) exceed 32 bits",
    ),
]


def test_names():
    assert names()[0] == "auto"
    assert {"cpu", "masked", "reference"} <= set(names())


@pytest.mark.parametrize("case", [LINEAR, CONV])
def test_low_density_is_computed_by_cpu(case):
    assert choose(case).name == "cpu"
    assert backend("auto", case).name == "cpu"
    assert explain(case) == {"cpu": "chosen", "masked": "not needed"}


def test_high_density_is_computed_masked():
    case = replace(LINEAR, nnz=200)
    assert choose(case).name == "masked"
    words = "density 1.00 is above break-even, 0.10 for a batch of 16"
    assert explain(case) == {"cpu": words, "masked": "chosen"}


def test_empty_lanes_lower_the_break_even():
    case = replace(CONV, nnz=86)
    assert choose(case).name == "cpu"
    assert choose(replace(case, input=(8, *case.input[1:]))).name == "masked"
    assert break_even(replace(case, input=(17, *case.input[1:]))) == pytest.approx(0.3 * 17 / 32)


def structured(granularity: str, density: float) -> tuple[Case, Pattern]:
    """A product with a random mask of whole units."""
    shape = (64, 64, 3, 3)
    tiling = parse(granularity).tiling(shape)
    order = torch.randperm(tiling.count, generator=torch.Generator().manual_seed(3))
    pattern = Pattern.from_mask(tiling.spread(order < round(density * tiling.count)).view(shape))
    return Case(shape, (32, 64, 9, 9), pattern.nnz, Geometry(padding=(1, 1))), pattern


@pytest.mark.parametrize(
    ("granularity", "blocked", "bound"),
    [
        ("vector:16", False, 0.4),
        ("vector:16", True, 0.75),
        ("block:16", False, 0.45),
        ("block:16", True, 0.8),
    ],
)
def test_strips_raise_the_break_even(granularity, blocked, bound):
    for density, name in ((bound - 0.04, "cpu"), (bound + 0.04, "masked")):
        case, pattern = structured(granularity, density)
        assert choose(case, pattern, blocked=blocked).name == name
        assert backend("auto", case, pattern, blocked=blocked).name == name
        assert choose(case, blocked=blocked).name == ("cpu" if case.density < (0.7 if blocked else 0.3) else "masked")
    words = f"density {case.density:.2f} is above break-even, {bound:.2f} for a batch of 32"
    assert explain(case, pattern, blocked=blocked) == {"cpu": words, "masked": "chosen"}


def test_single_weights_have_no_strips_to_raise_it():
    for density, name in ((0.29, "cpu"), (0.31, "masked"), (0.42, "masked")):
        assert choose(*structured("element", density)).name == name


def test_strips_are_looked_for_where_they_may_decide_only(monkeypatch):
    searched = []
    monkeypatch.setattr(CpuBackend, "strip_widths", lambda *arguments: searched.append(arguments) or (8, 8))
    for density in (0.05, 0.29, 0.31, 0.44, 0.46, 1.0):
        case, pattern = structured("element", density)
        choose(case, pattern)
        choose(replace(case, dtype=torch.float64), pattern)
        choose(case)
    assert [pattern.density for _, pattern, _ in searched] == pytest.approx([0.31, 0.44], abs=1e-4)
    square = Pattern.from_mask(torch.arange(200).view(10, 20) < 24)
    assert choose(replace(LINEAR, nnz=24), square).name == "masked"
    assert len(searched) == 2


@pytest.mark.parametrize(("case", "words"), REFUSALS)
def test_refusals_word_for_word(case, words):
    assert CpuBackend().refuse(case) == words
    assert explain(case) == {"cpu": words, "masked": "chosen"}
    assert choose(case).name == "masked"
    message = f"backend 'cpu' cannot compute this {case.op}: {words}; use set_backend(model, 'auto')"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        backend("cpu", case)


@pytest.mark.parametrize("name", ["reference", "masked"])
@pytest.mark.parametrize("case", [case for case, _ in REFUSALS])
def test_torch_backends_refuse_nothing(name, case):
    assert backend(name, case).name == name


def test_unknown_name():
    with pytest.raises(BackendError, match="unknown backend 'tpu'; expected one of auto, cpu"):
        backend("tpu", LINEAR)


def test_unknown_instruction_set():
    pattern = Pattern.from_flat((10, 20), torch.arange(20) * 10)
    with pytest.raises(BackendError, match=r"'sse9' does not run here; this processor has: .*baseline"):
        CpuBackend("sse9").forward(torch.zeros(4, 20), torch.zeros(20), pattern, None, LINEAR)


def test_case_knows_its_output():
    assert LINEAR.output == (16, 10)
    assert CONV.output == (32, 8, 9, 9)
    assert LINEAR.density == 0.1
    assert (LINEAR.op, CONV.op) == ("linear", "conv2d")
    moved = replace(CONV, geometry=Geometry((2, 3), (0, 2), (2, 1)))
    assert moved.output == (32, 8, (9 - 5) // 2 + 1, (9 + 4 - 3) // 3 + 1)


def test_pointwise_convolutions_with_little_to_do_stay_dense_by_themselves():
    def shortcut(inputs, side):
        nnz = inputs * 2 * inputs // 100
        return Case((2 * inputs, inputs, 1, 1), (64, inputs, side, side), nnz, Geometry(stride=(2, 2)))

    # 64 * 128 * 256 products for 64 * 1024 + 128 * 256 numbers are 21 each; 256 * 512 * 16 for 256 * 64 + 512 * 16, 85
    assert choose(shortcut(64, 32)).name == "masked"
    assert choose(shortcut(256, 8)).name == "cpu"
    assert choose(shortcut(64, 32), blocked=True).name == "cpu"
