"""Faults of the network and of the prepared network."""

from tests.mutants import Mutant

_IPT, _LAYERS, _TAIL = "ipt_fast/model/ipt.py", "ipt_fast/model/layers.py", "ipt_fast/model/tail.py"
_PREPARE = "ipt_fast/inference/prepare.py"
_TEST_IPT, _TEST_LAYERS = "tests/model/test_ipt.py", "tests/model/test_layers.py"
_BLOCKS, _TEST_BLOCKS = "ipt_fast/model/blocks.py", "tests/model/test_blocks.py"
_TEST_PREPARE = "tests/inference/test_prepare.py"

MUTANTS = [
    # Head, body and tail.
    Mutant(_IPT, "RGB_MEAN = (0.4488, 0.4371, 0.4040)", "RGB_MEAN = (0.4040, 0.4371, 0.4488)", _TEST_IPT),
    Mutant(_IPT, "self.sub_mean = MeanShift(-1)", "self.sub_mean = MeanShift(1)", _TEST_IPT),
    Mutant(_IPT, "return self.body(x) + x\n", "return self.body(x)\n", _TEST_IPT),
    Mutant(_IPT, "x.permute(0, 2, 4, 1, 3, 5)", "x.permute(0, 4, 2, 1, 3, 5)", _TEST_IPT),
    Mutant(_IPT, "x.permute(0, 3, 1, 4, 2, 5)", "x.permute(0, 3, 1, 5, 2, 4)", _TEST_IPT),
    Mutant(_IPT, "x = self.linear_encoding(x) + x", "x = self.linear_encoding(x)", _TEST_IPT),
    Mutant(_IPT, "x = x + self.position_encoding.pe.weight.to(x.dtype)", "pass", _TEST_IPT),
    Mutant(_IPT, "self.query_embed.weight[index]", "self.query_embed.weight[0]", _TEST_IPT),
    Mutant(_IPT, 'feats = decoded if self.config.features_from == "decoder" else x', "feats = decoded", _TEST_IPT),
    Mutant(_IPT, "self.tail[index](y + x)", "self.tail[index](y)", _TEST_IPT),
    Mutant(_IPT, "self.tail[index](y + x)", "self.tail[0](y + x)", _TEST_IPT),
    Mutant(_TAIL, "4: (2, 2)}", "4: (4,)}", _TEST_IPT),
    # Layers.
    Mutant(_LAYERS, "x = x + self.self_attn(x, self.norm1)\n", "x = self.self_attn(x, self.norm1)\n", _TEST_BLOCKS),
    Mutant(
        _LAYERS,
        "z = z + self.multihead_attn(z, self.norm2, E, memory)",
        "z = z + self.multihead_attn(z, self.norm2, None, memory)",
        _TEST_BLOCKS,
    ),
    Mutant(
        _LAYERS,
        "z = z + self.multihead_attn(z, self.norm2, E, memory)",
        "z = z + self.multihead_attn(z, self.norm1, E, memory)",
        _TEST_BLOCKS,
    ),
    Mutant(
        _LAYERS,
        "x, branch = layer(x if branch is None else x + branch), None",
        "x, branch = layer.forward(x if branch is None else x + branch), None",
        _TEST_LAYERS,
    ),
    Mutant(_LAYERS, "layer(z if branch is None else z + branch, memory", "layer(z, memory", _TEST_BLOCKS),
    # Branches.
    Mutant(_BLOCKS, "            dweight[:embedded].addmm_(dembed.t(), E)", "            pass", _TEST_BLOCKS),
    Mutant(_BLOCKS, "dbias2 = total if past is grad else out.sum(0)", "dbias2 = total", _TEST_BLOCKS),
    Mutant(
        _BLOCKS,
        "joined.split(ctx.rows, dim=1), grads)",
        "joined.split(ctx.rows, dim=1), [2 * g for g in grads])",
        _TEST_BLOCKS,
    ),
    Mutant(_LAYERS, "eps=norm.eps, recompute=self.recompute", "eps=norm.eps", _TEST_LAYERS),
    # Prepared for inference.
    Mutant(_PREPARE, "rows = weight[:D] if cross else weight[: 2 * D]", "rows = weight[: 2 * D]", _TEST_PREPARE),
    Mutant(
        _PREPARE,
        "for layer, k, v in zip(self.decoder, parts[::2], parts[1::2]",
        "for layer, v, k in zip(self.decoder, parts[::2], parts[1::2]",
        _TEST_PREPARE,
    ),
    Mutant(_PREPARE, "x = self.mlp_head(x) + x", "x = self.mlp_head(x)", _TEST_PREPARE),
    Mutant(_PREPARE, "self.requires_grad_(False).eval()", "self.eval()", _TEST_PREPARE),
    Mutant(_PREPARE, "to(how.dtype, copy=True) if self", "to(how.dtype) if self", _TEST_PREPARE),
]
