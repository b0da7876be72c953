"""No argument of a wrong type, dtype, layout or range passes unnamed: one sentence with the op and the argument."""

import math

import numpy as np
import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.degradations.bicubic import bicubic_down, bicubic_up, imresize
from ipt_fast.degradations.noise import add_noise
from ipt_fast.degradations.rain import rain_layers
from ipt_fast.ops import degrade, ffn, layernorm_linear, patch_attention

CONFIG = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2",))
x, w6, w9, w4 = torch.randn(2, 5, 6), torch.randn(6), torch.randn(9), torch.randn(4)
clean = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
attention = {"q": x, "k": x, "v": x, "num_heads": 2, "q_embed": x[0], "k_embed": x[0], "scale": 0.3}
norm = {"x": x, "norm_weight": w6, "norm_bias": w6, "eps": 0.1}
layers = {"weight1": torch.randn(9, 6), "bias1": w9, "weight2": torch.randn(4, 9), "bias2": w4}
crops = {"clean": clean, "task": "derain", "generator": None, "seeds": torch.arange(2), "margin": 0, "rain": None}
CALLS = {
    patch_attention: {**attention, "impl": None},
    layernorm_linear: {**norm, "weight": torch.randn(4, 6), "bias": w4, "impl": None},
    ffn: {**norm, **layers, "activation": "relu", "recompute": True, "impl": None},
    degrade: {**crops, "impl": None},
    IPT(CONFIG): {"x": torch.rand(1, 3, 12, 12), "task": "sr2", "return_features": False},
    IPT: {"config": CONFIG},
    IPTConfig: CONFIG.to_dict(),
}
STRANGE = [
    *(None, True, -1, 1.5, math.nan, math.inf, 1j, "a", b"a", [], [1.0], {"a": 1}, object()),
    *(np.zeros((2, 5, 6)), torch.tensor(1.0), torch.zeros(2, 5, 6, 1), torch.zeros(2, 5, 6, device="meta")),
    *(torch.zeros(2, 5, 6, dtype=torch.complex64), torch.zeros(2, 5, 6).bool(), torch.zeros(2, 5, 6).to_sparse()),
]
NUMBERS = {"scale", "eps"}


@pytest.mark.parametrize("function, argument", [(f, name) for f, arguments in CALLS.items() for name in arguments])
def test_every_wrong_argument_is_named(function, argument):
    title = getattr(function, "__name__", type(function).__name__)
    for value in STRANGE:
        default = isinstance(value, bool) and type(CALLS[function][argument]) is bool
        if (
            value is None
            or default
            or (argument in NUMBERS and type(value) in (int, float) and math.isfinite(value % 9))
        ):
            continue  # these may fit
        with pytest.raises((TypeError, ValueError)) as caught:
            function(**{**CALLS[function], argument: value})
        message = str(caught.value)
        assert message.startswith((title, argument)) and argument in message and len(message) < 300, (value, message)


@pytest.mark.parametrize("function, argument", [(patch_attention, "scale"), (layernorm_linear, "eps"), (ffn, "eps")])
def test_numbers_beyond_a_float_are_refused(function, argument):
    for value in (10**400, -(10**400), math.nan, math.inf):
        with pytest.raises(ValueError, match=f"{function.__name__}: {argument} must be finite"):
            function(**{**CALLS[function], argument: value})


def test_what_rain_returns_is_looked_at():
    for layers in (None, torch.zeros(2, 7, 24), torch.zeros(2, 24, 24, device="meta"), torch.zeros(2, 24, 24).bool()):
        with pytest.raises((TypeError, ValueError), match="degrade: what rain returns must be"):
            degrade(clean, "derain", rain=lambda seeds, height, width: layers)  # noqa: B023


@pytest.mark.parametrize("draw", [lambda seeds: add_noise(clean, seeds, 30), lambda seeds: rain_layers(seeds, 24, 24)])
def test_seeds_of_32_bits_would_give_other_numbers_and_are_refused(draw):
    with pytest.raises(TypeError, match=r"seeds must be .*int64.*got .*torch.int32"):
        draw(torch.arange(2, dtype=torch.int32))


def test_scales_and_images_of_resizing():
    for scale in (np.float32(0.5), np.float64(0.5)):
        assert torch.equal(imresize(clean, scale), bicubic_down(clean, 2))
    assert torch.equal(bicubic_up(clean, np.int64(3)), imresize(clean, 3))
    with pytest.raises(ValueError, match=r"bicubic_down: scale must be at least 2 \(got 0\)"):
        bicubic_down(clean, 0)
    for image in (clean.int(), clean.to(torch.complex64), clean.to_sparse()):
        with pytest.raises(TypeError, match="imresize: image must be dense, uint8 or floating"):
            imresize(image, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_whole_levels_of_any_dtype_are_resized_as_they_are(dtype):
    whole = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    assert torch.equal(imresize(whole.to(dtype), 0.5), imresize(whole, 0.5))
