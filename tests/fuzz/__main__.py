"""python -m tests.fuzz TARGET [--cases N] [--seed S] [--keep FOLDER]: damaged inputs, whatever comes of them.

A case may return or raise a FedsparseError. Anything else is found: another exception, more than SECONDS of processor
time, or more than MEMORY bytes beyond what the process has ever had. Inputs that were found are kept in a folder; the
one at work lies there as `running`, should the process die of it.
"""

import argparse
import json
import mmap
import resource
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from fedsparse.errors import FedsparseError
from tests.fuzz.targets import TARGETS

SECONDS = 5.0
MEMORY = 64 << 20
ADDRESS_SPACE = 4 << 30  # beyond what is mapped at the start: no case may take the machine down
LONGEST = 8 << 20


class Running:
    """The input at work, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(LONGEST)
            self._map = mmap.mmap(file.fileno(), LONGEST)

    def note(self, blob: bytes) -> None:
        self._map[: 8 + len(blob)] = len(blob).to_bytes(8, "little") + blob


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    arguments.keep.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    target = TARGETS[arguments.target]()
    for blob in target.corpus:
        target.run(blob)  # what is whole is read; that also warms up
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
    running = Running(arguments.keep / f"{arguments.target}-running")
    outcomes: Counter[str] = Counter()
    found: Counter[str] = Counter()
    start = time.perf_counter()
    with suppress(KeyboardInterrupt):  # the figures are then of what was done
        for number in range(arguments.cases):
            blob = target.mutant(rng)
            running.note(blob)
            outcome, reason = _tried(target.run, blob)
            outcomes[outcome] += 1
            if reason:
                found[reason] += 1
                if found[reason] == 1:
                    (arguments.keep / f"{arguments.target}-{arguments.seed}-{number}").write_bytes(blob)
                    print(f"case {number}: {reason}", flush=True)
    figures = {
        "target": arguments.target,
        "seed": arguments.seed,
        "corpus": len(target.corpus),
        "cases": outcomes.total(),
        "seconds": round(time.perf_counter() - start, 1),
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "found": dict(found),
    }
    print(json.dumps(figures), flush=True)
    return 1 if found else 0


def _tried(run, blob: bytes) -> tuple[str, str]:
    """What became of a case, and what was found, if anything."""
    before, clock = _most_memory(), time.process_time()
    outcome, reason = "read", ""
    try:
        run(blob)
    except FedsparseError:
        outcome = "refused"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        outcome, reason = (
            "found",
            f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"[:200],
        )
    seconds, memory = time.process_time() - clock, _most_memory() - before
    if not reason and seconds > SECONDS:
        outcome, reason = "found", f"{seconds:.0f} s"
    if not reason and memory > MEMORY:
        outcome, reason = "found", f"{memory >> 20} MiB"
    return outcome, reason


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
