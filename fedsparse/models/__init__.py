"""Networks of the literature as plain modules."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fedsparse.errors import ConfigError
from fedsparse.models.resnet import resnet18
from fedsparse.models.small import lenet, mlp
from fedsparse.models.vgg import vgg11

__all__ = ["build", "lenet", "mlp", "models", "resnet18", "vgg11"]

_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "mlp": mlp,
    "resnet18": resnet18,
    "vgg11": vgg11,
}
# Parameters that follow from the data.
_FROM_DATA = ("num_classes", "in_channels", "in_features")


def models() -> list[str]:
    """Names that `build` knows."""
    return sorted(_FACTORIES)


def build(name: str, *, in_shape: tuple[int, ...], num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    """Model for samples of shape `in_shape`, `(channels, height, width)` or `(features,)`.

    Raises:
        ConfigError: the model or an option is unknown, an option has a bad value, or the model needs pictures.
    """
    if name not in _FACTORIES:
        near = difflib.get_close_matches(name, _FACTORIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown model {name!r}{hint} (known: {', '.join(models())})")
    factory = _FACTORIES[name]
    wanted = inspect.signature(factory).parameters
    known = [option for option in wanted if option not in _FROM_DATA]
    for option in options:
        if option not in known:
            raise ConfigError(f"model {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    if "in_channels" in wanted and len(in_shape) != 3:
        raise ConfigError(f"model {name!r} needs pictures (channels, height, width), the data has shape {in_shape}")
    facts = {"num_classes": num_classes, "in_channels": in_shape[0], "in_features": math.prod(in_shape)}
    try:
        return factory(**{key: value for key, value in facts.items() if key in wanted}, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model {name!r} cannot be built with {dict(options)}: {error}") from error
