"""A prepared network computes what its model does, is its own, and says what it cannot do."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.torch_version import TorchVersion

from bench.baselines.plain_ipt import plain_copy
from ipt_fast import IPT, IPTConfig, restore
from ipt_fast.inference import prepare_for_inference
from ipt_fast.ops._common import has_fast_bf16

CONFIG = IPTConfig(n_feats=16, num_heads=3, num_layers=2, tasks=("sr2", "sr4", "denoise30"))
SWITCHES = ({}, {"memory_norm": True}, {"mlp": False, "task_embed": False, "position_embed": False})
HALVES = (torch.bfloat16, torch.float16)


def make(config=CONFIG, **switches):
    torch.manual_seed(0)
    return IPT(IPTConfig(**{**config.to_dict(), **switches})).eval()


@pytest.fixture(scope="module")
def x():
    return torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 255


def under_autocast(model, x, task, dtype):
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype in HALVES):
        return model(x, task)


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_it_errs_no_more_than_the_model(switches, dtype, x):
    model, x = make(**switches), x[:2]
    exact = plain_copy(copy.deepcopy(model).double())
    for task in model.config.tasks:
        with torch.no_grad():
            wanted = exact(x.double(), task)
        ours, theirs = prepare_for_inference(model, dtype=dtype)(x, task), under_autocast(model, x, task, dtype)
        assert ours.dtype == torch.float32 and ours.shape == wanted.shape
        assert (ours - wanted).norm() <= 1.2 * (theirs - wanted).norm() + 1e-7 * wanted.norm()


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("task", CONFIG.tasks)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_the_bits_of_the_model_where_that_collapses_its_tail(switches, task, dtype, x):
    """The GEMMs sum in the same order; a batch of one or two lets the model take the tail's chain.

    In bfloat16 only from torch 2.13 on: the oneDNN of older ones rounds a few values of prepacked GEMMs the other way.
    """
    model = make(**switches)
    ours, wanted = prepare_for_inference(model, task, dtype)(x), under_autocast(model, x, task, dtype)
    if dtype == torch.bfloat16 and torch.__version__ < TorchVersion("2.13"):
        assert (ours - wanted).norm() <= 1e-3 * wanted.norm()  # a quarter of bfloat16's epsilon
    else:
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_none_takes_the_models_own_dtype(dtype, x):
    model = make().to(dtype)
    prepared = prepare_for_inference(model)
    assert prepared.dtype == dtype
    with torch.no_grad():
        wanted = model(x[:2], "denoise30")
    torch.testing.assert_close(prepared(x[:2], "denoise30"), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-9)


def test_it_is_frozen_and_its_own(x):
    model = make().train()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    for dtype in (torch.float32, torch.bfloat16):
        prepared = prepare_for_inference(model, "denoise30", dtype)
        before = prepared(x[:1])
        assert not prepared.training and not any(p.requires_grad for p in prepared.parameters())
        assert not any(module.training for module in prepared.modules())
        assert not prepared(x[:1].clone().requires_grad_()).requires_grad
        for p in model.parameters():
            p.data.mul_(2)
        assert torch.equal(prepared(x[:1]), before)
        assert not torch.equal(prepare_for_inference(model, "denoise30", dtype)(x[:1]), before)
        model.load_state_dict(state)
    assert model.training and model.body.linear_encoding.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_and_pickles(dtype, x):
    prepared = prepare_for_inference(make(), dtype=dtype)
    wanted = prepared(x[:1], "sr2")
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(prepared)))(x[:1], "sr2"), wanted)


def test_autocast_does_not_change_its_dtype(x):
    prepared = prepare_for_inference(make(), "denoise30")
    wanted = prepared(x[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(x[:1]), wanted)


def test_inference_mode_and_autocast_around_the_preparation_leave_no_trace(x):
    model = make()
    wanted = prepare_for_inference(model, "sr4", torch.bfloat16)(x[:1])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        prepared = prepare_for_inference(model, "sr4", torch.bfloat16)
        assert torch.equal(prepared(x[:1]), wanted)
    assert torch.equal(prepared(x[:1]), wanted)


def test_float32_compiles(x):
    prepared = prepare_for_inference(make(), "denoise30")
    compiled = torch.compile(prepared, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x[:2]), prepared(x[:2]), rtol=1e-5, atol=1e-3)


class Doubled(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replaced_and_parametrized_parts_are_called(dtype, x):
    model = make()
    before = prepare_for_inference(model, "sr2", dtype)(x)
    layer = model.body.decoder.layers[0]
    layer.linear1 = Doubled(layer.linear1)
    layer.norm2 = Doubled(layer.norm2)
    model.tail[0][1] = Doubled(model.tail[0][1])
    model.body.mlp_head[2] = nn.GELU()
    parametrizations.weight_norm(layer.linear2).parametrizations.weight.original0.data.mul_(2)
    parametrizations.orthogonal(layer.self_attn, "in_proj_weight")
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.body.encoder.layers[1].self_attn.out_proj)
    after = prepare_for_inference(model, "sr2", dtype)(x)
    wanted = under_autocast(model, x, "sr2", dtype)
    assert (after - wanted).norm() <= 10 * torch.finfo(dtype).eps * wanted.norm() < (after - before).norm()


def test_what_cannot_be_prepared_is_refused():
    model = make()
    with pytest.raises(TypeError, match=r"model must be an IPT \(got Linear\)"):
        prepare_for_inference(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="'deblur' is not in this network"):
        prepare_for_inference(model, "deblur")
    with pytest.raises(ValueError, match=r"float16, int8 or float8_e4m3fn, got torch.int16"):
        prepare_for_inference(model, dtype=torch.int16)
    model.body.encoder.layers[1] = nn.Identity()
    with pytest.raises(ValueError, match="needs a EncoderLayer, found a Identity"):
        prepare_for_inference(model)
    model = make()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.body.encoder.layers[0].self_attn, "in_proj_weight")
    with pytest.raises(ValueError, match="a hook makes in_proj_weight"):
        prepare_for_inference(model)


def test_calls_that_it_cannot_serve_are_refused(x):
    prepared = prepare_for_inference(make())
    with pytest.raises(ValueError, match="gives no contrastive features; call the model"):
        prepared(x, "sr2", return_features=True)
    with pytest.raises(ValueError, match="prepared for sr2, sr4, denoise30: say which task"):
        prepared(x)
    one = prepare_for_inference(make(), 1)
    assert one.tasks == ("sr4",) and one.task_index("sr4") == one.task_index(1) == 1 and one.config == CONFIG
    for wrong in ("sr2", 0, "deblur", 7):
        with pytest.raises(ValueError, match="is not in this network, which is prepared for sr4"):
            one(x, wrong)
    with pytest.raises(ValueError, match=r"\[B, 3, 48, 48\], got \[8, 3, 24, 48\]"):
        one(x[:, :, :24])
    with pytest.raises(ValueError, match="floating-point x"):
        one(x.byte())
    for move in (lambda: one.to(torch.float64), one.half, lambda: one.to("meta")):
        with pytest.raises(RuntimeError, match=r"prepared for cpu and torch\.float32; move the model"):
            move()
    assert one.to("cpu", torch.float32) is one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_takes_it(dtype):
    model = make()
    image = torch.rand(1, 3, 60, 70, generator=torch.Generator().manual_seed(2)) * 255
    prepared = prepare_for_inference(model, "sr2", dtype)
    assert torch.equal(restore(prepared, image, "sr2"), restore(model, image, "sr2", dtype=dtype))
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(ValueError, match=f"prepared for {dtype}, got dtype={other}"):
        restore(prepared, image, "sr2", dtype=other)


def test_restore_sees_weights_that_were_written_between_two_calls():
    model = make()
    image = torch.rand(1, 3, 48, 60, generator=torch.Generator().manual_seed(2)) * 255
    for dtype in (torch.float32, torch.bfloat16):
        before = restore(model, image, "denoise30", dtype=dtype)
        for p in model.parameters():
            p.data.mul_(0.75).add_(p.detach() * 1.5, alpha=0.25)  # as BasicSR and KAIR average weights
        fresh = make()
        fresh.load_state_dict(model.state_dict())
        after = restore(model, image, "denoise30", dtype=dtype)
        assert torch.equal(after, restore(fresh, image, "denoise30", dtype=dtype)) and not torch.equal(after, before)


@pytest.mark.skipif(not has_fast_bf16(), reason="needs a CPU with AVX512-BF16 or AMX")
def test_every_gemm_of_the_layers_is_prepacked_in_bfloat16(x):
    from torch.profiler import ProfilerActivity, profile

    prepared = prepare_for_inference(make(), "denoise30", torch.bfloat16)
    prepared(x[:1])
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        prepared(x[:1])
    names = [event.name for event in trace.events()]
    # Linear encoding 1, MLP 2; encoder layers 4 each, decoder layers 6 each, their keys and values together 1.
    assert names.count("mkldnn::_linear_pointwise") == 3 + 2 * 4 + 2 * 6 + 1
    assert "aten::linear" not in names and "aten::relu_" not in names[names.index("mkldnn::_linear_pointwise") :]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_on_a_gpu(dtype, x):
    model, x = make().cuda(), x[:2].cuda()
    exact = plain_copy(copy.deepcopy(model).double())
    for task in model.config.tasks:
        with torch.no_grad():
            wanted = exact(x.double(), task)
            with torch.autocast("cuda", dtype, enabled=dtype in HALVES):
                theirs = model(x, task)
        ours = prepare_for_inference(model, task, dtype)(x)
        assert (ours - wanted).norm() <= 1.5 * (theirs - wanted).norm() + 1e-6 * wanted.norm()
