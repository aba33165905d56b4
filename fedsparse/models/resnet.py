"""ResNet-18.  He et al., CVPR 2016, arXiv:1512.03385; module names as in torchvision."""

import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.errors import ConfigError

__all__ = ["BasicBlock", "ResNet", "resnet18"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `(batch, inputs, h, w)` -> `(batch, outputs, h / stride, w / stride)`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """Stem, four stages of two blocks, global average pooling, one linear layer.

    Args:
        num_classes: outputs.
        stem: `3x3` (stride 1, for small pictures) or `7x7` (stride 2 and max pooling, as in the paper).
        width: channels of the first stage; doubled at each of the other three.
        in_channels: channels of the picture.

    Raises:
        ConfigError: unknown stem, or a width below 1.
    """

    def __init__(self, num_classes: int, stem: str, width: int, in_channels: int) -> None:
        super().__init__()
        if stem not in ("3x3", "7x7"):
            raise ConfigError(f"unknown stem {stem!r}; expected '3x3' or '7x7'")
        if width < 1:
            raise ConfigError(f"the first stage needs a width of at least 1 channel, got {width}")
        small = stem == "3x3"
        self.conv1 = nn.Conv2d(in_channels, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> `(batch, num_classes)` logits."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


def resnet18(num_classes: int = 10, stem: str = "3x3", width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18: 11,173,962 parameters with the 3x3 stem and 10 classes, 11,181,642 with the 7x7 stem."""
    return ResNet(num_classes, stem, width, in_channels)
