"""VGG-11.  Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556; one linear classifier instead of three."""

from torch import Tensor, nn

from fedsparse.errors import ConfigError

__all__ = ["VGG", "vgg11"]

# Output channels of the convolutions, in widths; "pool" halves the picture.
_VGG11: tuple[int | str, ...] = (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool")


class VGG(nn.Module):
    """3x3 convolutions and max pooling, then global average pooling and one linear layer.

    Pictures have 32 pixels a side or more.
    """

    def __init__(self, num_classes: int, in_channels: int, batch_norm: bool, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"the first convolution needs a width of at least 1 channel, got {width}")
        layers: list[nn.Module] = []
        channels = in_channels
        for item in _VGG11:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = item * width
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> `(batch, num_classes)` logits."""
        logits: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return logits


def vgg11(num_classes: int = 10, in_channels: int = 3, batch_norm: bool = True, width: int = 64) -> VGG:
    """VGG-11: 9,228,362 parameters with batch norm, 3 channels and 10 classes.

    Args:
        width: channels of the first convolution; up to eight times as many in the later ones.

    Raises:
        ConfigError: a width below 1.
    """
    return VGG(num_classes, in_channels, batch_norm, width)
