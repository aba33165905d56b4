"""Models that train in seconds."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from fedsparse.errors import ConfigError

__all__ = ["LeNet", "lenet", "mlp"]


class LeNet(nn.Module):
    """LeNet-5.  LeCun et al., Proc. IEEE 1998; ReLU, max pooling, for pictures of 10 pixels a side or more."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.conv1 = nn.Conv2d(in_channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.pool = nn.MaxPool2d(2)
        self.adapt = nn.AdaptiveAvgPool2d(5)
        self.fc1 = nn.Linear(second * 5 * 5, third)
        self.fc2 = nn.Linear(third, fourth)
        self.fc3 = nn.Linear(fourth, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> `(batch, num_classes)` logits."""
        x = self.pool(self.conv1(x).relu())
        x = self.adapt(self.conv2(x).relu())
        x = self.fc1(x.flatten(1)).relu()
        logits: Tensor = self.fc3(self.fc2(x).relu())
        return logits


def lenet(num_classes: int = 10, in_channels: int = 1, widths: Sequence[int] = (6, 16, 120, 84)) -> LeNet:
    """LeNet-5: 61,706 parameters with 1 channel and 10 classes.

    Args:
        widths: channels of the two convolutions and units of the two hidden layers.

    Raises:
        ConfigError: not four widths of at least 1.
    """
    if len(widths) != 4 or min(widths) < 1:
        raise ConfigError(f"expected the widths of four layers, each at least 1, got {list(widths)}")
    first, second, third, fourth = widths
    return LeNet(num_classes, in_channels, (first, second, third, fourth))


def mlp(in_features: int, num_classes: int = 10, hidden: Sequence[int] = (300, 100)) -> nn.Sequential:
    """Fully connected network with ReLU: `(batch, ...)` of `in_features` numbers -> `(batch, num_classes)` logits.

    The default layers, 300 and 100, are LeNet-300-100 of LeCun et al., Proc. IEEE 1998: 266,610 parameters with 784
    features and 10 classes.

    Raises:
        ConfigError: a hidden layer below 1 unit.
    """
    sizes = [in_features, *hidden]
    if min(sizes) < 1:
        raise ConfigError(f"every layer needs at least 1 unit, got {sizes}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
