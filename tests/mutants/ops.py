"""Faults of the fused ops."""

from tests.mutants import Mutant

_ATTENTION, _LOSS, _TAIL = (
    f"ipt_fast/ops/{op}.py" for op in ("patch_attention", "patch_contrastive_loss", "pixelshuffle_tail")
)
_ATTENTION_CPU, _LOSS_GEMM = "ipt_fast/ops/_patch_attention_cpu.py", "ipt_fast/ops/_patch_contrastive_loss_gemm.py"
_RANKS = "ipt_fast/ops/_contrastive_ranks.py"
_NORM, _FFN, _REGISTRY = "ipt_fast/ops/layernorm_linear.py", "ipt_fast/ops/ffn.py", "ipt_fast/ops/_registry.py"
_TEST_ATTENTION, _TEST_LOSS = "tests/ops/test_patch_attention.py", "tests/ops/test_patch_contrastive_loss.py"
_ROWS, _ROWS_GEMM = "ipt_fast/ops/row_contrastive_loss.py", "ipt_fast/ops/_row_contrastive_loss_gemm.py"
_TEST_ROWS, _TEST_ROWS_RANKS = "tests/ops/test_row_contrastive_loss.py", "tests/ops/test_row_contrastive_ranks.py"
_ROWS_KERNEL, _TEST_ROWS_KERNEL = "kernels/row_contrastive_loss.py", "tests/kernels/test_row_contrastive_loss.py"
_TEST_NORM, _TEST_FFN = "tests/ops/test_layernorm_linear.py", "tests/ops/test_ffn.py"
_TEST_RANKS, _TEST_TAIL = "tests/ops/test_patch_contrastive_ranks.py", "tests/ops/test_pixelshuffle_tail.py"

MUTANTS = [
    # Attention.
    Mutant(_ATTENTION, "q @ k.transpose(-2, -1) * scale", "q @ k.transpose(-2, -1)", _TEST_ATTENTION),
    Mutant(_ATTENTION_CPU, "k if k_embed is None else k + k_embed", "k", _TEST_ATTENTION),
    Mutant(_ATTENTION_CPU, "own = [None if e is None else e[heads] for e in embeds]", "own = embeds", _TEST_ATTENTION),
    Mutant(
        _ATTENTION_CPU, "db.copy_(_scaled_bmm(ds.mT, a, scale)", "db.copy_(_scaled_bmm(ds.mT, a, 1.0)", _TEST_ATTENTION
    ),
    Mutant(_ATTENTION_CPU, "dc.copy_(torch.bmm(p.mT, g)", "dc.copy_(torch.bmm(p, g)", _TEST_ATTENTION),
    Mutant(_ATTENTION_CPU, "doubtful = lse.isinf() | (lse == 0)", "doubtful = lse.isnan()", _TEST_ATTENTION),
    # Contrastive loss.
    Mutant(
        _LOSS,
        "    negatives = d.masked_fill(same_image, -torch.inf).logsumexp(2)",
        "    negatives = d.logsumexp(2)",
        _TEST_LOSS,
    ),
    Mutant(_LOSS, "norm = norm.masked_fill(norm.isinf(), torch.nan)\n", "", _TEST_LOSS),
    Mutant(_RANKS, "first = dist.get_rank() * len(x)\n", "first = 0\n", _TEST_RANKS),
    Mutant(_RANKS, "        dist.all_reduce(grads)\n", "", _TEST_RANKS),
    Mutant(_LOSS_GEMM, "p[inside(j, both), :, inside(k, both)].diagonal(dim1=0, dim2=2).zero_()", "pass", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "log_means - positives / N**2", "log_means - positives / N", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "add_product(g[inside(group, k)], w.t(), rows)", "pass", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "total.addcmul_(unit, along[..., None], value=-1)", "total", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "if mirrored is not None and (both or together is None)", "if both", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "together = group if own and a == b else None", "together = group if own else None", _TEST_LOSS),
    Mutant(_LOSS_GEMM, "self.visitors(a) if a != b else ()", "()", _TEST_RANKS),
    Mutant(
        _LOSS_GEMM, "widest, budget // (images * D * number)", "widest", "tests/ops/test_patch_contrastive_memory.py"
    ),
    Mutant(_LOSS_GEMM, "_VISIT = 1 << 21", "_VISIT = 1 << 40", "tests/ops/test_patch_contrastive_memory.py"),
    Mutant(_RANKS, "        held = coming\n", "", _TEST_RANKS),
    Mutant(_RANKS, "if step < ranks - 1 else ()", "if step < ranks - 2 else ()", _TEST_RANKS),
    Mutant(_LOSS_GEMM, "dist.all_reduce(largest, dist.ReduceOp.MAX)", "pass", _TEST_RANKS),
    # Contrastive loss over rows.
    Mutant(_ROWS, "torch.where(same_pair, by_row, -by_row)", "torch.where(same_pair, -by_row, by_row)", _TEST_ROWS),
    Mutant(_ROWS, 'if mode == "softmax" and bias is not None:', "if False:", _TEST_ROWS),
    Mutant(
        _ROWS_GEMM,
        "(row_most - positives) + row_sums.log()",
        "(row_most + row_sums.log()) - positives",
        _TEST_ROWS,
    ),
    Mutant(
        _ROWS_GEMM, "sums.mul_((most - both).exp_()).add_(terms.sum(axis))", "sums.add_(terms.sum(axis))", _TEST_ROWS
    ),
    Mutant(_ROWS_GEMM, "(logits, 1, 50, out=spare)", "(logits, 1, 20, out=spare)", _TEST_ROWS),
    Mutant(_ROWS_GEMM, "positives.sub_(rows[0, at])", "pass", _TEST_ROWS),
    Mutant(_ROWS_GEMM, "largest.masked_fill(largest == 0, 1.0)", "largest", _TEST_ROWS),
    Mutant(
        _ROWS_GEMM,
        "self.tile_gradients(self.tiles.x, y, self.known[::2], known[1::2])",
        "self.tile_gradients(self.tiles.x, y, self.known[::2], self.known[1::2])",
        _TEST_ROWS_RANKS,
    ),
    Mutant(_ROWS_GEMM, "own = x is self.x and y is self.y", "own = True", _TEST_ROWS_RANKS),
    Mutant(_ROWS_GEMM, "if x is tiles.x:", "if True:", _TEST_ROWS_RANKS),
    Mutant(
        _ROWS_KERNEL,
        "losses = tl.where(inside, tl.where(u > 0, u, 0.0) + 2.0 * t * series, 0.0)",
        "losses = tl.where(inside, tl.where(u > 0, u, 0.0) + tl.log(1.0 + z), 0.0)",
        _TEST_ROWS_KERNEL,
    ),
    Mutant(
        _ROWS_KERNEL,
        "positives = c[None, :] - r[:, None] == offset",
        "positives = c[None, :] == r[:, None]",
        _TEST_ROWS_KERNEL,
    ),
    Mutant(_ROWS_KERNEL, "sums = sums * tl.exp(most - both)", "sums = sums", _TEST_ROWS_KERNEL),
    Mutant(_ROWS_GEMM, "dist.all_reduce(largest, dist.ReduceOp.MAX)", "pass", _TEST_ROWS_RANKS),
    Mutant(
        _ROWS_GEMM,
        "_TILE = (256, 2048), (2048, 2048)",
        "_TILE = (256, 2048), (8192, 8192)",
        "tests/ops/test_row_contrastive_memory.py",
    ),
    # LayerNorm and linear, feed-forward network.
    Mutant(
        _NORM,
        "F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), cast(norm_bias, x.dtype), eps)",
        "F.layer_norm(x, x.shape[-1:], norm_weight.to(x.dtype), None, eps)",
        _TEST_NORM,
    ),
    Mutant(
        _NORM,
        "dx, *dnorm = normalised_backward(passes(), rows @ weight.to(dtype), x,",
        "dx, *dnorm = normalised_backward(passes(), 2 * rows @ weight.to(dtype), x,",
        _TEST_NORM,
    ),
    Mutant(
        _FFN,
        "None if bias2 is None else grad.sum(0)",
        "None if bias2 is None else grad.mean(0)",
        _TEST_FFN,
    ),
    # Registry.
    Mutant(_REGISTRY, "        if reasons[impl] is not None:", "        if False:", _TEST_ATTENTION),
    Mutant(
        _REGISTRY, "    if impl is None:\n        impl, source", "    if True:\n        impl, source", _TEST_ATTENTION
    ),
]
