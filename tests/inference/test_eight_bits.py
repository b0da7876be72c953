"""Linear layers of 8 bits: near their float64 oracle, near the float32 network, refused where they cannot run."""

import copy
import pickle

import pytest
import torch

from bench.count.pretend import pretend_cuda
from ipt_fast import IPT, IPTConfig, prepare_for_inference, restore
from ipt_fast.inference.linear import Int8Linear, arithmetic, has_int8_gemm
from ipt_fast.tiling import restore_tiled

CONFIG = IPTConfig(n_feats=16, num_heads=3, num_layers=1, tasks=("sr2", "denoise30"))
FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(CONFIG).eval()


def layer_and_input(dtype, end="none"):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, 48, generator=draw) * torch.logspace(-3, 3, 5)[:, None]  # tokens of very different sizes
    x[0, 0] = 0
    weight, bias = torch.randn(32, 48, generator=draw), torch.randn(32, generator=draw)
    return Int8Linear(weight, bias, dtype, end), x.to(dtype), weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("end", ["none", "relu"])
def test_a_layer_is_within_half_a_step_of_its_oracle(dtype, end):
    layer, x, weight, bias = layer_and_input(dtype, end)
    exact = x.double() @ weight.double().t() + bias.double()
    # Each factor is off by half a step of its row at most.
    x_step, w_step = (t.double().abs().amax(-1, keepdim=True) / 127 for t in (x, weight))
    bound = 0.5 * x_step * weight.double().abs().sum(-1) + 0.5 * w_step.t() * x.double().abs().sum(-1, keepdim=True)
    bound = 1.05 * bound + 4 * torch.finfo(dtype).eps * (exact.abs() + bound + bias.abs())
    out = layer(x)
    assert out.dtype == dtype and ((out - (exact.relu() if end == "relu" else exact)).abs() <= bound).all()
    assert torch.equal(out[0, 0].float(), (bias.relu() if end == "relu" else bias).to(dtype).float())  # of a zero token


def test_a_token_does_not_see_its_neighbours():
    layer, x, _, _ = layer_and_input(torch.float32)
    louder = x.clone()
    louder[:, 1:] *= 1e4
    assert torch.equal(layer(louder)[:, 0], layer(x)[:, 0])


def test_sums_are_those_of_the_integers():
    """By whichever GEMM: weights and tokens of whole numbers up to 127 come out as they are."""
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randint(-127, 128, shape, generator=draw).float() for shape in ((16, 64), (40, 64)))
    weight[:, 0] = x[:, 0] = 127
    out = Int8Linear(weight, None, torch.float32, "none")(x)
    torch.testing.assert_close(out, x @ weight.t(), rtol=1e-5, atol=1)


def test_a_network_in_int8_is_near_its_float32(model, caplog):
    photo = torch.rand(1, 3, 60, 56, generator=torch.Generator().manual_seed(1)) * 255
    prepared = prepare_for_inference(model, dtype=torch.int8)
    assert prepared.dtype == torch.int8 and prepared.float_dtype in (torch.float32, torch.bfloat16)
    assert ("8-bit" in caplog.text) != has_int8_gemm()  # where it is no faster it says so
    wanted = prepare_for_inference(model, "sr2")(photo[..., :48, :48])
    out = prepared(photo[..., :48, :48], "sr2")
    # A network of random weights; the trained one's loss in dB: bench/notes/restore.md.
    assert 0 < (out - wanted).norm() < 0.03 * wanted.norm()
    restored = restore(prepared, photo, "sr2")
    assert torch.equal(restored, restore(model, photo, "sr2", dtype=torch.int8))
    tiled = restore_tiled(lambda x: prepared(x, "sr2"), photo, scale=2)
    torch.testing.assert_close(tiled, restored, rtol=0, atol=1e-3)
    again = pickle.loads(pickle.dumps(copy.deepcopy(prepared)))
    assert torch.equal(again(photo[..., :48, :48], "sr2"), out)
    assert next(model.parameters()).dtype == torch.float32


def test_what_cannot_run_is_refused(model):
    with pytest.raises(ValueError, match=r"float8_e4m3fn needs a CUDA device of capability 8\.9 .*\(found cpu\)"):
        prepare_for_inference(model, dtype=FP8)
    with pytest.raises(ValueError, match=r"int8 is for CPUs \(found cuda\)"):
        arithmetic(torch.int8, torch.device("cuda"))
    with pretend_cuda((8, 0), 80 << 30), pytest.raises(ValueError, match=r"needs .* 8\.9 .*\(found capability 8\.0\)"):
        arithmetic(FP8, torch.device("cuda"))
    prepared = prepare_for_inference(model, "sr2", torch.int8)
    with pytest.raises(ValueError, match=r"prepared for torch\.int8, got dtype=torch\.float32"):
        restore(prepared, torch.rand(3, 48, 48), "sr2", dtype=torch.float32)


def test_shapes_of_fp8_on_a_gpu_that_is_not_there():
    with pretend_cuda((9, 0), 80 << 30):
        how = arithmetic(FP8, torch.device("cuda"))
        layer = how.linear(torch.empty(64, 48, device="cuda"), torch.empty(64, device="cuda"), "relu")
        assert layer.values.dtype == FP8 and layer.scale.dtype == torch.float32 and layer.scale.shape == (64,)
        out = layer(torch.empty(3, 5, 48, device="cuda", dtype=torch.bfloat16))
        assert out.shape == (3, 5, 64) and out.dtype == torch.bfloat16 and out.device.type == "cuda"
        with pytest.raises(ValueError, match="multiples of 16, found one of 40 to 64"):
            how.linear(torch.empty(64, 40, device="cuda"), None)


@pytest.mark.gpu
def test_fp8_on_a_gpu(model, device):
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip("needs a CUDA device of capability 8.9")
    network, x = copy.deepcopy(model).to(device), torch.rand(2, 3, 48, 48, device=device) * 255
    wanted = prepare_for_inference(network, "sr2")(x)
    out = prepare_for_inference(network, "sr2", FP8)(x)
    assert 0 < (out - wanted).norm() < 0.1 * wanted.norm()
