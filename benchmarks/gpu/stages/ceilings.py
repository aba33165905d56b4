"""What the device can do at most: copies, dense products, shared memory, launches."""

import ctypes
from collections.abc import Iterator
from dataclasses import asdict

import torch

from benchmarks.gpu.cases import PRECISIONS
from benchmarks.gpu.context import Context
from benchmarks.gpu.record import Row
from benchmarks.gpu.stages.build import PROBES
from benchmarks.gpu.timing import Call, replayed, seconds_of

__all__ = ["again", "run"]

_REPEATS = 15
_SIDE = 8192
_LAUNCHES = 200
_ROUNDS = 4096


def run(context: Context) -> None:
    """Products first: the bf16 one is repeated at the end of a run, and shows a clock that has fallen."""
    context.needs_gpu()
    for measure in (_products, _copies, _shared, _launches, _triton_launches):
        if context.left() < 1:
            context.note(f"{measure.__name__.strip('_')}: no time left")
            continue
        try:
            for row in measure():
                context.row(row)
        except Exception as error:  # one ceiling less is no reason to lose the others
            context.note(f"{measure.__name__.strip('_')}: {type(error).__name__}: {error}")


def again(_first: Row) -> float:
    """Seconds of the first row's case now."""
    return float(next(_products())["seconds"]["median"])


def _products() -> Iterator[Row]:
    for name in ("bf16", "tf32", "fp32"):
        precision = PRECISIONS[name]
        precision.set()
        a, b = (torch.randn(_SIDE, _SIDE, device="cuda").to(precision.dtype) for _ in range(2))
        row = _timed(f"GEMM {_SIDE} {name}", lambda a=a, b=b: a @ b, 2.0 * _SIDE**3, "FLOP/s")  # type: ignore[misc]
        yield {**row, "repeat": name == "bf16"}


def _copies() -> Iterator[Row]:
    for name, count in (("device memory copy", 1 << 30), ("L2 copy", 4 << 20)):
        source = torch.randn(count // 4, device="cuda")
        target = torch.empty_like(source)

        def copy(source: torch.Tensor = source, target: torch.Tensor = target) -> object:
            return [target.copy_(source) for _ in range(20)]

        yield _timed(name, replayed(copy), 20.0 * 2 * count, "B/s")


def _shared() -> Iterator[Row]:
    probes, out = _probes(), torch.zeros(256, device="cuda")
    blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    probes.probe_shared_bytes.restype = ctypes.c_int64
    count = float(probes.probe_shared_bytes(blocks, _ROUNDS))
    yield _timed("shared memory reads", lambda: _checked(probes.probe_shared(_at(out), blocks, _ROUNDS, _stream())),
                 count, "B/s")  # fmt: skip


def _launches() -> Iterator[Row]:
    probes, out = _probes(), torch.zeros(32, device="cuda")
    for overlapped in (0, 1):

        def launch(overlapped: int = overlapped) -> object:
            return _checked(probes.probe_launches(_at(out), _LAUNCHES, overlapped, _stream()))

        how = ", overlapped (PDL)" if overlapped else ""
        yield _timed(f"empty kernels, stream{how}", launch, float(_LAUNCHES), "1/s")
        yield _timed(f"empty kernels, graph{how}", replayed(launch), float(_LAUNCHES), "1/s")


def _triton_launches() -> Iterator[Row]:
    from fedsparse.kernels.flat_optimizer import sgd_momentum_

    flat = [[torch.zeros(1024, device="cuda")] for _ in range(3)]

    def launch() -> None:
        for _ in range(_LAUNCHES):
            sgd_momentum_(*flat, lr=0.1, momentum_factor=0.9, weight_decay=0.0, dampening=0.0, nesterov=False,
                          first_step=False)  # fmt: skip

    yield _timed("small Triton kernels, stream", launch, float(_LAUNCHES), "1/s")
    yield _timed("small Triton kernels, graph", replayed(launch), float(_LAUNCHES), "1/s")


def _timed(name: str, work: Call, amount: float, unit: str) -> Row:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    found = seconds_of(work, repeats=_REPEATS, cuda=True)
    return {"what": name, "seconds": asdict(found), "rate": amount / found.median, "unit": unit}


# ---- the probes
def _probes() -> ctypes.CDLL:
    if not PROBES.exists():
        raise FileNotFoundError(f"{PROBES} is missing; run the stage build first")
    return ctypes.CDLL(str(PROBES))


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _checked(status: int) -> int:
    if status:
        raise RuntimeError(f"a probe failed with CUDA status {status}")
    return status
