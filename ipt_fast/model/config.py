"""The sizes and switches of an IPT, and the presets."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ipt_fast.arguments import checked
from ipt_fast.tasks import TASKS, get_task


@checked
@dataclass(frozen=True)
class IPTConfig:
    """Sizes of the network; the defaults are the released six-task network.

    Args:
        n_feats: channels of the heads' features.
        patch_size: side of the input in pixels.
        patch_dim: side of one token's square of pixels; D = n_feats * patch_dim**2, N = (patch_size / patch_dim)**2.
        num_heads: attention heads; must divide D.
        num_layers: layers of the encoder, and as many of the decoder.
        tasks: names of the tasks; head, tail and task embedding i belong to tasks[i].
        ffn_ratio: width of the feed-forward networks over D.
        position_embed: learned position added once, before the encoder (off: paper's ablation).
        task_embed: learned task embedding in every decoder layer (off: paper's ablation).
        mlp: linear encoding before and MLP after the transformer.
        memory_norm: LayerNorm on the decoder's memory as in Eq. 2; the released network has none.
        features_from: where the contrastive features are taken: "body" (after the MLP and its residual, before the
            fold) or "decoder" (the decoder's output, as the paper's text says).
    """

    n_feats: int = 64
    patch_size: int = 48
    patch_dim: int = 3
    num_heads: int = 12
    num_layers: int = 12
    tasks: tuple[str, ...] = TASKS
    ffn_ratio: int = 4
    position_embed: bool = True
    task_embed: bool = True
    mlp: bool = True
    memory_norm: bool = False
    features_from: Literal["body", "decoder"] = "body"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        for name in ("n_feats", "patch_size", "patch_dim", "num_heads", "num_layers", "ffn_ratio"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"IPTConfig: {name} must be a whole number of at least 1, got {value!r}")
        if self.patch_size % self.patch_dim:
            raise ValueError(
                f"IPTConfig: patch_dim={self.patch_dim} does not divide patch_size={self.patch_size}; "
                "choose a patch_dim that does"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"IPTConfig: num_heads={self.num_heads} does not divide the embedding {self.embed_dim} "
                f"(n_feats * patch_dim**2); choose a divisor"
            )
        if self.features_from not in ("body", "decoder"):
            raise ValueError(f'IPTConfig: features_from must be "body" or "decoder", got {self.features_from!r}')
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"IPTConfig: tasks must name each task once and at least one, got {self.tasks}")
        for task in self.tasks:
            get_task(task)

    @property
    def embed_dim(self) -> int:
        """D, the size of a token."""
        return self.n_feats * self.patch_dim**2

    @property
    def num_tokens(self) -> int:
        """N, the tokens of one input."""
        return (self.patch_size // self.patch_dim) ** 2

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        return {**asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "IPTConfig":
        """Invert ``to_dict``.

        Raises:
            TypeError: no dict.
            ValueError: a key that no field has, or a value that no network can have.
        """
        if not isinstance(values, dict):
            raise TypeError(f"IPTConfig: needs a dict of its fields (got {type(values).__name__})")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"IPTConfig: unknown fields {unknown}; known are {sorted(known)}")
        return cls(**values)


PRESETS: dict[str, IPTConfig] = {
    # Minutes on two CPU cores.
    "tiny": IPTConfig(n_feats=16, num_heads=3, num_layers=2),
    # Hours on one CPU core: the network that comes with the package.
    "pocket": IPTConfig(n_feats=32, num_heads=6, num_layers=1, ffn_ratio=1),
    # A night on one GPU.
    "small": IPTConfig(n_feats=32, num_heads=6, num_layers=6),
    # The paper's: 118,892,394 values.
    "base": IPTConfig(),
    # Appendix A of the paper: 256 px in 8x8 tokens, N = 1024.
    "deblur": IPTConfig(n_feats=9, patch_size=256, patch_dim=8, tasks=("deblur",)),
}


@checked
def preset(name: str, **changes: Any) -> IPTConfig:
    """Return the preset of that name, with fields changed.

    Raises:
        ValueError: no preset has that name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
