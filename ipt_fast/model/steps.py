"""Optimizer steps counted, for what is kept of weights: fused optimizers change them unseen by the version counter."""

from functools import cache

_steps = 0


def optimizer_steps() -> int:
    """Steps of all optimizers in this process since this was first asked."""
    _listen()
    return _steps


@cache
def _listen() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(_count)


def _count(*_: object) -> None:
    global _steps
    _steps += 1
