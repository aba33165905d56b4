"""Judging what clients answer beside their weights: a damaged or hostile answer costs that client's update only.

For `Method.check` and the `check` of `Server.ask`.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from fedsparse.errors import ClientError
from fedsparse.methods.roles import Extras
from fedsparse.pattern import Topology
from fedsparse.wire.payload import IndexSet

__all__ = ["extra", "names", "pruned_positions"]

_Kind = TypeVar("_Kind")


def extra(extras: Extras, name: str, kind: type[_Kind]) -> _Kind:
    """The extra called `name`, of type `kind`.

    Raises:
        ClientError: there is none, or it is something else.
    """
    found = extras.get(name)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        given = "is missing" if found is None else f"is of type {type(found).__name__}"
        raise ClientError(f"the upload's {name!r} {given}; expected {kind.__name__}")
    return found


def names(found: Mapping[str, object], wanted: Sequence[str], what: str) -> None:
    """Refuses a mapping unless its names are the wanted ones; `what` is what the error calls it.

    Raises:
        ClientError: a name is missing or unasked.
    """
    odd = sorted(found.keys() ^ set(wanted))
    if odd:
        fault = "is missing" if odd[0] in wanted else "was not asked for"
        raise ClientError(f"of the upload's {what}, {odd[0]!r} {fault}")


def pruned_positions(
    extras: Extras, name: str, *, counts: Mapping[str, int], topology: Topology, kind: type[IndexSet]
) -> None:
    """Refuses an extra unless it has, for each weight with a count, up to that many of its pruned positions.

    Args:
        name: of the extra, a mapping from weights to `kind`.
        counts: most positions of each weight that was asked for; weights with a count of 0 are not answered.
        topology: what the client was sent.

    Raises:
        ClientError: it is no such mapping.
    """
    sections = extra(extras, name, dict)
    names(sections, [weight for weight, count in counts.items() if count], f"{name!r}")
    for weight in sections:
        found, pattern, most = extra(sections, weight, kind), topology[weight], counts[weight]
        if found.size != pattern.size or len(found.indices) > most:
            raise ClientError(
                f"the upload's {name!r} has {len(found.indices)} of {found.size} positions of {weight!r}; "
                f"expected at most {most} of {pattern.size}"
            )
        kept = pattern.first_kept(found.indices)
        if kept is not None:
            raise ClientError(f"the upload's {name!r} has position {kept} of {weight!r}, which is kept, not pruned")
