import pytest
import torch
from torch import nn

import fedsparse
from fedsparse.errors import ConfigError
from fedsparse.models import build, lenet, mlp, models, narrowed, resnet18, resnet20, vgg11


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        # 3x3 stem: 1,728 weights instead of the 9,408 of the 7x7 one
        (lambda: resnet18(), 11_173_962),
        (lambda: resnet18(stem="7x7"), 11_181_642),
        # fc: 90 rows of 512 weights and a bias more
        (lambda: resnet18(num_classes=100), 11_173_962 + 90 * 513),
        (lambda: resnet18(in_channels=1), 11_173_962 - 2 * 64 * 9),
        # the paper's Table 6 has 0.27M; 2,752 more than with its shortcuts of zeros
        (lambda: resnet20(), 269_722 + 2_752),
        # 432 + 2*16; 2*(2,304+32); 4,608+9,216+2*64 + 512+64; 18,432+36,864+2*128 + 2,048+128; 650
        (lambda: resnet20(depth=8), 464 + 4_672 + 14_528 + 57_728 + 650),
        # 6*25+6, 16*6*25+16, 120*400+120, 84*120+84, 10*84+10
        (lambda: lenet(), 156 + 2_416 + 48_120 + 10_164 + 850),
        (lambda: lenet(num_classes=62, in_channels=3), 61_706 + 52 * 85 + 2 * 6 * 25),
        # 9,217,728 convolution weights, 2 * 2,752 of batch norm, 5,130 of the classifier
        (lambda: vgg11(), 9_217_728 + 5_504 + 5_130),
        (lambda: vgg11(batch_norm=False), 9_217_728 + 2_752 + 5_130),
        (lambda: mlp(784, 10), 266_610),
        (lambda: mlp(5, 3, hidden=()), 18),
    ],
)
def test_parameters(model, count):
    assert parameters(model()) == count


def test_documented_counts():
    assert "11,173,962" in resnet18.__doc__
    assert "11,181,642" in resnet18.__doc__
    assert "272,474" in resnet20.__doc__
    assert "61,706" in lenet.__doc__
    assert "9,228,362" in vgg11.__doc__
    assert "266,610" in mlp.__doc__


@pytest.mark.parametrize("side", [1, 2, 9, 33])
@pytest.mark.parametrize("stem", ["3x3", "7x7"])
def test_resnet_takes_any_side(stem, side):
    model = resnet18(num_classes=7, stem=stem, width=2).eval()
    assert model(torch.zeros(3, 3, side, side + 1)).shape == (3, 7)


@pytest.mark.parametrize(("stem", "sides"), [("3x3", [32, 32, 16, 8, 4]), ("7x7", [16, 8, 4, 2, 1])])
def test_resnet_strides(stem, sides):
    model, seen = resnet18(stem=stem, width=2).eval(), []
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _m, _x, y: seen.append(y.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == sides


def test_resnet20_halves_the_picture_twice():
    model, seen = resnet20(depth=8, width=2).eval(), []
    for name in ("conv1", "layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [(2, 32, 32), (2, 32, 32), (4, 16, 16), (8, 8, 8)]


@pytest.mark.parametrize("depth", [0, 2, 7, 18, 21])
def test_resnet20_has_6n_plus_2_layers(depth):
    with pytest.raises(ConfigError, match=f"6n\\+2 layers, 8, 14 or 20 for example; got depth {depth}"):
        resnet20(depth=depth)


@pytest.mark.parametrize("side", [10, 12, 13, 28, 35])
def test_lenet_takes_any_side_from_10(side):
    assert lenet(num_classes=4, in_channels=2)(torch.zeros(2, 2, side, side + 3)).shape == (2, 4)


@pytest.mark.parametrize("side", [32, 37])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_vgg_takes_any_side_from_32(side, batch_norm):
    model = vgg11(num_classes=4, in_channels=1, batch_norm=batch_norm).eval()
    assert model(torch.zeros(1, 1, side, side)).shape == (1, 4)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert norms == (8 if batch_norm else 0)


def test_mlp_flattens():
    model = mlp(2 * 3 * 5, 4, hidden=(6,))
    x = torch.randn(7, 2, 3, 5)
    assert model(x).shape == (7, 4)
    torch.testing.assert_close(model(x), model(x.flatten(1)), rtol=0, atol=0)


def test_resnet_names_are_those_of_torchvision():
    model = resnet18(width=1)
    block = ["conv1", "bn1", "conv2", "bn2"]
    shortcut = ["downsample", "downsample.0", "downsample.1"]
    expected = ["conv1", "bn1", "maxpool"]
    for stage in range(1, 5):
        expected.append(f"layer{stage}")
        for number in range(2):
            prefix = f"layer{stage}.{number}"
            parts = block + (shortcut if stage > 1 and number == 0 else [])
            expected += [prefix, *(f"{prefix}.{part}" for part in parts)]
    expected += ["avgpool", "fc"]
    assert [name for name, _ in model.named_modules()] == ["", *expected]
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_resnet_block_by_hand():
    model = resnet18(width=3).double().eval()
    block = model.layer2[0]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    scale = 1 / (1 + 1e-5) ** 0.5  # fresh batch norm in evaluation divides by sqrt(1 + eps)
    conv = nn.functional.conv2d
    inner = (conv(x, block.conv1.weight, stride=2, padding=1) * scale).relu()
    main = conv(inner, block.conv2.weight, padding=1) * scale
    side = conv(x, block.downsample[0].weight, stride=2) * scale
    torch.testing.assert_close(block(x), (main + side).relu())


def test_resnet_convolutions_start_with_kaiming_spread():
    weight = resnet18().layer4[0].conv1.weight  # 1,179,648 draws, fan-out 512 * 9
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


SMALL = {
    "resnet18": {"width": 2},
    "resnet20": {"depth": 8, "width": 2},
    "gpt2": {"hidden": 8, "layers": 2, "heads": 2, "context": 16},
}


def small(name: str) -> nn.Module:
    shape, tokens = ((16,), True) if name == "gpt2" else ((1, 32, 32), False)
    return build(name, in_shape=shape, num_classes=3, options=SMALL.get(name, {}), tokens=tokens)


@pytest.mark.parametrize("name", models())
def test_every_parameter_gets_a_gradient(name):
    model = small(name)
    x = torch.randint(3, (4, 16)) if name == "gpt2" else torch.randn(4, 1, 32, 32)
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", models())
def test_build_follows_the_torch_seed(name):
    def flat(seed: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = small(name)
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    first = flat(5)
    assert torch.equal(first, flat(5))
    assert not torch.equal(first, flat(6))


def test_build_passes_facts_and_options():
    model = build("resnet18", in_shape=(1, 28, 28), num_classes=4, options={"width": 8, "stem": "7x7"})
    assert model.conv1.weight.shape == (8, 1, 7, 7)
    assert model.fc.weight.shape == (4, 64)
    hidden = build("mlp", in_shape=(3, 2, 2), num_classes=5, options={"hidden": [7, 6]})
    assert [tuple(m.weight.shape) for m in hidden if isinstance(m, nn.Linear)] == [(7, 12), (6, 7), (5, 6)]
    assert build("mlp", in_shape=(9,), num_classes=2, options={})[1].in_features == 9
    vgg = build("vgg11", in_shape=(3, 32, 32), num_classes=2, options={"batch_norm": False})
    assert not any(isinstance(m, nn.BatchNorm2d) for m in vgg.modules())


def test_models_are_listed_and_public():
    assert models() == ["gpt2", "lenet", "mlp", "resnet18", "resnet20", "vgg11"]
    assert all(callable(getattr(fedsparse.models, name)) for name in models())


RGB = (3, 32, 32)
KNOWN = "(known: gpt2, lenet, mlp, resnet18, resnet20, vgg11)"


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("restnet18", RGB, {}, f"unknown model 'restnet18'; did you mean 'resnet18'? {KNOWN}"),
        ("zzz", RGB, {}, f"unknown model 'zzz' {KNOWN}"),
        (
            "resnet18",
            RGB,
            {"widht": 8},
            "model 'resnet18' has no option 'widht'; did you mean 'width'? (known: stem, width)",
        ),
        ("resnet18", RGB, {"num_classes": 3}, "model 'resnet18' has no option 'num_classes' (known: stem, width)"),
        (
            "lenet",
            (1, 28, 28),
            {"width": 8},
            "model 'lenet' has no option 'width'; did you mean 'widths'? (known: widths)",
        ),
        ("resnet18", RGB, {"width": "8"}, "option 'width' of model 'resnet18' must be int as in 64, got '8'"),
        ("resnet18", RGB, {"width": True}, "option 'width' of model 'resnet18' must be int as in 64, got True"),
        (
            "resnet18",
            RGB,
            {"width": 0},
            "model 'resnet18' cannot be built with {'width': 0}: "
            "the first stage needs a width of at least 1 channel, got 0",
        ),
        (
            "resnet18",
            RGB,
            {"stem": "5x5"},
            "model 'resnet18' cannot be built with {'stem': '5x5'}: unknown stem '5x5'; expected '3x3' or '7x7'",
        ),
        (
            "vgg11",
            RGB,
            {"batch_norm": "false"},
            "option 'batch_norm' of model 'vgg11' must be bool as in True, got 'false'",
        ),
        ("mlp", (4,), {"hidden": "300"}, "option 'hidden' of model 'mlp' must be tuple as in (300, 100), got '300'"),
        (
            "mlp",
            (4,),
            {"hidden": [3, 0]},
            "model 'mlp' cannot be built with {'hidden': [3, 0]}: every layer needs at least 1 unit, got [4, 3, 0]",
        ),
        (
            "lenet",
            (64,),
            {},
            "model 'lenet' needs pictures (channels, height, width), the data has shape (64,); "
            "use model 'mlp' or data with pictures",
        ),
        (
            "lenet",
            (1, 8, 8),
            {},
            "model 'lenet' needs pictures of 10 x 10 pixels or more, got 8 x 8; "
            "set data.image_size = 10 or choose another model",
        ),
        (
            "vgg11",
            (1, 28, 32),
            {},
            "model 'vgg11' needs pictures of 32 x 32 pixels or more, got 28 x 32; "
            "set data.image_size = 32 or choose another model",
        ),
    ],
)
def test_build_refuses(name, shape, options, message):
    with pytest.raises(ConfigError) as error:
        build(name, in_shape=shape, num_classes=2, options=options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "length", "options", "tokens", "message"),
    [
        (
            "mlp",
            8,
            {},
            True,
            "model 'mlp' takes no tokens, the data has texts; choose another model or another data set",
        ),
        (
            "gpt2",
            8,
            {},
            False,
            "model 'gpt2' takes tokens, the data has none; choose another model or another data set",
        ),
        (
            "gpt2",
            32,
            {"context": 16},
            True,
            "model 'gpt2' reads 16 tokens, the data has blocks of 32; set data.context = 16 or model.context = 32",
        ),
        (
            "gpt2",
            8,
            {"vocabulary": 9},
            True,
            "model 'gpt2' has no option 'vocabulary' (known: hidden, layers, heads, context, dropout)",
        ),
        (
            "gpt2",
            8,
            {"hidden": 10, "heads": 4},
            True,
            "model 'gpt2' cannot be built with {'hidden': 10, 'heads': 4}: hidden = 10 is no multiple of heads = 4; "
            "every head takes an equal part",
        ),
    ],
)
def test_build_refuses_what_does_not_read(name, length, options, tokens, message):
    with pytest.raises(ConfigError) as error:
        build(name, in_shape=(length,), num_classes=2, options=options, tokens=tokens)
    assert str(error.value) == message


def test_what_torch_refuses_is_passed_on():
    with pytest.raises(ConfigError, match=r"^model 'mlp' cannot be built with \{'hidden': \[2\.5\]\}: .") as error:
        build("mlp", in_shape=(4,), num_classes=2, options={"hidden": [2.5]})
    assert isinstance(error.value.__cause__, TypeError)


@pytest.mark.parametrize(
    ("name", "options", "share", "wanted"),
    [
        ("resnet18", {}, 0.5, {"width": 32}),
        ("resnet18", {"stem": "7x7", "width": 16}, 0.1, {"stem": "7x7", "width": 2}),
        ("vgg11", {"batch_norm": False}, 0.25, {"batch_norm": False, "width": 16}),
        ("lenet", {}, 0.5, {"widths": (3, 8, 60, 42)}),
        ("mlp", {"hidden": [300, 3]}, 0.2, {"hidden": (60, 1)}),
        ("mlp", {"hidden": ()}, 0.2, {"hidden": ()}),
    ],
)
def test_narrowed_options(name, options, share, wanted):
    assert narrowed(name, options, share) == wanted
    build(name, in_shape=(1, 32, 32), num_classes=3, options=wanted)


@pytest.mark.parametrize("name", [name for name in models() if name != "gpt2"])
def test_all_channels_are_the_model_as_it_is(name):
    full, same = (
        build(name, in_shape=(1, 32, 32), num_classes=3, options=options) for options in ({}, narrowed(name, {}, 1.0))
    )
    assert [tuple(p.shape) for p in full.parameters()] == [tuple(p.shape) for p in same.parameters()]


@pytest.mark.parametrize(("share", "hidden"), [(1.0, 256), (0.5, 128), (0.34, 80), (0.01, 16)])
def test_heads_stay_and_share_what_is_left_of_the_width(share, hidden):
    assert narrowed("gpt2", {"layers": 1}, share) == {"layers": 1, "hidden": hidden}  # 16 heads by default
    model = build("gpt2", in_shape=(8,), num_classes=5, options=narrowed("gpt2", {"layers": 1}, share), tokens=True)
    assert (model.h[0].attn.heads, model.hidden) == (16, hidden)


def test_heads_are_those_of_the_options():
    assert narrowed("gpt2", {"hidden": 12, "heads": 3}, 0.6) == {"hidden": 6, "heads": 3}


def test_widths_by_hand():
    # 2*25+2, 3*2*25+3, 75*4+4, 4*5+5, 5*10+10
    assert parameters(lenet(widths=(2, 3, 4, 5))) == 52 + 153 + 304 + 25 + 60
    # 9 * (3*1 + 1*2 + 2*4 + 4*4 + 4*8 + 3*8*8) weights and 2 * 43 of batch norm, 8*10+10
    assert parameters(vgg11(width=1)) == 9 * 253 + 2 * 43 + 90


@pytest.mark.parametrize("widths", [(6, 16, 120), (6, 16, 0, 84)])
def test_lenet_needs_four_widths(widths):
    with pytest.raises(ConfigError, match="expected the widths of four layers, each at least 1"):
        lenet(widths=widths)


def test_vgg_needs_a_channel():
    with pytest.raises(ConfigError, match="a width of at least 1 channel, got 0"):
        vgg11(width=0)
