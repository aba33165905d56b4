"""Batch-innermost activations: on the CPU through the binding, and on the device where there is one."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._C import _len_torch_function_stack

import fedsparse as fs
from fedsparse import _native
from fedsparse.backends import BATCH_INNERMOST, CONTIGUOUS, Case, Geometry, layout_of
from fedsparse.backends import layout as layout_of_name
from fedsparse.backends.choose import BACKENDS
from fedsparse.backends.cuda import CudaBackend
from fedsparse.backends.layout import Layout
from fedsparse.blocked import keep_blocked, leave_blocked
from fedsparse.errors import BackendError, ShapeError
from fedsparse.nn.fold import Joint
from fedsparse.pattern import Pattern
from fedsparse.testing import ProductCase, check_products
from tests.cuda.test_block import block, vector
from tests.devices import ComputesOnDevice, plain_products
from tests.plain_device import plain_device

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SIZES = [(8, 1), (8, 3), (16, 40), (24, 3, 5, 7), (32, 2, 1, 1), (200, 70), (8, 2, 30, 21)]


class Anywhere(CudaBackend):
    """Takes tensors in main memory for those of a device."""

    def refuse(self, case):
        return super().refuse(replace(case, device="cuda"))


class OnDevice(ComputesOnDevice, CudaBackend):
    pass


@pytest.fixture
def launches(where, monkeypatch):  # noqa: ARG001  there are kernels
    """Names of the conversions that were launched."""
    found, native = [], _native.extension()

    def counted(name):
        kernel = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *arguments: found.append(name) or kernel(*arguments))

    for name in ("cuda_transpose", "cuda_to_lines", "cuda_from_lines"):
        counted(name)
    return found


@pytest.fixture
def copies(monkeypatch):
    """Shapes of activations that did not lie as they had to."""
    found, of = [], Layout.of

    def counted(self, x):
        y = of(self, x)
        if y is not x:
            found.append(tuple(x.shape))
        return y

    monkeypatch.setattr(Layout, "of", counted)
    return found


@pytest.fixture
def selectable(where, monkeypatch):
    """The backend under its name, wherever tensors lie."""
    monkeypatch.setitem(BACKENDS, "cuda", Anywhere())
    return where


# ---- the layout itself
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", SIZES)
def test_there_and_back(where, launches, shape, dtype, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(where, dtype)
    y = BATCH_INNERMOST.of(x)
    assert torch.equal(y, x)
    assert BATCH_INNERMOST.holds(y)
    assert y.stride() == BATCH_INNERMOST.empty(x, shape).stride() or 1 in shape
    assert BATCH_INNERMOST.of(y) is y
    back = CONTIGUOUS.of(y)
    assert back.is_contiguous()
    assert torch.equal(back, x)
    both = shape == (8, 1)  # lies both ways
    assert launches == ["cuda_transpose"] * (0 if both or dtype == torch.float64 else 2)


def test_strides_word_for_word():
    x = BATCH_INNERMOST.empty(torch.ones(1), (8, 2, 3, 5), torch.bfloat16)
    assert (x.shape, x.dtype, x.stride()) == ((8, 2, 3, 5), torch.bfloat16, (1, 120, 40, 8))
    assert BATCH_INNERMOST.empty(x, (16, 4)).stride() == (1, 16)
    assert CONTIGUOUS.empty(x, (16, 4)).stride() == (4, 1)


@pytest.mark.parametrize("layout", [BATCH_INNERMOST, CONTIGUOUS], ids=["innermost", "contiguous"])
def test_other_strides_are_copied(where, layout, launches, generator):
    """What lies neither way: pictures with channels last, every other channel, a gradient that is one number."""
    x = torch.randn(8, 6, 3, 4, generator=generator).to(where)
    others = x.contiguous(memory_format=torch.channels_last), x[:, ::2], x[:, :1, :1, :1].expand(8, 6, 3, 4), x[::2]
    for other in others:
        y = layout.of(other)
        assert layout.holds(y)
        assert torch.equal(y, other)
    assert launches == []


def test_who_chooses():
    case = Case((5, 4), (8, 4), 3)
    for name in BACKENDS:
        assert layout_of_name(name, case) is (BATCH_INNERMOST if name == "cuda" else CONTIGUOUS)
        assert layout_of_name(name, replace(case, input=(9, 4))) is CONTIGUOUS
    assert layout_of_name("auto", case) is CONTIGUOUS
    with pytest.raises(BackendError, match=r"^unknown backend 'metal'; expected one of auto, cpu, cuda"):
        layout_of_name("metal", case)


# ---- products
def element(shape, size, geometry=None, *, density=0.3) -> ProductCase:
    pattern = Pattern.from_mask(torch.rand(shape, generator=torch.Generator().manual_seed(4)) < density)
    return ProductCase(Case(shape, size, pattern.nnz, geometry), pattern, True, 3)


SAME = Geometry(padding=(1, 1))
PRODUCTS = {
    "plain": element((6, 5, 3, 3), (1, 5, 9, 10), SAME),
    "strided": element((5, 4, 3, 2), (1, 4, 11, 6), Geometry((2, 3), (2, 1))),
    "dilated": element((4, 3, 3, 3), (1, 3, 12, 9), Geometry((1, 2), (2, 2), (2, 3))),
    "grouped": element((6, 2, 3, 3), (1, 4, 5, 7), Geometry((1, 1), (1, 0), groups=2)),
    "depthwise": element((7, 1, 3, 3), (1, 7, 4, 4), Geometry((2, 2), (1, 1), groups=7), density=0.6),
    "one pixel": element((5, 6, 1, 1), (1, 6, 1, 1), Geometry()),
    "linear": element((33, 70), (1, 70)),
    "blocks": block(16, (32, 16, 3, 3), (1, 16, 5, 9), SAME).product,
    "blocks, strided": block(32, (32, 64, 3, 3), (1, 64, 7, 5), Geometry((2, 1), (1, 1)), density=0.2).product,
    "vectors, grouped": vector(8, (32, 9, 3, 1), (1, 18, 6, 5), Geometry((1, 2), (1, 0), groups=2)).product,
    "vectors, linear": vector(16, (48, 50), (1, 50)).product,
}


def batch_of(product, batch, dtype=torch.float32):
    case = replace(product.case, input=(batch, *product.case.input[1:]), dtype=dtype)
    return replace(product, case=case)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_agree_with_float64(where, name, dtype):
    backend = CudaBackend() if where == "cpu" else OnDevice()
    for batch in (1, 7, 8, 9, 16, 24, 33):
        check_products(backend, batch_of(PRODUCTS[name], batch, dtype), tolerance=DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_both_layouts_give_the_same_bits(where, name, dtype):
    """A batch that fills its lines, and with one sample more, whose gradient is zero, in lines that are filled up."""
    backend = CudaBackend()
    for batch in (8, 16, 24):
        more = batch_of(PRODUCTS[name], batch + 1, dtype)
        fewer, pattern = batch_of(more, batch, dtype), more.pattern.to(where)
        x, values, bias, grad = (None if t is None else t.to(where) for t in more.operands())
        grad[batch:] = 0

        def results(product, count, *, x=x, values=values, bias=bias, grad=grad, pattern=pattern):
            case = product.case
            y = backend.forward(x[:count], values, pattern, bias, case)
            found = backend.backward(grad[:count], x[:count], values, pattern, (True, True), case)
            lies = layout_of(backend, case)
            assert lies.holds(y)
            assert lies.holds(found.x)
            return y, found.x, found.values

        y, grad_x, grad_values = results(more, batch + 1)
        for a, b in zip(results(fewer, batch), (y[:batch], grad_x[:batch], grad_values), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["strided", "linear", "blocks", "vectors, linear"])
def test_what_lies_right_is_read_where_it_is(where, name, launches):
    """And gives what its contiguous copy gives; what is not aligned to 16 bytes is copied."""
    product, backend = batch_of(PRODUCTS[name], 16), CudaBackend()
    case, pattern = product.case, product.pattern.to(where)
    x, values, _, grad = (None if t is None else t.to(where) for t in product.operands())

    def results(x, grad):
        y = backend.forward(x, values, pattern, None, case)
        return [y, *backend.backward(grad, x, values, pattern, (True, True), case)]

    wanted = results(x, grad)
    assert launches == ["cuda_transpose"] * 3
    launches.clear()
    laid = [BATCH_INNERMOST.of(t) for t in (x, grad)]
    launches.clear()
    found = results(*laid)
    shifted = torch.empty(x.numel() + 1, device=where)[1:].view(*x.shape[1:], 16).movedim(-1, 0).copy_(x)
    assert BATCH_INNERMOST.of(shifted) is shifted
    assert shifted.data_ptr() % 16
    also = results(shifted, laid[1])
    assert launches == []
    for a, b, c in zip(found, wanted, also, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# ---- ops
OPS = {
    "linear": ((5, 7), (7,), ()),
    "conv2d": ((3, 2, 3, 3), (2, 5, 4), (1, 2, 1, 1, 1, 1, 1)),
    "grouped": ((4, 2, 3, 1), (4, 4, 3), (1, 1, 1, 0, 1, 1, 2)),
}


@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(selectable, name, batch, generator):
    """Fakes tell the strides of both layouts."""
    (shape, size, geometry), names = OPS[name], torch.ops.fedsparse
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < 0.5).to(selectable)
    x, values, bias = (
        torch.randn(n, generator=generator).to(selectable).requires_grad_()
        for n in ((batch, *size), (pattern.nnz,), shape[:1])
    )
    weight = list(pattern.index), list(shape), list(geometry), "cuda"
    torch.library.opcheck(names.product.default, (x, values, bias, *weight))
    y = names.product(x, values, None, *weight).detach()
    assert BATCH_INNERMOST.holds(y) == (batch == 8)
    assert y.is_contiguous() == (batch != 8)
    grad, one, given = torch.randn_like(y), torch.ones(1, device=selectable).expand(y.shape), x.detach()
    for slope, source, *want in ((grad, BATCH_INNERMOST.of(given), True, True), (one, given, True, False)):
        arguments = slope, source, values.detach(), *want, *weight
        torch.library.opcheck(names.product_backward.default, arguments)
    torch.library.opcheck(names.topk_pruned.default, (grad, BATCH_INNERMOST.of(given), 3, *weight))


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_for_both_layouts(selectable, compiler, generator):
    model, x = network(selectable), torch.randn(9, 3, 6, 5, generator=generator).to(selectable)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for rows in (8, 8, 9, 1):
        expected = model(x[:rows])
        y = compiled(x[:rows])
        torch.testing.assert_close(y, expected)
        y.square().mean().backward()
    torch.compiler.reset()


# ---- networks
def network(where, norm=nn.Identity):
    torch.manual_seed(2)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), norm(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4)),
    )
    model = leave_blocked(fs.sparsify(model, 0.4, distribution="uniform", exclude="none")).to(where)
    fs.set_backend(model, "cuda")
    return model


def trained(model, x):
    """Output and gradients of a step, of the input as well."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def test_nothing_is_converted_between_sparse_layers(selectable, copies, generator):
    model = network(selectable)
    x = torch.randn(16, 3, 6, 5, generator=generator).to(selectable)
    laid = BATCH_INNERMOST.of(x)
    copies.clear()
    found = trained(model, laid)
    assert copies == []
    assert BATCH_INNERMOST.holds(found[0])
    assert BATCH_INNERMOST.holds(found[1])
    again = trained(model, x)
    assert copies == [tuple(x.shape)] * 2  # for the output, and for the gradient of the first layer's values
    fs.set_backend(model, "masked")
    with plain_products():
        plain = trained(model, x)
    for a, b, c in zip(found, again, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("around", [keep_blocked, leave_blocked])
def test_norms_that_hold_little_keep_the_layout(selectable, around, copies, generator):
    """Their activations are pruned as the ordinary tensor is, which takes copies of them, and only of them."""
    if selectable != "cpu":
        pytest.skip("plain torch stands for the kernels of a device")
    model = around(network(selectable, nn.BatchNorm2d))
    x = torch.randn(8, 3, 6, 5, generator=generator)
    wanted, laid = trained(model, x), BATCH_INNERMOST.of(x)
    for share, dtype in ((1.0, None), (0.5, torch.bfloat16)):
        fs.nn.prune_activations(model, share, dtype=dtype)
        copies.clear()
        with plain_device() as kernels:
            found = trained(model, laid)
        assert kernels.calls["norm and relu"] >= 2
        assert _len_torch_function_stack() == 0
        pruned = [(8, 3, 6, 5), (8, 6, 6, 5), (8, 32), (8, 10)]
        assert BATCH_INNERMOST.holds(found[0])
        assert BATCH_INNERMOST.holds(found[1])
        assert set(copies) <= set(pruned)
        if share == 1:
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("around", [keep_blocked, leave_blocked])
def test_fused_norms_keep_the_layout(selectable, around, copies, generator):
    if selectable != "cpu":
        pytest.skip("plain torch stands for the kernels of a device")
    model = around(network(selectable, nn.BatchNorm2d))
    x = torch.randn(8, 3, 6, 5, generator=generator)
    wanted, laid = trained(model, x), BATCH_INNERMOST.of(x)
    fs.nn.fuse_norms(model)
    copies.clear()
    with plain_device() as kernels:
        found = trained(model, laid)
    assert kernels.calls["norm and relu"] == 2
    assert copies == []
    assert _len_torch_function_stack() == 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_batch_norms_keep_the_layout(selectable, copies, generator):
    """In training and after it; statistics and results are those of contiguous tensors."""
    model = keep_blocked(network(selectable, nn.BatchNorm2d))
    plain = leave_blocked(copy.deepcopy(model))
    x = torch.randn(16, 3, 6, 5, generator=generator).to(selectable)
    laid = BATCH_INNERMOST.of(x)
    wanted = trained(plain, x)
    copies.clear()
    found = trained(model, laid)
    assert copies == []
    for a, b in zip([*found, *model.buffers()], [*wanted, *plain.buffers()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    y = model.eval()(laid)
    assert copies == []
    torch.testing.assert_close(y, plain.eval()(x), rtol=1e-4, atol=1e-4)
    assert _len_torch_function_stack() == 0


def test_a_failed_forward_pass_leaves_nothing_behind(selectable):
    model = keep_blocked(network(selectable))
    with pytest.raises(ShapeError):
        model(torch.zeros(8, 2, 6, 5, device=selectable))
    assert _len_torch_function_stack() == 0


def test_folded_networks(selectable, copies, generator):
    """Several networks' channels side by side compute what each does by itself, and nothing is converted either."""
    one, other = network(selectable), network(selectable)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5).add_(0.1)
    x = torch.randn(2, 8, 3, 6, 5, generator=generator).to(selectable)
    wanted = one(x[0]), other(x[1])
    gradients = torch.autograd.grad(sum(y.square().sum() for y in wanted), [*one.parameters(), *other.parameters()])
    joint, stacked = Joint([one, other]), x.transpose(0, 1).flatten(1, 2)
    laid = BATCH_INNERMOST.of(stacked)
    copies.clear()
    outputs = joint([laid[:, :3], laid[:, 3:]])
    joint.backward(sum(y.square().sum() for y in outputs))
    assert set(copies) <= {tuple(stacked.shape), (8, 8, 1, 1)}  # where the networks' own tensors are joined
    for a, b in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for parameter, wanted_grad in zip([*one.parameters(), *other.parameters()], gradients, strict=True):
        torch.testing.assert_close(parameter.grad, wanted_grad, rtol=1e-4, atol=1e-4)


def test_the_largest_pruned_gradients_are_those_of_contiguous_tensors(selectable):
    product = batch_of(PRODUCTS["plain"], 8)
    x, _, _, grad = (None if t is None else t.to(selectable) for t in product.operands(integers=True))
    weight = list(product.pattern.to(selectable).index), list(product.case.shape), [1, 1, 1, 1, 1, 1, 1], "cuda"
    wanted = fs.ops.topk_pruned(grad, x, 20, *weight)
    found = fs.ops.topk_pruned(BATCH_INNERMOST.of(grad), BATCH_INNERMOST.of(x), 20, *weight)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
