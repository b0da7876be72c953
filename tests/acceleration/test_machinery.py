"""All networks through all of torch's machinery: an accelerated network is what it was, only faster."""

import copy
import io
import pickle
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from ipt_fast import accelerate
from tests.acceleration.networks import CASES, run
from tests.ops.results import relative
from tests.saved_tensors import negative_view


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_outputs_and_gradients(case, dtype, training):
    network, args = case.network(dtype).train(training), case.args(dtype)
    plain = copy.deepcopy(network)
    report = accelerate(network).report
    assert [path for path, _ in report.swapped] == case.swapped
    assert not report.refused and not report.already
    args = tuple(x.requires_grad_() for x in args)
    results = []
    for n in (network, plain):
        y = n(*args)
        trained = [p for p in n.parameters() if p.requires_grad]
        results.append([y, *torch.autograd.grad(y.square().sum(), [*args, *trained], allow_unused=True)])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            scale = b.abs().max().clamp_min(1e-3)  # a gradient of zero is rounding alone
            assert ((a - b).abs().max() / scale).item() < (1e-10 if dtype == torch.float64 else 1e-4)


def test_keys_identities_modes_and_undo(case):
    network, args = case.network(), case.args()
    wanted = run(network, args)

    def tree():
        return [(p, m, type(m), m.training, sorted(m.__dict__)) for p, m in network.named_modules()]

    def state():
        return [(k, v.data_ptr()) for k, v in network.state_dict().items()], [
            (k, id(p)) for k, p in network.named_parameters()
        ]

    before, keys = tree(), state()
    undo = accelerate(network)
    assert state() == keys
    assert all(isinstance(m, b[2]) for m, b in zip(network.modules(), before, strict=True))
    again = accelerate(network)
    assert not again.report.swapped and again.report.already == case.swapped
    again()
    assert relative(run(network, args), wanted) < 1e-5
    undo()
    undo()
    assert tree() == before and state() == keys
    assert torch.equal(run(network, args), wanted)


def _jit(network, args):
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(network, args), file)
    file.seek(0)
    return torch.jit.load(file)


def _pickled(network, args):
    return pickle.loads(pickle.dumps(network))


def _saved(network, args):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _functional(network, args):
    given = {k: v.clone() for k, v in network.named_parameters()}
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    return lambda *x: torch.func.functional_call(network, given, x)


def _inference_mode(network, args):
    def call(*args):
        with torch.inference_mode():
            return network(*args).clone()

    return call


def _loaded(network, args):
    state = {k: v.clone() for k, v in network.state_dict().items()}
    for p in network.parameters():
        p.data.zero_()
    network(*args)
    assert not any(network.load_state_dict(state, strict=True))
    return network


def _written(network, args):  # past the version counters, as an EMA swap and fused optimizers do
    was = [p.detach().clone() for p in network.parameters()]
    network(*args)
    for p in network.parameters():
        p.data.mul_(3)
    network(*args)
    for p, old in zip(network.parameters(), was, strict=True):
        p.data.copy_(old)
    return network


def _negative(network, args):
    return lambda *args: network(*(negative_view(-x) for x in args))


def _negative_weights(network, args):
    for p in network.parameters():
        p.data = negative_view(-p.data)
    return network


def _after_fake(network, args):
    network(*args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network(*(mode.from_tensor(x) for x in args))
    copy.deepcopy(network).to("meta")(*(x.to("meta") for x in args))
    return network


def _channels_last(network, args):
    def call(*args):
        return network(*(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in args))

    network.to(memory_format=torch.channels_last)
    return call


def _shallow(network, args):
    """Make what DataParallel makes: modules with the children and parameters of another device."""
    replicas: dict[nn.Module, nn.Module] = {}
    for module in reversed(list(network.modules())):
        replicas[module] = replica = copy.copy(module)
        old, new = vars(module), vars(replica)
        new["_modules"] = {n: replicas[m] for n, m in old["_modules"].items()}
        new["_parameters"] = {n: None if p is None else p.detach().clone() for n, p in old["_parameters"].items()}
    for p in network.parameters():
        p.data.zero_()
    return replicas[network]


WAYS = {
    "fx": lambda network, args: torch.fx.symbolic_trace(network),
    "jit.trace": _jit,
    "compile": lambda network, args: torch.compile(network, fullgraph=True, backend="aot_eager"),
    "export": lambda network, args: torch.export.export(network, args).module(),
    "pickle": _pickled,
    "torch.save": _saved,
    "deepcopy": lambda network, args: copy.deepcopy(network),
    "channels_last": _channels_last,
    "functional_call": _functional,
    "inference_mode": _inference_mode,
    "load_state_dict": _loaded,
    "data writes": _written,
    "negative view": _negative,
    "negative view of weights": _negative_weights,
    "fake and meta before": _after_fake,
    "shallow copies": _shallow,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore")
def test_every_way_gives_the_same(case, way):
    network, args = case.network(), case.args()
    if way == "fx":
        try:
            torch.fx.symbolic_trace(network)
        except (torch.fx.proxy.TraceError, TypeError) as error:
            pytest.skip(f"the plain network cannot be traced: {error}")
    wanted = run(network, args)
    accelerate(network)
    with torch.no_grad():
        other = WAYS[way](network, args)
        assert relative(other(*args), wanted) < 1e-5
        assert relative(other(*args), wanted) < 1e-5


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_copies_stay_accelerated_and_share_nothing(case, way):
    network, args = case.network(), case.args()
    wanted = run(network, args)
    accelerate(network)
    other = WAYS[way](network, args)
    assert accelerate(other).report.already == case.swapped
    for p in network.parameters():
        p.data.zero_()
    assert relative(run(other, args), wanted) < 1e-5


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_a_part_copied_alone_is_the_plain_part(case, way):
    network, args = case.network(), case.args()
    calls = []
    for path, module in network.named_modules():
        module.register_forward_hook(lambda m, i, k, o, path=path: calls.append((path, i, k)), with_kwargs=True)
    run(copy.deepcopy(network), args)
    network = case.network()
    plain = copy.deepcopy(network)
    accelerate(network)
    for path, given, options in calls[:-1]:
        part, wanted = WAYS[way](network.get_submodule(path), None), plain.get_submodule(path)
        with torch.no_grad():
            pairs = [m(*copy.deepcopy(given), **options) for m in (part, wanted)]
        for a, b in zip(*pairs, strict=True) if isinstance(pairs[0], tuple) else [pairs]:
            assert (a is b is None) or torch.allclose(a, b, rtol=1e-4, atol=1e-5), path
        assert len(pickle.dumps(part)) < 1.5 * len(pickle.dumps(wanted)) + 1000, path  # nothing else goes along
        if isinstance(part, nn.Conv2d | nn.PixelShuffle):
            assert type(part) is type(wanted) and vars(part).keys() == vars(wanted).keys()


def test_scripting_says_what_to_do(case):
    network = case.network()
    accelerate(network)
    with pytest.raises(RuntimeError, match=r"accelerate: torch.jit.script cannot read .* call undo\(\) first"):
        torch.jit.script(network)


def test_copies_in_two_threads(case):
    network, args = case.network(), case.args()
    wanted = run(network, args)
    accelerate(network)
    results: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda n=n: results.extend(run(n, args) for _ in range(3)))
        for n in (network, copy.deepcopy(network))
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(results) == 6 and all(relative(y, wanted) < 1e-5 for y in results)


def test_an_empty_batch_gives_what_it_gave(case):
    network = case.network()
    batch = 1 if len(case.inputs) > 1 else 0
    args = tuple(x.narrow(batch, 0, 0) if x.shape[batch] == 2 else x for x in case.args())
    try:
        wanted = run(network, args)
    except RuntimeError as error:
        accelerate(network)
        with pytest.raises(type(error)):
            run(network, args)
        return
    accelerate(network)
    assert run(network, args).shape == wanted.shape


def test_gradients_through_functional_calls(case):
    network, args = case.network(torch.float64), case.args(torch.float64)
    given = {k: p.detach().clone() for k, p in network.named_parameters()}

    def loss(given, *args):
        return torch.func.functional_call(network, given, args).square().sum()

    wanted = torch.func.grad(loss)(given, *args)
    accelerate(network)
    got = torch.func.grad(loss)(given, *args)
    assert all((got[k] - wanted[k]).abs().max() <= 1e-9 * wanted[k].abs().max().clamp_min(1) for k in wanted)


def test_autocast(case):
    network, args = case.network(), case.args()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = run(network, args)
        accelerate(network)
        got = run(network, args)
    assert got.dtype == wanted.dtype
    assert relative(got, wanted) < 3e-2


def test_hooks_of_every_module_see_what_they_saw(case):
    """Whatever module is listened to: the same inputs and outputs, in the same order."""
    network, args = case.network(), case.args()

    def seen():
        records = []
        for path, module in network.named_modules():
            hook = module.register_forward_hook(
                lambda m, i, o, path=path: records.append((path, [x.clone() for x in i if isinstance(x, Tensor)], o))
            )
            run(network, args)
            hook.remove()
        return records

    wanted = seen()
    accelerate(network)
    got = seen()
    assert [r[0] for r in got] == [r[0] for r in wanted]
    for (path, inputs, out), (_, wanted_inputs, wanted_out) in zip(got, wanted, strict=True):
        out, wanted_out = [x if isinstance(x, tuple) else (x,) for x in (out, wanted_out)]
        for a, b in zip([*inputs, *out], [*wanted_inputs, *wanted_out], strict=True):
            assert (a is None) == (b is None), path
            assert a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-4), path


def test_global_hooks_see_every_module(case):
    network, args = case.network(), case.args()

    def calls():
        seen = []
        hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(o))
        run(network, args)
        hook.remove()
        return seen

    wanted = len(calls())
    accelerate(network)
    assert len(calls()) == wanted


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_parametrizations_put_on_later_then_undo(case, removed):
    network, args = case.network(), case.args()
    kinds = [type(m) for m in network.modules()]
    undo = accelerate(network)
    with torch.no_grad():
        plain = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        for conv in plain:
            nn.utils.parametrizations.weight_norm(conv)
            conv.parametrizations.weight.original0.mul_(1.5)
    during = run(network, args)
    if removed:
        for conv in plain:
            nn.utils.parametrize.remove_parametrizations(conv, "weight")
        assert relative(run(network, args), during) < 1e-5
    undo()
    assert relative(run(network, args), during) < 1e-5
    if removed:
        assert [type(m) for m in network.modules()] == kinds
    else:
        assert all(nn.utils.parametrize.is_parametrized(conv, "weight") for conv in plain)
        for conv in plain:
            nn.utils.parametrize.remove_parametrizations(conv, "weight")
        assert [type(m) for m in network.modules()] == kinds


class LoRA(nn.Module):
    """A low-rank addition beside a convolution that is kept, as adapter libraries put it in its place."""

    def __init__(self, base):
        super().__init__()
        self.base, k = base, base.kernel_size
        self.down = nn.Conv2d(base.in_channels, 1, k, padding=base.padding, bias=False)
        self.up = nn.Conv2d(1, base.out_channels, 1, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_every_convolution_may_be_replaced_later(case):
    network, args = case.network(), case.args()
    plain = copy.deepcopy(network)
    undo = accelerate(network)
    for path, conv in list(plain.named_modules()):
        if not isinstance(conv, nn.Conv2d):
            continue
        parent, _, name = path.rpartition(".")
        added = LoRA(conv)
        for n in (plain, network):
            owner, mine = n.get_submodule(parent), copy.deepcopy(added)
            mine.base = getattr(owner, name)
            setattr(owner, name, mine)
        wanted = run(plain, args)
        assert relative(run(network, args), wanted) < 1e-5, path
        for n in (plain, network):
            setattr(n.get_submodule(parent), name, n.get_submodule(path).base)
        assert relative(run(network, args), run(plain, args)) < 1e-5, path
    undo()
    assert torch.equal(run(network, args), run(plain, args))


def test_no_warning_of_the_tracer_that_the_plain_network_does_not_give(case):
    network, args = case.network(), case.args()

    def warned():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.jit.trace(network, args, check_trace=False)
        return [str(w.message) for w in caught]

    wanted = warned()
    accelerate(network)
    assert len(warned()) <= len(wanted)
