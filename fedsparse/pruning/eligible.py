"""Which weights of a model may be pruned."""

from collections.abc import Collection, Iterator

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fedsparse.errors import ConfigError

__all__ = ["PRESETS", "prunable"]

PRESETS = ("output", "ends", "none")


def prunable(model: nn.Module, exclude: str | Collection[str | nn.Module] = "output") -> dict[str, Tensor]:
    """Weights of the model's Linear and Conv2d modules that may be pruned, by `"<module path>.weight"`.

    The order is that of registration. A weight shared by modules appears once, under its first name, and
    stays dense as soon as one of these modules is excluded. Biases and norm parameters never appear.

    Args:
        exclude: `"output"` leaves out the last Linear or Conv2d, `"ends"` the first and the last, `"none"`
            nothing. Otherwise a name or a collection of names and modules; a name is a module path or a full
            weight name. A module that holds others excludes all of them.

    Raises:
        ConfigError: a preset, name or module that the model does not have.
    """
    modules = dict(_candidates(model))
    kept_dense = {id(modules[path].weight) for path in _excluded(model, modules, exclude)}
    weights: dict[str, Tensor] = {}
    seen = set(kept_dense)
    for path, module in modules.items():
        if id(module.weight) not in seen:
            seen.add(id(module.weight))
            weights[_weight_name(path)] = module.weight
    return weights


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, module in model.named_modules():
        # That subclass marks layers whose parent reads the weight and never calls them (MultiheadAttention).
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, NonDynamicallyQuantizableLinear):
            yield path, module


def _weight_name(path: str) -> str:
    return f"{path}.weight" if path else "weight"


def _excluded(model: nn.Module, paths: Collection[str], exclude: str | Collection[str | nn.Module]) -> set[str]:
    ordered = list(paths)
    if exclude == "none":
        return set()
    if exclude == "output":
        return set(ordered[-1:])
    if exclude == "ends":
        return set(ordered[:1] + ordered[-1:])
    items = (exclude,) if isinstance(exclude, str) else exclude
    return {path for item in items for path in _inside(model, ordered, item)}


def _inside(model: nn.Module, paths: list[str], item: str | nn.Module) -> list[str]:
    """Paths of the prunable modules that an excluded name or module stands for."""
    if isinstance(item, str):
        outer = item.removesuffix(".weight") if item.removesuffix(".weight") in paths else item
    else:
        outer = next((path for path, module in model.named_modules() if module is item), "?")
    found = [path for path in paths if path == outer or path.startswith(f"{outer}.") or outer == ""]
    if not found:
        given = repr(item) if isinstance(item, str) else f"a {type(item).__name__} module"
        raise ConfigError(
            f"exclude: {given} is neither a preset ({', '.join(PRESETS)}) nor a prunable layer of this "
            f"{type(model).__name__}; its Linear and Conv2d layers are {', '.join(paths) or 'none'}"
        )
    return found
