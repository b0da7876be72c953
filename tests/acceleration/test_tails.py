"""accelerate on linear pixelshuffle tails: what it finds, what it refuses, and what changes afterwards."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import ipt_fast
from bench.baselines.people_networks import EDSR, Block, SwinIR, Upsample
from ipt_fast import accelerate
from ipt_fast.model import IPT, preset
from tests.acceleration.networks import Conv2, conv, run
from tests.ops.results import relative


class Operations(TorchDispatchMode):
    """Counts multiplications without hooks on modules, which an accelerated network would step back for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        flops = flop_registry.get(func.overloadpacket)
        self.count += flops(*args, **(kwargs or {}), out_val=out) if flops else 0
        return out


def operations(network, x):
    with Operations() as counter:
        run(network, (x,))
    return counter.count


@pytest.mark.parametrize(
    "make", [lambda: EDSR(2, 64), lambda: SwinIR(4, num_feat=64), lambda: Conv2(Upsample(3, 64), conv(64, 3))]
)
def test_a_fraction_of_the_operations(make):
    network = make().eval()
    x = torch.rand(1, 64 if isinstance(network, Conv2) else 3, 48, 48)
    plain = operations(network, x)
    undo = accelerate(network)
    saved = plain - operations(network, x)
    assert saved > 48 * 48 * 64 * 64 * 9  # half of one of the convolutions of an x2 tail, at low resolution
    undo()
    assert operations(network, x) == plain


@pytest.mark.parametrize("make", [lambda: EDSR(2), lambda: EDSR(4), lambda: SwinIR(3), lambda: SwinIR(4)])
@pytest.mark.parametrize("size", [(9, 11), (1, 1), (2, 5), (32, 17)])
def test_every_size(make, size):
    network, x = make().double().eval(), torch.rand(2, 3, *size, dtype=torch.float64)
    wanted = run(network, (x,))
    accelerate(network)
    assert relative(run(network, (x,)), wanted) < 1e-12


@pytest.mark.parametrize("use", ["seen", "activated", "written"])
def test_a_forward_that_does_something_between_is_refused(use):
    network, x = SwinIR(upsampler=use).eval(), torch.rand(2, 3, 7, 9)
    wanted = run(network, (x,))
    report = accelerate(network).report
    assert not report.swapped
    assert report.refused[0][0] == "upsample.1" and "forward of SwinIR" in report.refused[0][1]
    assert torch.equal(run(network, (x,)), wanted)


@pytest.mark.parametrize("use", ["seen", "activated", "written"])
def test_a_forward_that_is_switched_over_later_runs_as_it_did(use):
    network, x = SwinIR().eval(), torch.rand(2, 3, 7, 9)
    plain = copy.deepcopy(network)
    assert accelerate(network).report.swapped
    plain.upsampler = network.upsampler = use
    assert torch.equal(run(network, (x,)), run(plain, (x,)))
    plain.upsampler = network.upsampler = "pixelshuffle"
    assert relative(run(network, (x,)), run(plain, (x,))) < 1e-5


class Calls(nn.Module):
    """A tail of two attributes, with the line between them given."""

    def __init__(self, between="none"):
        super().__init__()
        self.between = between
        self.up, self.last, self.scale = Upsample(2, 4), conv(4, 3), 2.0

    def forward(self, x):
        if self.between == "none":
            y = self.up(x)
            return self.last(y) / self.scale
        if self.between == "method":
            return self._end(x)
        if self.between == "kept":
            y = self.up(x)
            x = self.last(y)
            return x + y.mean()
        if self.between == "alias":
            up = self.up
            return self.last(up(x))
        if self.between == "name":
            return self.last(getattr(self, "up")(x))  # noqa: B009
        if self.between == "scaled":
            return self.last(self.up(x) * self.scale)
        if self.between == "twice":
            return self.last(self.up(self.last(self.up(x)).mean(1, keepdim=True).repeat(1, 4, 1, 1)))
        if self.between == "partial":
            return self.last(self.up(x)) + self._relu(x)
        if self.between == "property":
            return self.last(self.up(x)) + self.same(x).mean()
        return self.last(self.up(x)) if self.scale > 1 else self.last(torch.relu(self.up(x)))

    def _end(self, x):
        return self.last(self.up(x))

    def _through(self, function, x):
        return self.last(function(self.up(x)))

    _relu = functools.partialmethod(_through, torch.relu)

    @property
    def same(self):
        return self.up


@pytest.mark.parametrize(
    "between,found",
    [
        ("none", 1),
        ("method", 1),
        ("kept", 0),
        ("alias", 0),
        ("name", 0),
        ("scaled", 0),
        ("twice", 1),
        ("two ways", 1),
        ("partial", 0),
        ("property", 0),
    ],
)
def test_what_a_forward_shows(between, found):
    network, x = Calls(between), torch.rand(1, 4, 6, 7)
    wanted = run(network, (x,))
    assert len(accelerate(network).report.swapped) == found
    assert relative(run(network, (x,)), wanted) < 1e-5


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    "tail,where,reason",
    [
        (lambda: [conv(4, 16), nn.PixelShuffle(2), nn.ReLU(), conv(4, 3)], "1", "2 after it is a ReLU"),
        (lambda: [conv(4, 16), nn.PReLU(), nn.PixelShuffle(2), conv(4, 3)], "2", "1 before it is a PReLU"),
        (lambda: [conv(4, 16, padding_mode="reflect"), nn.PixelShuffle(2), conv(4, 3)], "1", "reflect"),
        (lambda: [conv(4, 16, stride=2), nn.PixelShuffle(2), conv(4, 3)], "1", "stride"),
        (lambda: [conv(4, 16, dilation=2, padding=2), nn.PixelShuffle(2), conv(4, 3)], "1", "dilation"),
        (lambda: [conv(4, 16, padding=0), nn.PixelShuffle(2), conv(4, 3)], "1", "padding"),
        (lambda: [conv(4, 16, groups=2), nn.PixelShuffle(2), conv(4, 3)], "1", "groups 2"),
        (lambda: [hooked(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)], "1", "forward hooks"),
        (lambda: [conv(4, 16), hooked(nn.PixelShuffle(2)), conv(4, 3)], "1", "forward hooks"),
        (lambda: [hooked(nn.Sequential(conv(4, 16), nn.PixelShuffle(2))), conv(4, 3)], "0.1", "forward hooks"),
        (lambda: [nn.utils.weight_norm(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)], "1", "weight or spectral norm"),
        (
            lambda: [nn.utils.parametrizations.spectral_norm(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)],
            "1",
            "parametrised",
        ),
        (lambda: [nn.PixelShuffle(2), conv(1, 3)], "0", "nothing stands before"),
        (lambda: [conv(4, 16), nn.PixelShuffle(2), conv(4, 3).to(torch.complex64)], "1", "weights of torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_refuses_with_the_reason_what_is_not_equal(tail, where, reason):
    network = nn.Sequential(*tail()).eval()
    kinds = [type(m) for m in network.modules()]
    report = accelerate(network).report
    assert not report.swapped
    assert [path for path, _ in report.refused] == [where]
    assert reason in report.refused[0][1]
    assert reason in str(report)
    assert [type(m) for m in network.modules()] == kinds


def shared_networks():
    act, block, shuffle, up, tail = (
        nn.LeakyReLU(0.1), nn.Sequential(conv(4, 4), nn.ReLU()), nn.PixelShuffle(2), Upsample(2, 4), conv(4, 4)
    )  # fmt: skip
    yield "activation", nn.Sequential(conv(4, 4), act, conv(4, 4), act, conv(4, 16), nn.PixelShuffle(2), conv(4, 3)), 1
    yield "block", nn.Sequential(block, block, conv(4, 16), nn.PixelShuffle(2), conv(4, 3)), 1
    yield "PixelShuffle", nn.Sequential(conv(4, 16), shuffle, conv(4, 16), shuffle, conv(4, 3)), 0
    yield "convolution", nn.Sequential(tail, conv(4, 16), nn.PixelShuffle(2), tail), 0
    yield "Upsample", nn.Sequential(up, conv(4, 4), nn.ReLU(), up, conv(4, 3)), 0
    yield "whole", nn.Sequential(up, tail, up, tail), 0
    one = nn.Sequential(conv(4, 16), nn.PixelShuffle(2), conv(4, 3))
    one[2].weight = nn.Parameter(torch.randn(3, 4, 3, 3))
    two = nn.Sequential(conv(4, 16), nn.PixelShuffle(2), conv(4, 3))
    two[0].weight = one[0].weight
    yield "weight", nn.Sequential(one, nn.Conv2d(3, 4, 1), two), 2


@pytest.mark.parametrize("name,network,found", list(shared_networks()))
def test_shared_modules_are_called_as_often_as_they_were(name, network, found):
    x = torch.randn(2, 4, 7, 6)
    wanted = run(network, (x,))
    report = accelerate(network).report
    assert len(report.swapped) == found
    assert found or "more than once" in report.refused[0][1]
    assert relative(run(network, (x,)), wanted) < 1e-5


def test_activations_of_edsr_are_refused_and_plain_parts_of_the_same_network_are_not():
    network = nn.ModuleDict({"a": EDSR(4, act=True), "b": EDSR(4)})
    report = accelerate(network).report
    assert [p for p, _ in report.swapped] == ["b.tail.0.0"]
    assert [p for p, _ in report.refused] == ["a.tail.0.1", "a.tail.0.4"]


def test_modules_called_by_code_are_left():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.shuffle, self.last = conv(4, 16), nn.PixelShuffle(2), conv(4, 3)

        def forward(self, x):
            return self.last(torch.relu(self.shuffle(self.up(x))))

    report = accelerate(Plain()).report
    assert not report.swapped
    assert report.refused == [("shuffle", "is called by the forward of Plain; no adapter knows it")]


def test_an_image_that_could_be_features_is_refused():
    network = Calls()
    network.last = conv(4, 4)
    report = accelerate(network).report
    assert not report.swapped and "same number of channels" in report.refused[0][1]


def test_upsample_that_nothing_follows_is_left():
    network = nn.ModuleDict({"up": Upsample(2, 4), "block": Block(4)})
    report = accelerate(network).report
    assert not report.swapped
    assert report.refused == [("up.1", "nothing stands after it in its Sequential")]


def test_parts_of_a_sequential_are_what_they_were():
    network, x = EDSR().eval(), torch.rand(1, 8, 5, 6)
    wanted = run(network.tail[0], (x,))
    accelerate(network)
    assert torch.equal(run(network.tail[0], (x,)), wanted)
    assert torch.equal(run(network.tail[:1], (x,)), wanted) and type(network.tail[:1]) is nn.Sequential
    assert torch.equal(run(nn.Sequential(*list(network.tail.children())[:-1]), (x,)), wanted)
    assert type(network.tail[1]) is nn.Conv2d


@pytest.mark.parametrize("make", [EDSR, SwinIR, lambda: nn.ModuleDict({"tail": Conv2(Upsample(2, 3), conv(3, 4))})])
def test_a_tail_that_is_rebuilt_runs_as_it_stands(make):
    network = make().eval()
    x = torch.rand(1, 3, 8, 8)
    plain = copy.deepcopy(network)
    accelerate(network)
    changes = {
        SwinIR: [
            lambda n: setattr(n, "conv_last", nn.Identity()) or setattr(n, "mean", torch.zeros(1)),
            lambda n: n.upsample.append(nn.Sigmoid()),
        ],
        EDSR: [
            lambda n: setattr(n.tail[0], "1", nn.Sequential(nn.PixelShuffle(2), nn.Sigmoid())),
            lambda n: n.tail.insert(1, nn.Sigmoid()),
            lambda n: n.tail.append(nn.Sigmoid()),
            lambda n: setattr(n, "tail", n.tail[:1]),
        ],
        nn.ModuleDict: [lambda n: n.update({"tail": n["tail"][:1]})],
    }[type(network)]
    for change in changes:
        a, b = copy.deepcopy(network), copy.deepcopy(plain)
        change(a), change(b)
        if isinstance(network, nn.ModuleDict):
            a, b = a["tail"], b["tail"]
        assert torch.equal(run(a, (x,)), run(b, (x,)))


def test_unbatched_and_wrong_inputs_go_to_the_chain():
    for network in (EDSR().tail, Conv2(Upsample(2, 8), conv(8, 3))):
        x = torch.rand(8, 5, 5)
        wanted = run(network, (x,))
        accelerate(network)
        assert torch.equal(run(network, (x,)), wanted)
        with pytest.raises(RuntimeError, match="channels"):
            network(torch.rand(1, 7, 5, 5))
        with pytest.raises(RuntimeError, match="type"):
            network(torch.rand(1, 8, 5, 5).double())


def test_a_registered_architecture():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.shuffle, self.last = conv(4, 16), nn.PixelShuffle(2), conv(4, 3)

        def forward(self, x):
            for name in ("up", "shuffle", "last"):
                x = self._modules[name](x)
            return x

    from ipt_fast.acceleration import LinearTail, register_adapter

    parts = ["up", "shuffle", "last"]
    register_adapter("Mine", lambda m: [LinearTail(tuple(parts))] if isinstance(m, Mine) else None)
    network, x = Mine(), torch.rand(1, 4, 6, 6)
    wanted = run(network, (x,))
    undo = accelerate(network)
    assert [p for p, _ in undo.report.swapped] == ["up"] and "Mine" in undo.report.swapped[0][1]
    assert relative(run(network, (x,)), wanted) < 1e-5
    undo()
    parts.append("nothing")
    kinds = [type(m) for m in network.modules()]
    with pytest.raises(ValueError, match="adapter 'Mine' names a part that is not there"):
        accelerate(network)
    assert [type(m) for m in network.modules()] == kinds
    register_adapter("Mine", lambda m: None)
    with pytest.raises(TypeError, match="match must be a function"):
        register_adapter("Mine", "no function")


@pytest.mark.filterwarnings("ignore")
def test_ipt_needs_none_of_it():
    network = IPT(preset("tiny", tasks=("sr2", "sr3", "sr4", "denoise30"))).eval()
    x = torch.rand(1, 3, 48, 48) * 255
    wanted = [run(network, (x, task)) for task in network.config.tasks]
    accelerate(network)
    assert all(relative(run(network, (x, t)), y) < 1e-5 for t, y in zip(network.config.tasks, wanted, strict=True))


def test_errors():
    with pytest.raises(TypeError, match="network must be an nn"):
        accelerate(torch.relu)
    with pytest.raises(TypeError, match="scripted"):
        accelerate(torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))))
    with pytest.raises(TypeError, match="frozen must be True or False"):
        accelerate(EDSR(), frozen="yes")
    assert "accelerate" in dir(ipt_fast)
