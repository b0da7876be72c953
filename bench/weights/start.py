"""The weights that a run of few CPU hours starts from: a network that hands the photo on, enlarged pixel by pixel.

    python -m bench.weights.start configs/pretrain_pocket.yaml runs/pocket/start.pt

PyTorch's own start is a network that maps a photo to noise, and a small budget goes by until it maps it to itself. Here
the last layer of every residual branch is zero, so that each adds nothing at first, and three of the features are the
colours, from the head to the tail. Only the values of an ordinary checkpoint differ: ``train.py --init`` takes it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ipt_fast.checkpoint import save_network
from ipt_fast.engine.recipe_file import read_recipe
from ipt_fast.model import IPT, IPTConfig

# Of features to levels. Adam moves all weights alike: so those of heads and tails are of one size.
GAIN = 1 / 8


@torch.no_grad()
def start_network(config: IPTConfig, seed: int = 0, gain: float = GAIN) -> IPT:
    """Return a network whose output is its input, or for super-resolution the nearest pixel's enlargement.

    Raises:
        ValueError: fewer than three features, or a network without the MLP around its transformer.
    """
    if config.n_feats < 3 or not config.mlp:
        raise ValueError("start_network: needs at least three features and the MLP (n_feats >= 3, mlp=True)")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = IPT(config)
    body = model.body
    if config.position_embed:
        nn.init.zeros_(body.position_encoding.pe.weight)
    layers = [*body.encoder.layers, *body.decoder.layers]
    silent = [body.linear_encoding, body.mlp_head[3]]
    for layer in layers:
        silent += [layer.self_attn.out_proj, layer.linear2]
    silent += [layer.multihead_attn.out_proj for layer in body.decoder.layers]
    for head, tail in zip(model.head, model.tail, strict=True):
        silent += [block.body[2] for block in (head[1], head[2])]
        first, last = head[0], tail[1]
        first.weight *= gain
        colours(first.weight, gain)
        nn.init.zeros_(last.weight)
        colours(last.weight, 1 / (2 * gain))  # the body hands its input on, and is added to it
        for conv in list(tail[0])[::2]:
            conv.weight *= 0.5
            nearest(conv.weight)
            nn.init.zeros_(conv.bias)
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
    for module in silent:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return model


def colours(weight: Tensor, value: float) -> None:
    """Make the first three outputs of a convolution [O, I, k, k] its first three inputs times a value."""
    middle = weight.shape[-1] // 2
    weight[:3] = 0.0
    for c in range(3):
        weight[c, c, middle, middle] = value


def nearest(weight: Tensor) -> None:
    """Make the colours' outputs of a convolution before a PixelShuffle, [C r^2, C, k, k], r^2 copies of them."""
    outputs, inputs, k, _ = weight.shape
    squared = outputs // inputs
    weight[: 3 * squared] = 0.0
    for output in range(3 * squared):
        weight[output, output // squared, k // 2, k // 2] = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m bench.weights.start", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    config = read_recipe(args.recipe)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_network(start_network(config.model, config.seed), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
