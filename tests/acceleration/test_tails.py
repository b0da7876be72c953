"""accelerate on networks with pixelshuffle tails: the same outputs, and nothing else of the network changes."""

import copy
import io
import pickle
import sys

import pytest
import torch
from torch import nn

import ipt_fast
from bench.baselines.people_networks import EDSR, HAT, RCAN, Block, SwinIR, Upsample
from ipt_fast import accelerate
from ipt_fast.acceleration._swap import unswap
from ipt_fast.model import IPT, preset

NETWORKS = {
    "EDSR x2": (lambda: EDSR(2), "tail.0.0"),
    "EDSR x3": (lambda: EDSR(3), "tail.0.0"),
    "EDSR x4": (lambda: EDSR(4), "tail.0.0"),
    "RCAN x2": (lambda: RCAN(2), "tail.0.0"),
    "RCAN x4": (lambda: RCAN(4), "tail.0.0"),
    "SwinIR x2": (lambda: SwinIR(2), "upsample.0"),
    "SwinIR x3": (lambda: SwinIR(3), "upsample.0"),
    "HAT x4": (lambda: HAT(4), "upsample.0"),
}


@pytest.fixture
def calls(monkeypatch):
    """One entry for each tail that ran as one op."""
    made = []
    for name in ("ipt_fast.acceleration._tails",):
        module = sys.modules[name]
        original = module.pixelshuffle_tail
        monkeypatch.setattr(module, "pixelshuffle_tail", lambda *a, o=original: made.append(a[2]) or o(*a))
    return made


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def no_grad(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(9, 11), (1, 1), (2, 5)])
def test_same_output(name, size, calls):
    make, where = NETWORKS[name]
    network = make().eval()
    x = torch.rand(2, 3, *size)
    expected = no_grad(network, x)
    acceleration = accelerate(network)
    assert [path for path, _ in acceleration.report.swapped] == [where]
    assert not acceleration.report.refused
    assert relative(no_grad(network, x), expected) < 1e-5
    assert len(calls) == 1
    with torch.inference_mode():
        assert relative(network(x), expected) < 1e-5
    assert len(calls) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_same_gradients(name):
    network = NETWORKS[name][0]().double()
    plain = copy.deepcopy(network)
    accelerate(network)
    x = torch.rand(1, 3, 7, 6, dtype=torch.float64)
    for a, b in zip(_gradients(network, x), _gradients(plain, x), strict=True):
        assert relative(a, b) < 1e-12


def _gradients(network, x):
    return torch.autograd.grad(network(x).square().sum(), [p for p in network.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", ["EDSR x4", "SwinIR x2"])
def test_undo_and_nothing_but_the_class_changes(name):
    network = NETWORKS[name][0]().half().train()
    before = {k: (v.data_ptr(), v.dtype, v.device) for k, v in network.state_dict().items()}
    kinds = [type(m) for m in network.modules()]
    modes = [m.training for m in network.modules()]
    printed = list(network.state_dict())
    undo = accelerate(network)
    assert {k: (v.data_ptr(), v.dtype, v.device) for k, v in network.state_dict().items()} == before
    assert list(network.state_dict()) == printed
    assert [m.training for m in network.modules()] == modes
    assert [type(m) for m in network.modules()] != kinds
    assert all(isinstance(m, kind) for m, kind in zip(network.modules(), kinds, strict=True))
    undo()
    undo()
    assert [type(m) for m in network.modules()] == kinds
    assert not any("_tail_is_followed" in m.__dict__ for m in network.modules())


def test_twice_changes_nothing_more(calls):
    network = SwinIR()
    first = accelerate(network)
    kinds = [type(m) for m in network.modules()]
    second = accelerate(network)
    assert [type(m) for m in network.modules()] == kinds
    assert not second.report.swapped
    assert second.report.already == ["upsample"]
    second()
    no_grad(network, torch.rand(1, 3, 6, 6))
    assert calls
    first()
    calls.clear()
    no_grad(network, torch.rand(1, 3, 6, 6))
    assert not calls


def test_learns_and_loads_while_accelerated():
    network, x = EDSR(), torch.rand(2, 3, 8, 8)
    accelerate(network)
    no_grad(network, x)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    network(x).square().sum().backward()
    optimizer.step()
    plain = EDSR()
    plain.load_state_dict(network.state_dict())
    assert relative(no_grad(network, x), no_grad(plain, x)) < 1e-5
    network.load_state_dict(EDSR().state_dict())
    plain.load_state_dict(network.state_dict())
    assert relative(no_grad(network, x), no_grad(plain, x)) < 1e-5


@pytest.mark.parametrize("use", ["seen", "activated", "written"])
def test_the_result_of_upsample_may_be_used_in_any_way(use):
    network = SwinIR(upsampler=use).eval()
    x = torch.rand(2, 3, 7, 9)
    expected = no_grad(network, x)
    accelerate(network)
    assert relative(no_grad(network, x), expected) < 1e-5
    with torch.inference_mode():
        assert relative(network(x), expected) < 1e-5


def test_upsample_called_alone_gives_its_tensor():
    network = SwinIR().eval()
    x = torch.rand(1, 8, 5, 6)
    expected = no_grad(network.upsample, x)
    accelerate(network)
    up = no_grad(network.upsample, x)
    assert up.shape == (1, 8, 10, 12)
    assert torch.equal(up + 0, expected)
    assert torch.equal(torch.cat([up, up])[:1], expected)
    assert (up.numpy() == expected.numpy()).all()
    assert "tensor" in repr(up)
    assert up.clone().is_contiguous()
    assert torch.equal(copy.deepcopy(up), expected)


def test_input_changed_before_use_is_noticed():
    network = SwinIR().eval()
    accelerate(network)
    with torch.no_grad():
        x = torch.rand(1, 8, 5, 6)
        up = network.upsample(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            network.conv_last(up)
    with torch.inference_mode():  # counts no changes, so the input was copied
        x = torch.rand(1, 8, 5, 6)
        expected = network.conv_last(network.upsample(x) + 0)
        up = network.upsample(x)
        x.add_(1)
        assert relative(network.conv_last(up), expected) < 1e-5


def test_autocast():
    network = SwinIR().eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = no_grad(network, x)
        accelerate(network)
        got = no_grad(network, x)
    assert got.dtype == expected.dtype
    assert relative(got, expected) < 2e-2


def conv(i, o, **kwargs):
    return nn.Conv2d(i, o, 3, **{"padding": 1, **kwargs})


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
        (lambda: [conv(4, 16, padding=0), nn.PixelShuffle(2), conv(4, 3)], "1", "padding"),
        (lambda: [conv(4, 16, groups=2), nn.PixelShuffle(2), conv(4, 3)], "1", "groups 2"),
        (lambda: [hooked(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)], "1", "forward hooks"),
        (lambda: [conv(4, 16), hooked(nn.PixelShuffle(2)), conv(4, 3)], "1", "forward hooks"),
        (lambda: [hooked(nn.Sequential(conv(4, 16), nn.PixelShuffle(2))), conv(4, 3)], "0.1", "forward hooks"),
        (lambda: [nn.utils.weight_norm(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)], "1", "weight or spectral norm"),
        (
            lambda: [nn.utils.parametrizations.weight_norm(conv(4, 16)), nn.PixelShuffle(2), conv(4, 3)],
            "1",
            "parametrised",
        ),
        (lambda: [nn.PixelShuffle(2), conv(1, 3)], "0", "nothing stands before"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_refuses_with_the_reason_what_is_not_equal(tail, where, reason):
    network = nn.Sequential(*tail())
    x = torch.rand(1, 4, 8, 8)
    expected = no_grad(network, x)
    report = accelerate(network).report
    assert not report.swapped
    assert [path for path, _ in report.refused] == [where]
    assert reason in report.refused[0][1]
    assert reason in str(report)
    assert torch.equal(no_grad(network, x), expected)


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
    assert report.refused == [("shuffle", "is called by the forward of Plain; only plain Sequentials can be followed")]


def test_upsample_that_nothing_follows_is_left():
    network = nn.ModuleDict({"up": Upsample(2, 4), "block": Block(4)})
    report = accelerate(network).report
    assert not report.swapped
    assert report.refused[0][0] == "up.0"


def test_what_changes_after_the_swap_is_honoured(calls):
    network, x = EDSR(), torch.rand(1, 3, 8, 8)
    accelerate(network)
    seen = []
    handle = network.tail[0][0].register_forward_hook(lambda *_: seen.append(1))
    plain = copy.deepcopy(network)
    no_grad(network, x)
    assert seen and not calls
    handle.remove()
    network.tail[0][1] = nn.Sequential(nn.PixelShuffle(2), nn.ReLU())
    got = no_grad(network, x)
    assert not calls
    plain.tail[0][1] = nn.Sequential(nn.PixelShuffle(2), nn.ReLU())
    assert torch.equal(got, no_grad(plain, x))
    network.tail[0][1] = nn.PixelShuffle(2)
    no_grad(network, x)
    assert calls


def test_copies_stay_accelerated_and_files_hold_the_plain_network(calls):
    network, x = SwinIR().eval(), torch.rand(1, 3, 8, 8)
    expected = no_grad(network, x)
    accelerate(network)
    clone = copy.deepcopy(network)
    clone.upsample[0].weight.data.zero_()  # shares nothing
    assert relative(no_grad(network, x), expected) < 1e-5
    no_grad(clone, x)
    assert len(calls) == 2
    loaded = pickle.loads(pickle.dumps(network))
    assert type(loaded.upsample) is Upsample and type(loaded.conv_last) is nn.Conv2d
    assert torch.equal(no_grad(loaded, x), expected)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    assert torch.equal(no_grad(torch.load(file, weights_only=False), x), expected)


@pytest.mark.parametrize("name", ["EDSR x2", "SwinIR x2"])
def test_compiles(name):
    network, x = NETWORKS[name][0]().eval(), torch.rand(1, 3, 8, 8)
    expected = no_grad(network, x)
    accelerate(network)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert relative(no_grad(compiled, x), expected) < 1e-5


def test_unbatched_and_wrong_inputs_go_to_the_chain():
    network = EDSR().tail
    x = torch.rand(8, 5, 5)
    expected = no_grad(network, x)
    accelerate(network)
    assert torch.equal(no_grad(network, x), expected)
    with pytest.raises(RuntimeError, match="channels"):
        network(torch.rand(1, 7, 5, 5))


def test_ipt_runs_its_own_tails_so(calls):
    network = IPT(preset("tiny", tasks=("sr2", "sr3", "sr4", "denoise30"))).eval()
    x = torch.rand(1, 3, 48, 48) * 255

    @torch.no_grad()
    def outputs():
        return [network(x, task) for task in network.config.tasks]

    ours = outputs()
    assert len(calls) == 3
    report = accelerate(network).report
    assert not report.swapped and not report.refused and report.already == ["tail.0", "tail.1", "tail.2"]
    for module in network.modules():
        unswap(module)
    assert all(relative(y, chain) < 1e-5 for y, chain in zip(ours, outputs(), strict=True))
    assert len(calls) == 3


def test_errors():
    with pytest.raises(TypeError, match="needs an nn"):
        accelerate(torch.relu)
    with pytest.raises(TypeError, match="scripted"):
        accelerate(torch.jit.script(nn.Sequential(nn.Conv2d(1, 1, 1))))
    assert "accelerate" in dir(ipt_fast)
