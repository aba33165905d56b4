"""Which launch settings are left to measure."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed (extra: triton)")

from fedsparse.kernels import element_product, element_sampled, tile_product, tile_sampled  # noqa: E402
from fedsparse.kernels.tuning import size_class, splits_for  # noqa: E402


def left(kernel, tuner, **known):
    """Block, warps and stages of the configs that a call with these arguments measures."""
    source = torch.empty(0, dtype=known.pop("dtype", torch.float32))
    configs = tuner.early_config_prune(kernel.CONFIGS, {"source": source, "pixels": 1 << 14, "longest": 200}, **known)
    return {(*config.kwargs.values(), config.num_warps, config.num_stages) for config in configs}


@pytest.mark.parametrize("rows", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_measure_few_and_never_none(rows, dtype):
    found = left(tile_product, tile_product._tile_product_kernel, ROWS=rows, dtype=dtype)
    assert 3 <= len(found) <= 15
    for block, warps, stages in found:
        assert tile_product.BLOCK_K * block <= 16 * 32 * warps
        assert rows * block <= 32 * 32 * warps
        assert stages * tile_product.BLOCK_K * (rows + block) * dtype.itemsize <= 80 * 1024


@pytest.mark.parametrize("rows", [16, 64])
def test_gradients_measure_few_and_never_none(rows):
    found = left(tile_sampled, tile_sampled._tile_sampled_kernel, ROWS=rows)
    assert 3 <= len(found) <= 12
    assert all(rows * block <= 32 * 32 * warps for block, warps, _ in found)


def test_few_pixels_and_taps_take_small_tiles():
    tuner = tile_product._tile_product_kernel
    assert {block for block, *_ in left(tile_product, tuner, ROWS=16, pixels=20)} == {64}
    assert {block for block, *_ in left(tile_sampled, tile_sampled._tile_sampled_kernel, ROWS=16, longest=5)} == {32}
    assert left(element_product, element_product._element_product_kernel, pixels=9) <= {(32, 1, 2), (128, 4, 2)}
    assert {block for block, *_ in left(element_sampled, element_sampled._element_sampled_kernel, longest=2)} == {4}


def test_lanes_never_share_a_pixel():
    for block, warps, _ in left(element_product, element_product._element_product_kernel):
        assert block >= 32 * warps


def test_reductions_are_not_tuned():
    tuned = {tile_product: "BLOCK_P", tile_sampled: "BLOCK_K", element_product: "BLOCK_P", element_sampled: "BLOCK_K"}
    for kernel, name in tuned.items():
        assert {key for config in kernel.CONFIGS for key in config.kwargs} == {name}
    assert {config.num_warps for config in element_sampled.CONFIGS} == {4}


def test_winners_are_kept_on_disk():
    tuner = tile_product._tile_product_kernel
    assert getattr(tuner, "cache_results", True)


@pytest.mark.parametrize(("count", "wanted"), [(0, 0), (1, 0), (2, 1), (127, 6), (128, 7)])
def test_sizes_of_a_class_share_a_tuning(count, wanted):
    assert size_class(count) == wanted


@pytest.mark.parametrize(
    ("programs", "most", "wanted"), [(1, 100, 100), (100, 100, 2), (264, 9, 1), (9999, 9, 1), (0, 0, 1)]
)
def test_sums_are_cut_until_a_device_is_full(programs, most, wanted):
    assert splits_for(programs, most) == wanted
