import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse.errors import ConfigError, InfeasibleDensityError, PatternError
from fedsparse.pattern import parse
from fedsparse.pruning import allocate, budget, densities

TOY = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "fc": (10, 32)}
MLP = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}


def floors(shapes, density, **options):
    return [
        int(d * math.prod(s) + 1e-9)
        for d, s in zip(densities(shapes, density, **options).values(), shapes.values(), strict=True)
    ]


@pytest.mark.parametrize(
    ("shapes", "density", "expected", "counts"),
    [
        (TOY, 0.5, (1, 0.418403, 1), [432, 1928, 320]),
        (TOY, 0.2, (0.550867, 0.111551, 1), [237, 514, 320]),
        (TOY, 0.1, (0.256351, 0.051911, 0.581405), [110, 239, 186]),
        (MLP, 0.1, (0.079568, 0.230189, 1), [18714, 6905, 1000]),
        (MLP, 0.2, (0.162241, 0.469362, 1), [38159, 14080, 1000]),
    ],
)
def test_erk_densities_and_their_floors(shapes, density, expected, counts):
    assert list(densities(shapes, density).values()) == pytest.approx(expected, abs=5e-7)
    assert floors(shapes, density) == counts


def test_what_the_floors_leave_goes_to_the_largest_fractions():
    # 237.97, 514.03, 320 and 110.74, 239.21, 186.05: one weight is left each time, conv1 is closest to 1
    assert allocate(TOY, 0.2) == {"conv1": 238, "conv2": 514, "fc": 320}
    assert allocate(TOY, 0.1) == {"conv1": 111, "conv2": 239, "fc": 186}


def resnet18():
    """Conv shapes of ResNet-18 with a 3x3 stem, and its number of other trainable elements."""
    shapes, channels, norms = {"conv1": (64, 3, 3, 3)}, 64, 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            shapes[f"layer{stage}.{block}.conv1"] = (width, channels, 3, 3)
            shapes[f"layer{stage}.{block}.conv2"] = (width, width, 3, 3)
            norms += 2 * width
            if channels != width:
                shapes[f"layer{stage}.{block}.downsample"] = (width, channels, 1, 1)
                norms += width
            channels = width
    return shapes, 2 * norms + 512 * 10 + 10


@pytest.mark.parametrize(
    ("density", "row", "active"),
    [
        (0.5, (1, 1, 1, 1, 0.5377, 0.3578, 1, 1, 1), 5_572_247),
        (0.2, (1, 1, 0.7508, 0.3697, 0.1834, 0.1221, 1, 1, 1), 2_220_056),
        (0.1, (1, 0.4758, 0.3515, 0.1731, 0.0859, 0.0571, 1, 1, 0.7689), 1_102_655),
        (0.01, (0.4683, 0.0403, 0.0298, 0.0147, 0.0073, 0.0048, 0.2625, 0.1306, 0.0651), 97_001),
    ],
)
def test_erk_of_resnet18(density, row, active):
    shapes, others = resnet18()
    assert sum(map(math.prod, shapes.values())) + others == 11_173_962
    d = densities(shapes, density, others=others)
    names = [
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer3.0.conv1",
        "layer4.0.conv1",
        "layer4.1.conv2",
    ]
    names += [f"layer{stage}.0.downsample" for stage in (2, 3, 4)]
    assert [d[name] for name in names] == pytest.approx(row, abs=1e-4)  # the source cuts, not rounds
    assert sum(floors(shapes, density, others=others)) == active
    kept = sum(allocate(shapes, density, others=others).values())
    assert kept == int(density * 11_173_962) - others


def test_er_ignores_the_kernel_size_and_uniform_the_shape():
    # raw densities 30/200 and 9/20 with 4 taps on the first: eps * (30 * 4 + 9) = 41 of 820 elements
    shapes = {"conv": (10, 20, 2, 2), "fc": (4, 5)}
    er = densities(shapes, 0.05, distribution="er")
    assert er == pytest.approx({"conv": 41 / 129 * 30 / 200, "fc": 41 / 129 * 9 / 20})
    assert densities(shapes, 0.05, distribution="uniform") == pytest.approx({"conv": 0.05, "fc": 0.05})
    assert allocate(shapes, 0.05, distribution="uniform") == {"conv": 40, "fc": 1}


def test_total_density_counts_the_dense_rest_and_prunable_density_does_not():
    shapes = {"a": (10, 10)}
    assert allocate(shapes, 0.5, others=20) == {"a": 40}
    assert allocate(shapes, 0.5, others=20, base="prunable") == {"a": 50}


def test_density_is_read_as_written():
    assert allocate({"a": (10, 10)}, 0.29) == {"a": 29}


def test_full_density_keeps_everything():
    assert allocate(TOY, 1.0, others=7) == {"conv1": 432, "conv2": 4608, "fc": 320}


def test_layers_below_one_weight_are_lifted_to_one_inside_the_budget():
    shapes = {"big": (1000, 1000), "small": (2, 2)}
    assert densities(shapes, 0.0001, distribution="uniform") == pytest.approx({"big": 99 / 1e6, "small": 0.25})
    assert allocate(shapes, 0.0001, distribution="uniform") == {"big": 99, "small": 1}


@pytest.mark.parametrize(
    ("others", "base", "smallest"),
    [(0, "total", 3 / 5360), (100, "total", 103 / 5460), (100, "prunable", 3 / 5360)],
)
def test_infeasible_density_names_the_smallest_feasible_one(others, base, smallest):
    with pytest.raises(InfeasibleDensityError) as caught:
        allocate(TOY, smallest * 0.9, others=others, base=base)
    assert caught.value.smallest == pytest.approx(smallest, rel=1e-12)
    assert repr(caught.value.smallest) in str(caught.value)
    assert allocate(TOY, caught.value.smallest, others=others, base=base) == dict.fromkeys(TOY, 1)


def test_smallest_feasible_density_is_exact_for_large_models_too():
    shapes = {"a": (4000, 4000), "b": (1000, 4000)}
    stepped = 0
    for others in range(1, 200):
        with pytest.raises(InfeasibleDensityError) as caught:
            allocate(shapes, 1e-09, others=others)
        smallest = caught.value.smallest
        assert allocate(shapes, smallest, others=others) == {"a": 1, "b": 1}
        with pytest.raises(InfeasibleDensityError):
            allocate(shapes, math.nextafter(smallest, 0), others=others)
        stepped += smallest != (2 + others) / (20_000_000 + others)
    assert stepped > 0  # the nearest float is not always enough


def test_nothing_to_prune_is_feasible_at_full_density_only():
    assert allocate({}, 1.0, others=5) == {}
    with pytest.raises(InfeasibleDensityError) as caught:
        allocate({}, 0.5, others=5)
    assert caught.value.smallest == 1.0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan")])
def test_density_outside_its_range(density):
    with pytest.raises(ConfigError, match=r"density must be in \(0, 1\]"):
        allocate(TOY, density)


def test_unknown_settings_and_shapes():
    with pytest.raises(ConfigError, match="'ekr'; expected one of erk, er, uniform"):
        allocate(TOY, 0.5, distribution="ekr")
    with pytest.raises(ConfigError, match="'all'; expected one of total, prunable"):
        allocate(TOY, 0.5, base="all")
    with pytest.raises(ConfigError, match="negative"):
        allocate(TOY, 0.5, others=-1)
    with pytest.raises(PatternError, match="'bias'"):
        allocate({"bias": (4,)}, 0.5)


SHAPES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2),
    st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(
    SHAPES,
    st.floats(0.001, 1),
    st.integers(0, 300),
    st.sampled_from(["erk", "er", "uniform"]),
    st.sampled_from(["total", "prunable"]),
)
def test_counts_fill_the_budget_exactly_or_the_reported_density_does(shapes, density, others, distribution, base):
    options = {"distribution": distribution, "others": others, "base": base}
    try:
        counts = allocate(shapes, density, **options)
    except InfeasibleDensityError as error:
        smallest = error.smallest
        assert smallest > density
        assert allocate(shapes, smallest, **options) == dict.fromkeys(shapes, 1)
        with pytest.raises(InfeasibleDensityError):
            allocate(shapes, math.nextafter(smallest, 0), **options)
        return
    assert all(1 <= counts[name] <= math.prod(shape) for name, shape in shapes.items())
    assert sum(counts.values()) == budget(shapes, density, others=others, base=base)
    exact = densities(shapes, density, distribution=distribution, others=others, base=base)
    assert all(abs(counts[name] - exact[name] * math.prod(shape)) < 1 + 1e-9 for name, shape in shapes.items())
    dense, size = (others if base == "total" else 0), sum(map(math.prod, shapes.values()))
    assert sum(counts.values()) + dense <= density * (size + dense) * (1 + 1e-12)


# ---- larger units
def test_whole_units_by_hand():
    shapes = {"a": (4, 4), "b": (4, 4), "c": (6, 4)}
    # Uniform at 1/2: 8, 8 and 12 of 56 weights, in channels of 4.
    assert allocate(shapes, 0.5, distribution="uniform", granularity=parse("channel")) == {"a": 8, "b": 8, "c": 12}
    # At 0.4, 22 weights: 6.4, 6.4 and 9.6, so 4, 4 and 8, and one more channel for the largest fraction, of a.
    assert allocate(shapes, 0.4, distribution="uniform", granularity=parse("channel")) == {"a": 8, "b": 4, "c": 8}


@settings(deadline=None)
@given(st.sampled_from(["vector:4", "block:8", "channel"]), st.sampled_from(["erk", "er", "uniform"]), st.data())
def test_whole_units_stay_within_the_budget(granularity, distribution, data):
    unit, others = parse(granularity), 7
    least = sum(unit.tiling(shape).size for shape in TOY.values())
    smallest = (least + others) / (sum(map(math.prod, TOY.values())) + others)
    density = data.draw(st.floats(smallest + 1e-6, 1.0))
    counts = allocate(TOY, density, distribution=distribution, others=others, granularity=unit)
    total = budget(TOY, density, others=others, granularity=unit)
    largest = max(unit.tiling(shape).size for shape in TOY.values())
    assert total - largest * len(TOY) < sum(counts.values()) <= total
    for name, shape in TOY.items():
        assert unit.tiling(shape).size <= counts[name] <= math.prod(shape)
        assert counts[name] % unit.tiling(shape).size == 0 or counts[name] == math.prod(shape)


def test_one_unit_a_layer_is_the_least():
    with pytest.raises(InfeasibleDensityError, match="each of 2 prunable weights keeps at least one unit, 20 in all"):
        allocate({"a": (4, 4), "b": (4, 16)}, 0.2, granularity=parse("channel"))


def test_nm_fixes_the_density():
    shapes, unit = {"a": (2, 8), "b": (3, 3)}, parse("nm:2:4")
    counts = {"a": 8, "b": 6}  # of runs of 3 two are kept
    for density in (0.5, 0.56, 0.504):  # its share, and 14 of 25
        assert allocate(shapes, density, granularity=unit) == counts
        assert budget(shapes, density, granularity=unit) == 14
    with pytest.raises(ConfigError, match=r"'nm:2:4', which keeps 0.5 of every layer and so 0.56 of all elements; use"):
        allocate(shapes, 0.2, granularity=unit)
