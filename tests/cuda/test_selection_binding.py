"""Selection kernels through the binding, with torch tensors: on the CPU, and on the device where there is one."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsparse import _native
from fedsparse._native import row_list, weight_rows
from fedsparse.backends.activation import Pruning, plain_pack
from fedsparse.pattern import Pattern
from tests.cuda.products import BFLOAT16
from tests.cuda.test_block import CASES


class Target(NamedTuple):
    """A compiled module and the device that its kernels run on."""

    native: ModuleType
    device: str

    def __call__(self, name: str, *arguments: object) -> None:
        """Calls a function with the addresses of tensors and the current stream."""
        stream = torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0
        found = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        assert getattr(self.native, name)(*found, stream) == 0

    def room(self, name: str, *arguments: object) -> Tensor:
        """The workspace that a function asks for."""
        return self.empty(getattr(self.native, name)(*arguments), torch.uint8)

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device=self.device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def target(request) -> Target:
    if request.param == "cpu":
        return Target(request.getfixturevalue("binding"), "cpu")
    if not torch.cuda.is_available() or not _native.extension().built_with_cuda:
        pytest.skip("no CUDA device, or an extension built without CUDA")
    return Target(_native.extension(), "cuda")


def drawn(target: Target, draw: Callable[..., Tensor], *size: int) -> Tensor:
    return draw(*size, generator=torch.Generator().manual_seed(3)).to(target.device)


def test_smallest_values_of_two_layers(target):
    values = drawn(target, torch.randn, 9000)
    starts, counts = torch.tensor([0, 300, 9000]), torch.tensor([0, 40, 5040])
    numbers = target.empty(5040, torch.int64)
    room = target.room("cuda_smallest_size", 2, 9000)
    target(
        "cuda_smallest", values, 2, 9000, starts.to(target.device), counts.to(target.device), numbers, room
    )  # fmt: skip
    for layer, found in zip(values.split([300, 8700]), numbers.split([40, 5000]), strict=True):
        order = layer.abs().sort(stable=True).indices[: len(found)]
        assert torch.equal(found, order.sort().values)


def test_packed_activations(target):
    x = drawn(target, torch.randn, 5, 7, 31, 9).relu()
    n, k = x.numel(), Pruning(0.3, "global").count(x.numel())
    groups = -(-n // 512)
    bits, starts = target.empty(64 * groups, torch.uint8), target.empty(groups + 1, torch.int32)
    target("cuda_mark_largest", x, 1, n, 0, k, bits, starts, target.room("cuda_mark_largest_size", 1, n))
    values, back = target.empty(int(starts[-1]), torch.bfloat16), torch.empty_like(x)
    target("cuda_pack", x, n, 0, bits, starts, values, 1)
    target("cuda_unpack", values, 1, n, bits, starts, back, 0)
    plain = plain_pack(x, Pruning(0.3, "global", torch.bfloat16))
    assert torch.equal(bits[: len(plain.bits)], plain.bits)
    assert torch.equal(values, plain.values)
    assert torch.equal(back[back != 0], values[values != 0].float())


def test_changed_patterns(target):
    """Two weights at once: what may be grown, new rows, lists by input, and values that move along."""
    given = [Pattern.from_mask(drawn(target, torch.rand, *shape).cpu() < 0.3) for shape in ((12, 10, 3, 3), (2, 70000))]
    rows, tasks = ([] for _ in range(2))
    for old in given:
        pruned = (~old.mask()).view(-1).nonzero().squeeze(1)
        dropped, grown = torch.arange(1, old.nnz, 3), pruned[::5].contiguous()
        wanted = old.exchanged(dropped, grown)
        lists = [t.to(target.device) for t in (old.row_start, old.column, dropped, grown)]
        new = [target.empty(len(t), t.dtype) for t in wanted.index]
        rows.append(weight_rows(old.shape, *lists[:2]))
        tasks.append((old, wanted, lists, new))
    faults = torch.zeros(2, dtype=torch.int32, device=target.device)
    proposed = [(view, (t.data_ptr(), len(t))) for view, t in zip(rows, (tasks[0][2][3], tasks[0][2][2]), strict=True)]
    target("cuda_check_growth", proposed, faults)
    assert faults.tolist()[0] == 0
    assert faults.tolist()[1] == 4  # numbers of values, some of which are kept

    sized = [[(t.data_ptr(), len(t)) for t in lists[2:]] for _, _, lists, _ in tasks]
    target("cuda_exchange", [
        (view, *pair, (new[0].data_ptr(), new[1].data_ptr()))
        for view, pair, (*_, new) in zip(rows, sized, tasks, strict=True)
    ])  # fmt: skip
    now = [weight_rows(old.shape, *new[:2]) for old, _, _, new in tasks]
    target("cuda_list_by_input", [
        (view, new[2].data_ptr(), *((t.data_ptr(), t.dtype == torch.int32) for t in new[3:]))
        for view, (*_, new) in zip(now, tasks, strict=True)
    ])  # fmt: skip
    for _, wanted, _, new in tasks:
        assert all(torch.equal(a.cpu().int(), b.int()) for a, b in zip(new, wanted.index, strict=True))

    values = [drawn(target, torch.randn, old.nnz) for old in given]
    moved = [[target.empty(wanted.nnz, kind) for kind in (torch.float32, torch.int32)] for _, wanted, _, _ in tasks]
    target("cuda_carry_words", [
        (old, new, to[1].data_ptr(), [(given_values.data_ptr(), to[0].data_ptr(), 0)])
        for old, new, to, given_values in zip(rows, now, moved, values, strict=True)
    ])  # fmt: skip
    for (old, wanted, _, _), its, (found, places) in zip(tasks, values, moved, strict=True):
        assert torch.equal(found.cpu(), old.moved(its.cpu(), wanted))
        assert torch.equal(places.cpu(), old.carry_to(wanted))


def new_list(target: Target, problem: tuple, width: int, rows: tuple, sizes: tuple[int, int, int]) -> tuple:
    """What the binding takes for a list, and its tensors."""
    kinds = (torch.int32, torch.uint16, torch.int32)
    found = [target.empty(*kind) for kind in zip(sizes, kinds, strict=True)]
    return (*problem, width, rows, tuple(t.data_ptr() for t in found)), found


@pytest.mark.parametrize("name", ["strides", "vectors of 16", "a linear layer of blocks of 32"])
def test_strips_and_all_lists_at_once(target, shim, name):
    """Bit for bit those of the references: strips and taps of both directions in one table."""
    case = CASES[name]
    held, pattern, native = case.stored(BFLOAT16), case.product.pattern, target.native
    old = [t.to(target.device) for t in (pattern.row_start, pattern.column)]
    rows, host = row_list(*old), torch.empty(native.block_strips_table_size(1), dtype=torch.uint8)
    native.block_strips_table([((*pattern.shape[:2], math.prod(pattern.shape[2:])), rows)], host.data_ptr())
    there = host.to(target.device)
    target("cuda_block_strips", 1, host, there)
    alike = there[:8].view(torch.int32).tolist()
    views, found, wanted = [], [], []
    for backward in (False, True):
        problem, width = (held.shape, backward, BFLOAT16), case.widths[backward]
        assert native.block_width(*problem, *alike) == width
        room = native.block_room(*problem, width, pattern.nnz, *alike)
        strips = native.block_start_size(*problem, width), room * 16, room * 16 * width
        taps = native.csr16_start_size(*problem), pattern.nnz, pattern.nnz
        for of_strips, sizes in ((width, strips), (0, taps)):
            view, tensors = new_list(target, problem, of_strips, rows, sizes)
            views.append(view)
            found.append(tensors)
        wanted += [held.lines(shim, backward=backward), held.list(shim, backward)]
    host = torch.empty(native.lists_table_size(views), dtype=torch.uint8)
    there = target.empty(len(host), torch.uint8)
    assert native.lists_table(views, host.data_ptr(), there.data_ptr()) == 0
    target("cuda_lists", host, there.copy_(host))
    for ours, theirs in zip(found, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.cpu().numpy()[: len(other)], other)


def test_a_dense_gradient(target):
    x, grad = drawn(target, torch.randn, 8, 4, 9, 8), drawn(target, torch.randn, 8, 6, 5, 8)
    sizes = (8, 4, 9, 8, 6, 3, 3, 2, 1, 1, 1, 1, 1, 1)
    found = target.empty(6 * 4 * 9, torch.float32).view(6, 4, 3, 3)
    room = target.room("cuda_dense_gradient_size", sizes, 0)
    slope, lines = (tensor.movedim(0, -1).contiguous() for tensor in (grad, x))
    target("cuda_dense_gradient", sizes, 0, False, slope, lines, found, room)
    wanted = torch.nn.grad.conv2d_weight(x.double(), found.shape, grad.double(), (2, 1), 1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("counted_there", [False, True])
def test_adamw(target, counted_there):
    sizes = 1000, 5
    values, grad = ([drawn(target, torch.randn, n) for n in sizes] for _ in range(2))
    weights, scale = [torch.nn.Parameter(part.double()) for part in values], torch.full((1,), 0.5, device=target.device)
    means, counters = torch.zeros(2, 2, 1000, device=target.device), torch.zeros(2, device=target.device)
    optimizer = torch.optim.AdamW(weights, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    tables = [[tensor.data_ptr() for tensor in field] for field in (values, grad, *means)]
    for step in (1, 2):
        counts = ([counter.data_ptr() for counter in counters], []) if counted_there else ([], [step, step])
        target("cuda_adamw", *tables, list(sizes), *counts, scale, 0.01, 0.8, 0.9, 1e-6, 0.1)
        for weight, part in zip(weights, grad, strict=True):
            weight.grad = 0.5 * part.double()
        optimizer.step()
    for found, weight in zip(values, weights, strict=True):
        torch.testing.assert_close(found.double(), weight.detach(), rtol=2e-6, atol=2e-6)
    assert counters.tolist() == [2.0 * counted_there] * 2
