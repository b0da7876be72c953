"""What PyTorch's own machinery finds in the fused ops: derivatives of every kind, layouts, compilers, odd tensors."""

import warnings
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ipt_fast.ops import ffn, layernorm_linear, patch_attention, row_contrastive_loss
from tests.saved_tensors import negative_view

NORM, FFN = [(6,), (6,)], [(9, 6), (9,), (4, 9), (4,)]


def attention(q, k, v, q_embed=None, k_embed=None, **options):
    return patch_attention(q, k, v, num_heads=2, q_embed=q_embed, k_embed=k_embed, **options)


def without_norm(x, weight1, weight2, **options):
    return ffn(x, None, None, weight1, None, weight2, None, **options)


def rows(x, y, scale, bias=None, **options):
    mode = "softmax" if bias is None else "sigmoid"
    return row_contrastive_loss(x, y, scale, bias, mode=mode, reduction="none", **options)


# name -> the call, its fused backend, the shapes of its tensors
CASES = {
    "attention, sdpa": (attention, "sdpa", [(2, 5, 8), (2, 7, 8), (2, 7, 8), (5, 8), (7, 8)]),
    "attention, cpu": (attention, "cpu", [(2, 5, 8), (2, 7, 8), (2, 7, 8), (5, 8), (7, 8)]),
    "attention of one length, sdpa": (attention, "sdpa", [(2, 5, 8)] * 3),
    "attention of one length, cpu": (attention, "cpu", [(2, 5, 8)] * 3),
    "layernorm_linear": (layernorm_linear, "fused", [(2, 5, 6), *NORM, (10, 6), (10,)]),
    "layernorm_linear without bias": (layernorm_linear, "fused", [(2, 5, 6), *NORM, (10, 6)]),
    "ffn": (ffn, "fused", [(2, 5, 6), *NORM, *FFN]),
    "ffn, kept": (partial(ffn, recompute=False, activation="gelu"), "fused", [(2, 5, 6), *NORM, *FFN]),
    "rows, softmax": (rows, "gemm", [(5, 6), (5, 6), ()]),
    "rows, sigmoid": (rows, "gemm", [(5, 6), (5, 6), (), (1,)]),
    "ffn without norm and biases": (without_norm, "fused", [(2, 5, 6), (9, 6), (4, 9)]),
}
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "sequence first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "part of a packed tensor": lambda x: torch.cat([x, x, x], -1).chunk(3, -1)[1],
    "one for all": lambda x: x[:1].expand(x.shape),
}


@pytest.fixture(params=CASES)
def case(request):
    function, impl, shapes = CASES[request.param]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return partial(function, impl=impl), partial(function, impl="eager"), tensors


def laid_out(tensors, layout):
    return [LAYOUTS[layout](t) if t.dim() > 1 else t for t in tensors]


def results(function, tensors, grad=None):
    """Output and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors)
    grad = out.detach().sign() if grad is None else grad
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def same(ours, wanted):
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_torch_func_gives_what_eager_gives(case):
    fused, eager, tensors = case
    every = tuple(range(len(tensors)))

    def each(transform):
        same(transform(fused), transform(eager))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each(lambda f: torch.func.grad(lambda *t: f(*t).square().sum(), every)(*tensors))
        each(lambda f: torch.func.vjp(f, *tensors)[1](f(*tensors)))
        each(lambda f: torch.func.jacrev(f)(*tensors))
        for i in every:
            dims = tuple(-1 if j == i else None for j in every)
            several = [torch.stack([t, 2 * t, 3 * t], -1) if j == i else t for j, t in enumerate(tensors)]
            each(lambda f: torch.vmap(f, dims)(*several))  # noqa: B023
            each(lambda f: torch.vmap(torch.func.grad(lambda *t: f(*t).square().sum(), every), dims)(*several))  # noqa: B023
            each(lambda f: results(torch.vmap(f, dims), several))  # noqa: B023
            several[i].requires_grad_()  # it alone: inside vmap nothing says so
            each(lambda f: torch.autograd.grad(torch.vmap(f, dims)(*several).square().sum(), several[i]))  # noqa: B023
        several = [torch.stack([t, 2 * t]) for t in tensors]
        each(lambda f: torch.vmap(torch.vmap(f))(*(torch.stack([t, 2 * t]) for t in several)))
    each(lambda f: torch.autograd.functional.jacobian(f, tuple(tensors), vectorize=True))


def test_forward_mode_is_right_and_refused_where_the_named_backend_has_none(case):
    fused, eager, tensors = case
    function = partial(fused, impl=None)
    direction = [torch.randn_like(t) for t in tensors]
    same(torch.func.jvp(function, (*tensors,), (*direction,)), torch.func.jvp(eager, (*tensors,), (*direction,)))
    same(torch.func.hessian(lambda t: function(t, *tensors[1:]).square().sum())(tensors[0]),
         torch.func.hessian(lambda t: eager(t, *tensors[1:]).square().sum())(tensors[0]))  # fmt: skip
    with pytest.raises(RuntimeError, match=r'impl="\w+" has no forward-mode derivative; use impl="eager"'):
        torch.func.jvp(fused, (*tensors,), (*direction,))

    def twice(f):
        return torch.func.jacrev(torch.func.grad(lambda t: f(t, *tensors[1:]).square().sum()))(tensors[0])

    same(twice(function), twice(eager))
    with pytest.raises(RuntimeError, match='cannot differentiate twice; use impl="eager"'):
        twice(fused)
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(RuntimeError, match='use impl="eager"'):
        fused(*(forward_ad.make_dual(t, d) for t, d in zip(tensors, direction, strict=True)))


def test_a_second_derivative_is_that_of_eager_or_refused(case):
    fused, eager, tensors = case
    leaves = [t.requires_grad_() for t in tensors]
    for function in (fused, eager):
        out = function(*leaves)
        weights = torch.ones_like(out, requires_grad=True)
        (grad,) = torch.autograd.grad(out, leaves[:1], weights, create_graph=True)
        for to in (leaves[1], weights):
            if function is eager:
                assert torch.autograd.grad(grad.square().sum(), to, retain_graph=True)[0].isfinite().all()
                continue
            with pytest.raises(RuntimeError, match='cannot differentiate twice; use impl="eager"'):
                torch.autograd.grad(grad.square().sum(), to, retain_graph=True)


def test_activation_checkpointing_goes_round_it(case):
    fused, _, tensors = case
    same(results(lambda *t: checkpoint(fused, *t, use_reentrant=False), tensors), results(fused, tensors))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_the_strides_of_fakes(case, layout):
    fused, eager, tensors = case
    tensors = laid_out(tensors, layout)
    same(results(fused, tensors), results(eager, [t.contiguous() for t in tensors]))
    one = torch.ones((), dtype=torch.float64).expand(fused(*tensors).shape)
    same(results(fused, tensors, one), results(eager, tensors, one.contiguous()))
    half = [t.float() for t in tensors]
    for op, args in ops_reached(fused, tensors) + ops_reached(fused, laid_out(half, layout), torch.bfloat16):
        assert set(torch.library.opcheck(op, args, test_utils=CHECKS).values()) == {"SUCCESS"}
        with FakeTensorMode() as mode:
            fakes = op(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args))
        real = op(*args)
        for a, b in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (real, fakes)), strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "ipt_fast":
            self.calls.append((op, args))
        return op(*args, **kwargs or {})


def ops_reached(function, tensors, autocast=None):
    """Return the registered ops of a forward and a backward, each with its arguments."""
    with _Recorder() as recorder, torch.autocast("cpu", autocast, enabled=autocast is not None):
        results(function, tensors)
    assert [op.name().endswith("_backward") for op, _ in recorder.calls] == [False, True]
    return recorder.calls


def test_a_trace_is_of_pytorchs_own_operators_and_a_named_backend_is_refused(case):
    fused, eager, tensors = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated, and that sizes become constants
        traced = torch.jit.trace(lambda *t: fused(*t, impl=None), (*tensors,), check_trace=False)
        same(results(traced, tensors), results(eager, tensors))
        assert "ipt_fast::" not in str(traced.graph) and "PythonOp" not in str(traced.graph)
        with pytest.raises(RuntimeError, match=r'impl="\w+" cannot be saved by torch.jit.trace; use impl="eager"'):
            torch.jit.trace(lambda *t: fused(*t), (*tensors,), check_trace=False)


def test_a_symbolic_trace_keeps_the_op_as_one_node(case):
    fused, _, tensors = case

    class Network(torch.nn.Module):
        def forward(self, x):
            return fused(x, *tensors[1:]) + 1

    graph = torch.fx.symbolic_trace(Network())
    assert [node.op for node in graph.graph.nodes if node.op == "call_function"] == ["call_function"] * 2
    assert torch.equal(graph(tensors[0]), fused(*tensors) + 1)


# Inductor asserts the strides that a fake promised; it takes seconds to compile.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole_forward_and_backward(case, backend, request):
    normed = request.node.callspec.params["case"].partition(" without")[0] in ("layernorm_linear", "ffn", "ffn, kept")
    if normed and "norm and" not in request.node.name and backend == "inductor" and torch.__version__ < "2.11":
        reason = "PyTorch 2.10's inductor fails an assertion of its own where it fuses the sums of the backward"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    *functions, tensors = case
    inputs = laid_out([t.float() for t in tensors], "sequence first")
    for function in functions:
        torch.compiler.reset()
        double = lambda *t: 2 * function(*(2 * x for x in t))  # noqa: E731, B023
        compiled = torch.compile(double, fullgraph=True, backend=backend)
        torch.testing.assert_close(results(compiled, inputs), results(double, inputs), rtol=1e-4, atol=1e-4)


TWICE = {  # x [2, 8, 8], w [8, 8], v [8]
    "tokens": lambda x, w, v: attention(x, x, x) @ w + v,
    "embedding": lambda x, w, v: attention(x, 2 * x, 3 * x, w, w) + v,
    "rows": lambda x, w, v: rows(w, w, v[0]) + x.sum(),
    "vector": lambda x, w, v: layernorm_linear(x, v, v, w),
    "weight": lambda x, w, v: ffn(x, v, v, w, v, w, v),
}


@pytest.mark.parametrize("twice", TWICE.values(), ids=TWICE)
def test_compiles_though_one_tensor_comes_twice(twice):
    inputs = [torch.randn(2, 8, 8), torch.randn(8, 8), torch.randn(8)]
    torch.compiler.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, inputs), results(twice, inputs), rtol=1e-4, atol=1e-4)


def test_negative_views_inference_tensors_and_empty_batches(case):
    fused, eager, tensors = case
    negative = [negative_view(-t) for t in tensors]
    assert all(t.is_neg() for t in negative)
    same(results(fused, negative), results(eager, tensors))
    with torch.inference_mode():
        same(fused(*(t.clone() for t in tensors)), eager(*tensors))
    if fused.func is rows:
        with pytest.raises(ValueError, match="at least one row"):
            fused(tensors[0][:0], tensors[1][:0], *tensors[2:])
        return
    lead = 3 if fused.func is attention else 1
    empty = [t[:0] if i < lead else t for i, t in enumerate(tensors)]
    out, *grads = results(fused, empty)
    assert out.shape == (0, *fused(*tensors).shape[1:]) and not any(g.any() for g in grads)


@pytest.mark.parametrize("dtype, device", [(torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.float32, "meta")])
def test_neither_default_dtype_nor_default_device_matter(case, dtype, device):
    fused, _, tensors = case
    wanted = results(fused, [t.float() for t in tensors])
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            found = results(fused, [t.float() for t in tensors])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_nothing_of_the_callers_is_changed(case):
    fused, _, tensors = case
    leaves = [t.requires_grad_() for t in tensors]

    grad = torch.randn_like(fused(*leaves))
    values, switches, generator = [t.clone() for t in (*leaves, grad)], global_state(), torch.get_rng_state()
    out = fused(*leaves)
    kept = out.clone()
    torch.autograd.grad(out, leaves, grad)
    assert all(torch.equal(t, value) for t, value in zip((*leaves, grad, out), (*values, kept), strict=True))
    assert global_state() == switches and torch.equal(torch.get_rng_state(), generator)


def global_state():
    """Return the switches of the process that a call might leave behind."""
    return (
        *(torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), warnings.filters[:]),
        *(torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()),
    )


def test_meta_and_fake_tensors_before_and_after_real_ones(case):
    fused, _, tensors = case
    real = [(r.shape, r.stride()) for r in results(fused, tensors)]
    for _ in range(2):
        assert [r.shape for r in results(fused, [t.to("meta") for t in tensors])] == [shape for shape, _ in real]
        with FakeTensorMode() as mode:
            assert [(r.shape, r.stride()) for r in results(fused, [mode.from_tensor(t) for t in tensors])] == real
        assert [(r.shape, r.stride()) for r in results(fused, tensors)] == real
