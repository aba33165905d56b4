"""Which launch settings are tried, and where the winner is kept.

Only settings that leave the order of additions alone are tuned: tile sizes along axes that are not summed over, warps
and pipeline stages. Widths of reductions are fixed by the kernels. Two runs that time differently and so choose
differently still give the same bits.

Winners are kept on disk beside Triton's compiled kernels where its version can (argument `cache_results`), so a second
process measures nothing. A first call measures, which cannot happen inside a CUDA graph: run one step before capture.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton

__all__ = ["FUSION", "autotuned", "interpreted", "keeps_sums_in_lanes", "size_class", "splits_for"]

FUSION = True  # multiply-adds round once; said at every launch because Triton's default differs between versions

# Work shared by fewer programs than this leaves multiprocessors idle: two for each of the 132 of an H200. A constant
# and not a property of the device, so that sums are split alike everywhere.
PROGRAMS = 264


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def keeps_sums_in_lanes() -> bool:
    """Whether sums over a tile's first axis stay in the lane that loads: from Triton 3.7 on, as compiled kernels show.

    Before, lanes share them, how many depends on the tile, and with it the order of additions.
    """
    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 7)


def autotuned(
    configs: Sequence[triton.Config], key: Sequence[str], allows: Callable[[Mapping[str, Any]], bool]
) -> Callable[[Any], Any]:
    """`triton.autotune` over the configs whose settings and arguments, by name, `allows` lets pass.

    The first config is the one for the interpreter, which cannot measure, and what remains when none passes.
    """

    def prune(candidates: list[triton.Config], named: Mapping[str, Any], **others: Any) -> list[triton.Config]:
        known = {**named, **others}
        passing = [config for config in candidates if allows({**known, **config.all_kwargs()})]
        return passing or list(candidates[:1])

    persistent = "cache_results" in inspect.signature(triton.autotune).parameters
    return triton.autotune(  # type: ignore[no-any-return]
        configs=list(configs[:1] if interpreted() else configs),
        key=list(key),
        prune_configs_by={"early_config_prune": prune},
        **({"cache_results": True} if persistent else {}),
    )


def size_class(count: int) -> int:
    """Whole powers of two in a count: sizes of one class share a tuning, so a short last batch measures little."""
    return max(count, 1).bit_length() - 1


def splits_for(programs: int, most: int) -> int:
    """Parts, at most `most`, into which a sum is cut so that few programs still fill a device."""
    return max(1, min(PROGRAMS // max(programs, 1), most))
