import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsparse.data.pictures import moments, resize
from fedsparse.errors import ConfigError


def test_halving_a_checkerboard_gives_its_mean():
    # an antialiased halving of a period of two pixels averages them, away from the edge
    board = (torch.arange(64).reshape(8, 8).fmod(2) * 200).to(torch.uint8)
    half = resize(board[None, None], 4)
    assert half.dtype == torch.uint8
    assert half[0, 0, :, 1:-1].unique().tolist() == [100]


@pytest.mark.parametrize("side", [1, 5, 16])
def test_bytes_are_rounded_floats(generator, side):
    x = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8, generator=generator)
    expected = F.interpolate(x.double(), (side, side), mode="bilinear", antialias=True)
    assert (resize(x, side).double() - expected).abs().max() <= 0.501
    floats = resize(x.float(), side)
    assert floats.dtype == torch.float32
    torch.testing.assert_close(floats.double(), expected, rtol=1e-5, atol=1e-4)


def test_many_pictures_are_resized_alike(generator):
    one = torch.randint(0, 256, (1, 1, 2, 2), dtype=torch.uint8, generator=generator)
    many = resize(one.expand(4099, 1, 2, 2), 3)
    assert torch.equal(many, resize(one, 3).expand(4099, 1, 3, 3))


def test_no_size_or_the_same_size_changes_nothing():
    x = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert resize(x, None) is x
    assert resize(x, 4) is x
    features = torch.zeros(2, 5)
    assert resize(features, None) is features


@pytest.mark.parametrize(("shape", "side"), [((2, 5), 4), ((2, 5, 5), 4), ((2, 1, 4, 4), 0)])
def test_what_cannot_be_resized(shape, side):
    with pytest.raises(ConfigError, match=f"image_size={side} needs pictures"):
        resize(torch.zeros(shape), side)


def test_moments_are_those_of_float64(generator):
    x = torch.randint(0, 256, (11, 3, 6, 5), dtype=torch.uint8, generator=generator)
    mean, std = moments(x)
    shares = x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean.numpy(), shares.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), shares.std((0, 2, 3)), rtol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


@pytest.mark.parametrize("level", [0, 51, 77, 255])
def test_a_constant_channel_is_only_centred(level):
    mean, std = moments(torch.full((2, 1, 3, 3), level, dtype=torch.uint8))
    assert mean.item() == pytest.approx(level / 255)
    assert std.item() == 1.0


def test_other_data_have_no_moments():
    assert moments(torch.zeros(2, 1, 3, 3)) == (None, None)
    assert moments(torch.zeros(2, 3, dtype=torch.uint8)) == (None, None)
