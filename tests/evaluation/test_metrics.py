"""The metrics against known figures of the benchmarks, and against scikit-image."""

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.degradations.bicubic import bicubic_up
from ipt_fast.evaluation.metrics import psnr_rgb, psnr_y, ssim_y, to_luma
from ipt_fast.ops import degrade

METRICS = [psnr_y, psnr_rgb, ssim_y]


def read(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("scale, known", [(2, 33.67), (3, 30.40), (4, 28.43)])
def test_bicubic_on_set5_scores_what_the_papers_report(shared, scale, known):
    scores = []
    for path in sorted((shared / "data/Set5/HR").glob("*.png")):
        low = next((shared / f"data/Set5/LR_bicubic/X{scale}").glob(f"{path.stem}*"))
        up = bicubic_up(read(low), scale)
        clean = read(path)[:, : up.shape[1], : up.shape[2]]
        scores.append(psnr_y(up, clean, border=scale).item())
    assert len(scores) == 5
    assert np.mean(scores) == pytest.approx(known, abs=0.02)


def test_rain100l_input_scores_what_the_paper_reports(shared):
    rainy = sorted((shared / "data/Rain100L/rain").glob("*.png"))
    scores = [psnr_y(read(p), read(p.parent.parent / "norain" / f"no{p.name}")).item() for p in rainy]
    assert len(scores) == 100
    assert np.mean(scores) == pytest.approx(26.90, abs=0.01)


@pytest.mark.parametrize("sigma, low, high", [(30, 18.59, 19.2), (50, 14.15, 15.2)])
def test_noise_inputs_score_what_the_sigma_says(shared, sigma, low, high):
    """20 log10(255 / sigma), a little more because clipping takes noise away."""
    scores = []
    for number, path in enumerate(sorted((shared / "data/CBSD68").glob("*.png"))[:12]):
        noisy, clean = degrade(read(path)[None], f"denoise{sigma}", seeds=torch.tensor([number]))
        scores.append(psnr_rgb(noisy, clean).item())
    assert low < np.mean(scores) < high


@pytest.mark.parametrize("shape", [(11, 11), (40, 33), (64, 90)])
def test_ssim_equals_scikit_image(shape):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    target = torch.rand(2, 3, *shape) * 255
    output = (target + 20 * torch.randn_like(target)).clamp(0, 255).round()
    ours = ssim_y(output, target)
    for i in range(2):
        x, y = (to_luma(image[i].double()).numpy() for image in (output, target))
        theirs = structural_similarity(
            x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours[i].item() == pytest.approx(theirs, abs=1e-9)


def test_psnr_rgb_equals_scikit_image():
    peak_signal_noise_ratio = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    target = torch.randint(0, 256, (3, 30, 20), dtype=torch.uint8)
    output = torch.randint(0, 256, (3, 30, 20), dtype=torch.uint8)
    theirs = peak_signal_noise_ratio(target.numpy(), output.numpy(), data_range=255)
    assert psnr_rgb(output, target).item() == pytest.approx(theirs, abs=1e-9)


def test_psnr_y_by_hand():
    """One level of green everywhere is 129.057 / 256 levels of Y."""
    target = torch.full((3, 8, 8), 100.0)
    output = target.clone()
    output[1] += 1
    assert psnr_y(output, target).item() == pytest.approx(20 * np.log10(255 * 256 / 129.057), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_output_is_clamped_and_rounded(metric):
    target = torch.randint(1, 255, (1, 3, 16, 16)).float()
    output = target + 0.4 * torch.rand_like(target)
    best = 1.0 if metric is ssim_y else float("inf")
    assert metric(output, target).item() == best
    white = torch.full_like(target, 255.0)
    assert metric(white + 90, white).item() == best


@pytest.mark.parametrize("metric", METRICS)
def test_border_cuts_every_side(metric):
    target = torch.randint(0, 255, (1, 3, 24, 24)).float()
    output = target + 3
    spoiled = output.clone()
    spoiled[..., :2, :] = spoiled[..., -2:, :] = 0
    spoiled[..., :2] = spoiled[..., -2:] = 0
    assert metric(spoiled, target, border=2).item() == metric(output, target, border=2).item()
    assert metric(spoiled, target, border=1).item() != metric(output, target, border=1).item()


@pytest.mark.parametrize("metric", METRICS)
def test_one_value_per_image_whatever_the_batch(metric):
    target = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    output = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    values = metric(output, target)
    assert values.shape == (3,)
    torch.testing.assert_close(values, torch.cat([metric(o, t) for o, t in zip(output, target, strict=True)]))


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_images_are_refused(metric):
    image = torch.zeros(3, 20, 20)
    with pytest.raises(ValueError, match=r"output is \[3, 20, 20\] and target \[3, 20, 18\]"):
        metric(image, image[..., :18])
    with pytest.raises(ValueError, match=r"must be a dense real tensor \[..., 3, H, W\]"):
        metric(image[:1], image[:1])
    with pytest.raises(ValueError, match="border=10 leaves nothing"):
        metric(image, image, border=10)


def test_ssim_says_that_an_image_is_too_small():
    with pytest.raises(ValueError, match="at least 11 pixels a side"):
        ssim_y(torch.zeros(3, 12, 12), torch.zeros(3, 12, 12), border=1)
