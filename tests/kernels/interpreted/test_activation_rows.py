"""Pruned activations by rows against a stable sort of each row."""

import pytest
import torch

from fedsparse.kernels import activation_rows
from fedsparse.kernels.activation_rows import mark, pack, unpack
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture(autouse=True, params=["short", "long"])
def _rows(request, monkeypatch):
    """Whether rows are taken for ones that registers hold."""
    if request.param == "long":
        monkeypatch.setattr(activation_rows, "SHORT", 0)


def kept_elements(x, rows, k):
    """By definition: NaN first, then falling magnitude, ties by index; zeros never."""
    number = x.view(rows, -1).float().abs().nan_to_num(nan=torch.inf, posinf=3e38)
    order = torch.sort(number, dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(number, dtype=torch.bool).scatter_(1, order, True)
    return kept.view(-1) & (x != 0)


def check(x, rows, k, dtype=torch.float32):
    groups = -(-x.numel() // 512)
    bits = torch.empty(16 * groups, dtype=torch.int32, device=x.device)
    starts = torch.empty(groups + 1, dtype=torch.int32, device=x.device)
    mark(x, rows, k, bits, starts)
    kept = kept_elements(x, rows, k)
    marked = ((bits[:, None] >> torch.arange(32, device=x.device)) & 1).bool().view(-1)
    assert torch.equal(marked[: x.numel()], kept), f"{k} of each of {rows} rows of {x.numel() // rows}"
    assert not marked[x.numel() :].any()
    counts = torch.nn.functional.pad(kept, (0, 512 * groups - len(kept))).view(groups, 512).sum(1)
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]
    values = torch.empty(int(starts[-1]), dtype=dtype, device=x.device)
    pack(x, bits, starts, values)
    torch.testing.assert_close(values, x[kept].to(dtype), rtol=0, atol=0, equal_nan=True)
    back, wanted = torch.empty_like(x), torch.zeros_like(x)
    wanted[kept] = x[kept].to(dtype).to(x.dtype)
    unpack(bits, starts, values, back)
    torch.testing.assert_close(back, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rows", "size"), [(9, 1), (5, 33), (3, 512), (4, 1025), (1, 700), (1, 2100)])
def test_keeps_the_largest_of_each_row(rows, size, generator):
    x = torch.randn(rows * size, generator=generator).to(DEVICE)
    for k in {0, 1, size // 3, size}:
        check(x, rows, k)


def test_ties_go_to_the_lowest_index_of_each_row(generator):
    x = torch.randint(-2, 3, (4, 1500), generator=generator).float().to(DEVICE)
    x[1] = 1.0
    for rows in (1, 4):
        for k in (1500 // 4, 900, 1499):
            check(x.view(-1), rows, k * 4 // rows)


def test_nan_and_infinity_are_largest():
    x = torch.full((2048,), 1e30, device=DEVICE)
    x[5], x[9], x[1700], x[1800] = torch.nan, -torch.inf, torch.inf, -torch.nan
    for rows in (1, 2):
        for k in (1, 2, 3):
            check(x, rows, k)


def test_sixteen_bits(generator):
    x = torch.randn(1300, generator=generator).to(DEVICE)
    for rows in (1, 2):
        check(x.half(), rows, 200, torch.float16)
        check(x, rows, 200, torch.float16)
        check(x, rows, 1300 // rows, torch.float16)
