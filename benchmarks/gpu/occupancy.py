"""What a grid costs that does not fill the device: its bytes and instructions as if it did."""

__all__ = ["CACHE_LATENCY", "MEMORY_LATENCY", "MULTIPROCESSORS", "issued", "starved", "unevenly"]

MULTIPROCESSORS = 132
# 262 and 479 clocks, as published for this generation (arXiv 2402.13499), at 1.755 GHz.
CACHE_LATENCY, MEMORY_LATENCY = 0.15e-6, 0.27e-6


def issued(instructions: float) -> float:
    """Operations to count for instructions of single threads: each takes the slot of a multiply-add, two operations."""
    return 2.0 * instructions


def unevenly(amount: float, blocks: int) -> float:
    """An amount shared by equal blocks, as if all multiprocessors had as many of them as the busiest."""
    busiest = -(-blocks // MULTIPROCESSORS)
    return amount * busiest * MULTIPROCESSORS / blocks


def starved(moved: float, under_way: float, latency: float, rate: float) -> float:
    """Bytes that a path of `rate` bytes a second could have moved meanwhile, where only `under_way` are asked for at a
    time and each answer takes `latency` seconds: never less than `moved`."""
    return moved * max(1.0, rate * latency / under_way)
