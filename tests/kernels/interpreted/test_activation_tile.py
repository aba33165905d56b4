"""Pruned activations by tiles against a stable sort of each tile."""

import pytest
import torch

from fedsparse.kernels.activation_tile import TILES, compress, cost, expand
from tests.kernels.device import DEVICE

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def pruned(x, keep, tile):
    """x with all but the largest of each tile set to zero, and which were kept."""
    flat, kept = x.reshape(-1), torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
    for first in range(0, x.numel(), tile):
        part = flat[first : first + tile].float().abs()
        order = torch.sort(part, descending=True, stable=True).indices
        kept[first + order[: round(keep * len(part))]] = True
    return torch.where(kept, flat, torch.zeros_like(flat)).view(x.shape), kept


def marked(packed):
    """The bitmap, one bool an element."""
    return ((packed.bits[:, None] >> torch.arange(32, device=packed.bits.device)) & 1).bool().view(-1)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("n", "keep"), [(1, 0.6), (31, 0.5), (1024, 0.1), (2049, 0.3), (5000, 0.5), (2100, 1.0)])
def test_keeps_the_largest_of_each_tile(n, keep, tile, generator):
    x = torch.randn(n, generator=generator).to(DEVICE)
    packed = compress(x, keep, tile=tile)
    wanted, kept = pruned(x, keep, tile)
    assert torch.equal(marked(packed)[:n], kept)
    assert not marked(packed)[n:].any()
    assert torch.equal(packed.values, x[kept])
    assert torch.equal(expand(packed, x), wanted)


def test_ties_go_to_the_lowest_index(generator):
    x = torch.randint(-2, 3, (3, 7, 100), generator=generator).float().to(DEVICE)
    assert torch.equal(expand(compress(x, 0.4), x), pruned(x, 0.4, 1024)[0])
    zeros = torch.zeros(1500, device=DEVICE)
    kept = marked(compress(zeros, 0.25)).nonzero().squeeze(1).tolist()
    assert kept == [*range(256), *range(1024, 1024 + round(0.25 * 476))]


def test_nan_and_infinity_are_largest():
    x = torch.full((1024,), 1e30, device=DEVICE)
    x[5], x[9], x[700], x[800] = torch.nan, -torch.inf, torch.inf, -torch.nan
    # of equals the lowest index: both NaN, then one infinity
    kept = marked(compress(x, 3 / 1024)).nonzero().squeeze(1).tolist()
    assert kept == [5, 9, 800]


def test_half_precision_input(generator):
    x = torch.randn(1300, generator=generator).half().to(DEVICE)
    packed = compress(x, 0.5)
    assert packed.values.dtype == torch.float16
    assert torch.equal(expand(packed, x), pruned(x, 0.5, 1024)[0])


def test_sixteen_bits_are_kept_of_a_float32(generator):
    x = torch.randn(1024, generator=generator).to(DEVICE)
    packed = compress(x, 0.5, dtype=torch.float16)
    assert torch.equal(expand(packed, x), pruned(x, 0.5, 1024)[0].half().float())


def test_nothing_to_keep():
    packed = compress(torch.empty(0, 3), 0.5)
    assert packed.values.numel() == 0
    assert expand(packed, torch.empty(0, 3)).shape == (0, 3)


def test_bytes_are_what_cost_says():
    x = torch.zeros(8192, device=DEVICE)
    packed = compress(x, 0.25, dtype=torch.bfloat16)
    stored = sum(t.numel() * t.element_size() for t in (packed.bits, packed.values))
    assert stored == cost(8192, 0.25, 4, 2)[0] == 8192 / 8 + 2048 * 2


@pytest.mark.parametrize(
    ("x", "keep", "tile", "message"),
    [
        (torch.zeros(4), 0.5, 512, "1024 or 2048 elements and keep is in .* got 512 and 0.5"),
        (torch.zeros(4), 0.0, 1024, "got 1024 and 0.0"),
        (torch.zeros(4, 4).t(), 0.5, 1024, "must be contiguous"),
        (torch.zeros(4, dtype=torch.float64), 0.5, 1024, "got torch.float64"),
    ],
)
def test_refuses_what_it_cannot_store(x, keep, tile, message):
    with pytest.raises(ValueError, match=message):
        compress(x, keep, tile=tile)
