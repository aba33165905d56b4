"""ResNet-18 and ResNet-20.  He et al., CVPR 2016, arXiv:1512.03385; module names as in torchvision."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fedsparse.errors import ConfigError

__all__ = ["BasicBlock", "ResNet", "resnet18", "resnet20"]


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
    """Stem, stages of basic blocks, global average pooling, one linear layer.

    Args:
        num_classes: outputs.
        stem: `3x3` (stride 1, for small pictures) or `7x7` (stride 2 and max pooling, as in the paper).
        width: channels of the first stage; doubled at each of the others, which halve the picture.
        in_channels: channels of the picture.
        blocks: of each stage, one number a stage.

    Raises:
        ConfigError: unknown stem, or a width below 1.
    """

    def __init__(self, num_classes: int, stem: str, width: int, in_channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        if stem not in ("3x3", "7x7"):
            raise ConfigError(f"unknown stem {stem!r}; expected '3x3' or '7x7'")
        if width < 1:
            raise ConfigError(f"the first stage needs a width of at least 1 channel, got {width}")
        small = stem == "3x3"
        self.conv1 = nn.Conv2d(in_channels, width, *((3, 1, 1) if small else (7, 2, 3)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        channels = width
        for number, (name, count) in enumerate(zip(self.stages, blocks, strict=True)):
            outputs = width * 2**number
            self.add_module(name, _stage(channels, outputs, 1 if number == 0 else 2, count))
            channels = outputs
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> `(batch, num_classes)` logits."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


def resnet18(num_classes: int = 10, stem: str = "3x3", width: int = 64, in_channels: int = 3) -> ResNet:
    """ResNet-18: 11,173,962 parameters with the 3x3 stem and 10 classes, 11,181,642 with the 7x7 stem."""
    return ResNet(num_classes, stem, width, in_channels, (2, 2, 2, 2))


def resnet20(num_classes: int = 10, depth: int = 20, width: int = 16, in_channels: int = 3) -> ResNet:
    """The paper's ResNet of 6n+2 layers for CIFAR-10 (section 4.2): 272,474 parameters at 20 layers and 10 classes.

    Deviation: the two shortcuts that change shape are 1x1 convolutions with batch norm (the paper's option B), as in
    `resnet18`, where the paper pads with zeros (option A), which has 2,752 parameters fewer.

    Args:
        depth: 6n+2 layers, 8 or 20 say: three stages of n blocks.

    Raises:
        ConfigError: another depth, or a width below 1.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ConfigError(f"a ResNet of this kind has 6n+2 layers, 8, 14 or 20 for example; got depth {depth}")
    return ResNet(num_classes, "3x3", width, in_channels, (blocks,) * 3)
