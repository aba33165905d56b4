"""The ops as torch sees them: schemas, fakes, derivatives, compilation, autocast, refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

import fedsparse as fs
from fedsparse import ops
from fedsparse.errors import BackendError, DoubleBackwardError, ShapeError
from fedsparse.nn import SparseConv2d, SparseLinear
from fedsparse.ops import products
from fedsparse.pattern import Pattern

pytestmark = pytest.mark.usefixtures("poisoned_memory", "one_thread")

# Shape of the weight, shape of the input, and stride, padding, dilation (vertical, horizontal) and groups.
GEOMETRIES = {
    "linear": ((5, 7), (3, 7), ()),
    "linear, one by one": ((1, 1), (1, 1), ()),
    "plain": ((3, 2, 3, 3), (2, 2, 5, 4), (1, 1, 1, 1, 1, 1, 1)),
    "strided": ((3, 2, 2, 3), (2, 2, 5, 6), (2, 3, 0, 2, 1, 1, 1)),
    "dilated": ((2, 3, 3, 2), (1, 3, 6, 5), (1, 2, 2, 0, 2, 3, 1)),
    "grouped": ((4, 2, 3, 1), (2, 4, 4, 3), (1, 1, 1, 0, 1, 1, 2)),
    "depthwise": ((3, 1, 3, 3), (2, 3, 4, 4), (2, 2, 1, 1, 1, 1, 3)),
}
BACKENDS = ["reference", "masked", "cpu"]


@pytest.fixture
def one_thread():
    torch.set_num_threads(1)


def make(name, generator, *, dtype=torch.float32, density=0.5):
    """x, values and bias as leaves, and the weight's index, shape and geometry."""
    shape, size, geometry = GEOMETRIES[name]
    pattern = Pattern.from_mask(torch.rand(shape, generator=generator) < density)

    def leaf(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return (leaf(*size), leaf(pattern.nnz), leaf(shape[0])), (list(pattern.index), list(shape), list(geometry))


# ---- what torch checks by itself
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_opcheck(name, backend, generator):
    (x, values, bias), weight = make(name, generator)
    names = torch.ops.fedsparse
    torch.library.opcheck(names.product.default, (x, values, bias, *weight, backend))
    torch.library.opcheck(names.product.default, (x, values, None, *weight, backend))
    x, values = x.detach(), values.detach()
    grad = torch.randn_like(names.product(x, values, None, *weight, backend))
    for want in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(names.product_backward.default, (grad, x, values, *want, *weight, backend))
    for k in (0, 3, 10_000):
        torch.library.opcheck(names.topk_pruned.default, (grad, x, k, *weight, backend))


@pytest.mark.parametrize("backend", ["reference", "masked"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_in_float64(name, backend, generator):
    leaves, weight = make(name, generator, dtype=torch.float64)
    assert gradcheck(lambda x, v, b: ops.product(x, v, b, *weight, backend), leaves, fast_mode=False)


@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double precision:UserWarning")
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_in_float32(name, generator):
    """The product is linear in each operand: central differences of any width are exact but for rounding."""
    leaves, weight = make(name, generator)
    assert gradcheck(lambda x, v, b: ops.product(x, v, b, *weight, "cpu"), leaves, eps=0.5, atol=1e-4, rtol=1e-4)


# ---- which gradients are computed
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_one_gradient_at_a_time(wanted, backend, generator):
    leaves, weight = make("strided", generator)
    everything = torch.autograd.grad(ops.product(*leaves, *weight, backend).square().sum(), leaves)
    alone = [leaf.detach().requires_grad_(flag) for leaf, flag in zip(leaves, wanted, strict=True)]
    ops.product(*alone, *weight, backend).square().sum().backward()
    for leaf, flag, grad in zip(alone, wanted, everything, strict=True):
        assert (leaf.grad is not None) == flag
        if flag:
            torch.testing.assert_close(leaf.grad, grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["linear", "plain"])
def test_no_memory_order_matters(name, backend, generator):
    """Transposed inputs, values with gaps and expanded gradients give what contiguous ones give."""
    (x, values, bias), weight = make(name, generator)
    y = ops.product(x, values, bias, *weight, backend)
    plain = torch.autograd.grad(y.sum(), (x, values))
    odd_x = x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    odd_values = torch.stack([values.detach(), values.detach()], 1)[:, 0].requires_grad_()
    assert not odd_x.is_contiguous()
    assert not odd_values.is_contiguous()
    odd_y = ops.product(odd_x, odd_values, bias, *weight, backend)
    assert torch.equal(odd_y, y)
    odd = torch.autograd.grad(odd_y.sum(), (odd_x, odd_values))  # the sum's gradient is one number, expanded
    assert all(torch.equal(a, b) for a, b in zip(odd, plain, strict=True))


def test_bias_with_gaps(generator):
    (x, values, bias), weight = make("linear", generator)
    gaps = torch.stack([bias.detach(), bias.detach() + 1], 1)[:, 0]
    assert not gaps.is_contiguous()
    y = ops.product(x, values, gaps, *weight, "cpu")
    assert torch.equal(y, ops.product(x, values, bias, *weight, "cpu"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["linear", "strided"])
def test_empty_batch_and_empty_pattern(name, backend, generator):
    (x, values, bias), (index, shape, geometry) = make(name, generator, density=0.0)
    assert values.numel() == 0
    y = ops.product(x, values, bias, index, shape, geometry, backend)
    assert torch.equal(y, bias.view(-1, *[1] * (y.ndim - 2)).expand_as(y))
    grads = torch.autograd.grad(y.sum(), (x, values, bias))
    assert torch.equal(grads[0], torch.zeros_like(x))
    assert grads[1].shape == (0,)
    if backend != "cpu":
        (x, values, bias), weight = make(name, generator)
        y = ops.product(x[:0], values, bias, *weight, backend)
        assert y.shape[0] == 0
        grads = torch.autograd.grad(y.sum(), (values, bias))
        assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_second_derivatives_are_refused(name, backend, generator):
    (x, values, bias), weight = make(name, generator)
    y = ops.product(x, values, bias, *weight, backend)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(DoubleBackwardError, match=r"create_graph=True.*densify\(model\)"):
        grad.sum().backward()


# ---- top-k
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_topk_is_cut_to_what_is_pruned(name, backend, generator):
    (x, values, _), weight = make(name, generator)
    grad = torch.ones_like(ops.product(x, values, None, *weight, backend))
    pruned = torch.Size(weight[1]).numel() - values.numel()
    positions, gradients = ops.topk_pruned(grad, x.detach(), pruned + 5, *weight, backend)
    assert positions.dtype == torch.int64
    assert positions.shape == gradients.shape == (pruned,)
    assert len(set(positions.tolist())) == pruned
    assert gradients.abs().tolist() == sorted(gradients.abs().tolist(), reverse=True)


# ---- refusals
@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("linear", (3, 6), r"input of shape \(3, 6\) does not fit a weight of shape \(5, 7\); expected \(batch, 7\)"),
        ("linear", (2, 3, 7), r"expected \(batch, 7\)"),
        ("plain", (2, 3, 5, 4), r"does not fit .* expected \(batch, 2, height, width\)"),
        ("plain", (2, 5, 4), r"expected \(batch, 2, height, width\)"),
        ("grouped", (2, 2, 4, 3), r"expected \(batch, 4, height, width\)"),
        ("strided", (2, 2, 1, 6), r"\(1, 6\) pixels is smaller than the kernel \(2, 3\) reaches"),
        ("dilated", (1, 3, 6, 3), r"\(6, 3\) pixels is smaller than the kernel \(3, 2\) reaches"),
    ],
)
@pytest.mark.parametrize("fake", [False, True])
def test_misfit_inputs(name, size, words, fake, generator):
    (_, values, bias), weight = make(name, generator)
    x = torch.ones(size)
    if fake:  # shapes are refused while tracing too
        mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
        with mode, pytest.raises(ShapeError, match=words):
            ops.product(mode.from_tensor(x), values, bias, *weight, "auto")
        return
    with pytest.raises(ShapeError, match=words):
        ops.product(x, values, bias, *weight, "auto")


def test_misfit_values(generator):
    (x, values, bias), weight = make("linear", generator)
    with pytest.raises(ShapeError, match=rf"keeps {len(values)} weights, got values of shape \({len(values) - 1},\)"):
        ops.product(x, values[1:], bias, *weight, "auto")
    with pytest.raises(ShapeError, match=r"torch\.float64, cpu.*must share dtype and device; .*\.to\(\.\.\.\)"):
        ops.product(x, values.double(), bias, *weight, "auto")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spoil", [lambda b: b[1:], lambda b: b[:1], lambda b: b.double(), lambda b: b[None]])
def test_misfit_bias(spoil, backend, generator):
    (x, values, bias), weight = make("linear", generator)
    with pytest.raises(ShapeError, match="bias"):
        ops.product(x, values, spoil(bias), *weight, backend)


def test_backend_by_name(generator):
    (x, values, bias), weight = make("linear", generator, dtype=torch.float64)
    with pytest.raises(BackendError, match=r"'cpu' cannot compute this linear: cpu kernels compute float32"):
        ops.product(x, values, bias, *weight, "cpu")
    with pytest.raises(BackendError, match="unknown backend 'gpu'"):
        ops.product(x, values, bias, *weight, "gpu")


# ---- autocast and compilation
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_autocast_leaves_float32(layer, generator):
    model, x = _model(generator)
    part, example = (model[0], x) if layer == "conv2d" else (model[4], torch.ones(2, 96))
    plain = part(example)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = part(example)
        assert part(example.bfloat16()).dtype == torch.float32
    assert y.dtype == torch.float32
    assert torch.equal(y, plain)
    y.sum().backward()
    assert part.values.grad.dtype == torch.float32


def test_autocast_spares_float64(generator):
    model, x = _model(generator)
    part = model.double()[0]
    fs.set_backend(part, "reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert part(x.double()).dtype == torch.float64


def test_autocast_on_a_device_computes_in_its_dtype():
    assert products.autocast_dtype("cuda") is None
    torch.set_autocast_enabled("cuda", True)
    try:
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        assert products.autocast_dtype("cuda") == torch.bfloat16
        assert products.autocast_dtype("cpu") is None
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)


def test_operands_are_cast_with_their_history(generator, monkeypatch):
    """As on a device: activations of 16 bits, parameters and their gradients of 32."""
    part, x = _model(generator)[0][0], torch.randn(4, 3, 4, 4, generator=generator)
    twin = copy.deepcopy(part).bfloat16()
    monkeypatch.setattr(products, "autocast_dtype", lambda _device: torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = part(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    expected = twin(x.bfloat16())
    expected.float().sum().backward()
    assert torch.equal(y, expected)
    for p, q in zip(part.parameters(), twin.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert torch.equal(p.grad, q.grad.float())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["masked", "cuda", "triton"])
def test_autocast_on_a_device(generator, backend, dtype):
    model, x = _model(generator)
    layer = fs.set_backend(model[0].cuda(), backend)
    with torch.autocast("cuda", dtype=dtype):
        y = layer(x.cuda())
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_without_a_break_under_autocast(compiler, generator):
    model, x = _model(generator)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model).train(), fullgraph=True, backend=compiler)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(x), model.train()(x))
    torch.compiler.reset()


def _model(generator):
    """Two sparse layers with batch norm between, and an input."""
    conv, linear = nn.Conv2d(3, 6, 3, padding="same"), nn.Linear(96, 5)
    model = nn.Sequential(
        SparseConv2d.from_dense(conv, torch.rand(conv.weight.shape, generator=generator) < 0.3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear.from_dense(linear, torch.rand(linear.weight.shape, generator=generator) < 0.2),
    )
    return model, torch.randn(4, 3, 4, 4, generator=generator)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiles_without_a_break(compiler, generator):
    model, x = _model(generator)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=compiler)
    for rows in (4, 4, 2):
        expected = twin(x[:rows])
        y = compiled(x[:rows])
        torch.testing.assert_close(y, expected)
        y.square().mean().backward()
        expected.square().mean().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.compiler.reset()


def test_compiled_layer_follows_a_new_mask(generator):
    model, x = _model(generator)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    layer = model[4]
    layer.repattern(Pattern.from_mask(torch.rand(layer.pattern.shape, generator=generator) < 0.5), grown=0.1)
    torch.testing.assert_close(compiled.eval()(x), model.eval()(x))
    torch.compiler.reset()
