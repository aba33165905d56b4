"""Networks of the literature as plain modules."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsparse.errors import ConfigError
from fedsparse.models.gpt2 import gpt2
from fedsparse.models.resnet import resnet18, resnet20
from fedsparse.models.small import lenet, mlp
from fedsparse.models.vgg import vgg11

__all__ = ["build", "gpt2", "lenet", "mlp", "models", "narrowed", "resnet18", "resnet20", "vgg11"]


@dataclass(frozen=True)
class _Model:
    """How a model is made.

    Attributes:
        make: the factory.
        width: option that holds the channels of its layers, one number or one a layer.
        smallest: smallest side of its pictures in pixels; None where it takes any shape.
        sharers: option with the number of equal parts that the width falls into; None where it is of one.
        reads: whether it takes tokens.
    """

    make: Callable[..., nn.Module]
    width: str
    smallest: int | None = None
    sharers: str | None = None
    reads: bool = False

    def option(self, name: str, options: Mapping[str, Any]) -> Any:
        """The value of an option, by default the factory's."""
        return options.get(name, inspect.signature(self.make).parameters[name].default)


_MODELS = {
    "gpt2": _Model(gpt2, "hidden", sharers="heads", reads=True),
    "lenet": _Model(lenet, "widths", 10),
    "mlp": _Model(mlp, "hidden"),
    "resnet18": _Model(resnet18, "width", 1),
    "resnet20": _Model(resnet20, "width", 1),
    "vgg11": _Model(vgg11, "width", 32),
}
# Parameters that follow from the data.
_FROM_DATA = ("num_classes", "in_channels", "in_features", "vocabulary")


def models() -> list[str]:
    """Names that `build` knows."""
    return sorted(_MODELS)


def build(
    name: str, *, in_shape: tuple[int, ...], num_classes: int, options: Mapping[str, Any], tokens: bool = False
) -> nn.Module:
    """Model for samples of shape `in_shape`.

    Initial weights come from torch's global generator, as in every module; seed it inside `torch.random.fork_rng`.

    Args:
        name: one of `models()`.
        in_shape: `(channels, height, width)`, `(features,)`, or `(length,)` of tokens.
        num_classes: number of labels; of tokens the size of the vocabulary.
        options: of the model.
        tokens: whether samples are tokens.

    Raises:
        ConfigError: the model or an option is unknown, an option has a bad value, or the samples do not fit.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown model {name!r}{hint} (known: {', '.join(models())})")
    model = _MODELS[name]
    wanted = inspect.signature(model.make).parameters
    _check_options(name, options, {key: wanted[key].default for key in wanted if key not in _FROM_DATA})
    if tokens != model.reads:
        raise ConfigError(
            f"model {name!r} takes {'tokens' if model.reads else 'no tokens'}, the data has "
            f"{'texts' if tokens else 'none'}; choose another model or another data set"
        )
    if model.reads:
        _check_length(name, in_shape[0], model.option("context", options))
    _check_samples(name, in_shape, model.smallest)
    facts = {
        "num_classes": num_classes,
        "in_channels": in_shape[0],
        "in_features": math.prod(in_shape),
        "vocabulary": num_classes,
    }
    try:
        return model.make(**{key: value for key, value in facts.items() if key in wanted}, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"model {name!r} cannot be built with {dict(options)}: {error}") from error


def narrowed(name: str, options: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Options of the model `name` that has `share` of the channels, in (0, 1]: rounded, at least 1 in every layer.

    What follows from the data stays: inputs, and the classes of the output layer. GPT-2 keeps its heads, each of which
    has at least 1 channel and as many as another.
    """
    model = _MODELS[name]
    full = model.option(model.width, options)
    step = 1 if model.sharers is None else model.option(model.sharers, options)
    if isinstance(full, int):
        return {**options, model.width: step * max(1, round(share * full / step))}
    return {**options, model.width: tuple(max(1, round(share * channels)) for channels in full)}


def _check_options(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if option not in defaults:
            near = difflib.get_close_matches(option, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"model {name!r} has no option {option!r}{hint} (known: {', '.join(defaults) or 'none'})")
        expected = type(defaults[option])
        given = tuple if isinstance(value, list) else type(value)  # TOML knows lists only
        if given is not expected:
            raise ConfigError(
                f"option {option!r} of model {name!r} must be {expected.__name__} as in {defaults[option]!r}, "
                f"got {value!r}"
            )


def _check_samples(name: str, in_shape: tuple[int, ...], smallest: int | None) -> None:
    if smallest is None:
        return
    if len(in_shape) != 3:
        raise ConfigError(
            f"model {name!r} needs pictures (channels, height, width), the data has shape {in_shape}; "
            "use model 'mlp' or data with pictures"
        )
    if min(in_shape[1:]) < smallest:
        raise ConfigError(
            f"model {name!r} needs pictures of {smallest} x {smallest} pixels or more, got {in_shape[1]} x "
            f"{in_shape[2]}; set data.image_size = {smallest} or choose another model"
        )


def _check_length(name: str, length: int, context: int) -> None:
    if length > context:
        raise ConfigError(
            f"model {name!r} reads {context} tokens, the data has blocks of {length}; "
            f"set data.context = {context} or model.context = {length}"
        )
