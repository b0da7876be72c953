"""One op in another network: a DETR decoder layer whose positions are added inside of the attention.

DETR (Carion et al., 2020) adds learned query positions to q and the image's positions to k, never to v. Written with
``nn.MultiheadAttention`` the sums are tensors of their own in every layer; here they are never made.
"""

import torch
from torch import Tensor, nn

from ipt_fast.ops import ffn, patch_attention


class Attention(nn.Module):
    """Multi-head attention with an embedding for the queries and one for the keys."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, x_pos: Tensor, memory_pos: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(memory), self.v(memory)  # [B, Q, D], [B, M, D] twice
        # (x + pos) W = x W + pos W: the embedding is projected once for the whole batch.
        q_embed = nn.functional.linear(x_pos, self.q.weight)  # [Q, D]
        k_embed = nn.functional.linear(memory_pos, self.k.weight)  # [M, D]
        return self.out(patch_attention(q, k, v, num_heads=self.heads, q_embed=q_embed, k_embed=k_embed))


class DecoderLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the image, feed-forward; pre-norm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.self_attention, self.cross_attention = Attention(dim, heads), Attention(dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, memory: Tensor, x_pos: Tensor, memory_pos: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attention(y, y, x_pos, x_pos)
        x = x + self.cross_attention(self.norm2(x), memory, x_pos, memory_pos)
        first, second = self.linear1, self.linear2
        return x + ffn(x, self.norm3.weight, self.norm3.bias, first.weight, first.bias, second.weight, second.bias)


def main() -> None:
    """Run a layer forward and backward, compiled and not, and print what comes out."""
    torch.manual_seed(0)
    B, Q, M, D = 2, 20, 100, 64
    layer = DecoderLayer(D, heads=4)
    x, memory = torch.zeros(B, Q, D), torch.randn(B, M, D)
    x_pos, memory_pos = torch.randn(Q, D, requires_grad=True), torch.randn(M, D)
    out = layer(x, memory, x_pos, memory_pos)  # [B, Q, D]
    out.square().mean().backward()
    assert x_pos.grad is not None
    print(f"out {list(out.shape)}, gradient of the query positions {x_pos.grad.norm():.3f}")


if __name__ == "__main__":
    main()
