"""What a training run needs to know: its settings, its learning rate; the recipes of the presets and of fine-tuning,
and how ``--set`` changes them. Which settings do not go together is in ``contradictions``.
"""

import difflib
import inspect
import logging
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ipt_fast.arguments import checked
from ipt_fast.model import PRESETS, IPTConfig, preset
from ipt_fast.tasks import get_task

# Settings that may differ from those of the resumed run without changing a single weight; the model is compared by
# its weights.
_FREE = {
    "workers", "prefetch", "loader", "checkpoint_every", "checkpoint_minutes", "keep_every", "log_every",
    "max_bad_steps", "preset", "compile", "graphs", "recompute", "model", "optimizer", "zero", "peak_tflops",
    "wandb",
}  # fmt: skip
_log = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message names the key."""


@checked
@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights of a run; the defaults are the paper's recipe (section 4.1).

    Args:
        preset: name of the network's preset; ``model`` is the network itself.
        epochs, steps: length of the run, one of the two. An epoch sees every usable image ``crops_per_image`` times.
        batch_size: over all ranks. One task a batch, drawn uniformly, the same on all ranks.
        lr, lr_final: learning rate at the start (after the warmup) and at the end.
        schedule, lr_drop_at: "step" drops from ``lr`` to ``lr_final`` at that fraction of the run (the paper: at epoch
            200 of 300); "cosine" goes down smoothly; "constant" stays at ``lr``.
        warmup_steps: linear rise from ``lr / warmup_steps`` before any of these.
        optimizer: "torch" is torch's fused Adam, "apex" the FusedAdam of NVIDIA Apex, "auto" is torch's. A run resumes
            across them.
        betas, eps, weight_decay: of Adam.
        clip_grad: largest norm of the whole gradient; 0 leaves gradients alone.
        ema: decay of a moving average of the weights, kept beside them; 0 for none.
        lam: weight of the contrastive loss (0.1: Table 5 of the paper). 0 leaves it out.
        contrastive: "paper" is Eq. 5, "supcon" the loss of the authors' MindSpore code.
        contrastive_scope: "global" takes the negatives from the whole batch over all ranks, as one process with that
            batch would, so that the number of ranks changes nothing; "local" from each rank's share of it.
        loader: "dali", "torch", or "auto" for the faster of the two that is installed.
        workers: of the loader, per rank; None leaves the choice to the loader.
        prefetch: batches that the loader holds ready.
        crops_per_image: crops taken from an image each time it is decoded.
        data_fraction: fixed share of the images to use (Figure 6 of the paper).
        augment: flips and rotations by quarter turns. Off in pre-training.
        rain: folder of streak pictures to take rain from; None for the own generator.
        seed: of the weights, the order of the images, crops, tasks and degradations.
        tf32: let float32 GEMMs and convolutions on an NVIDIA GPU round their inputs to TF32, 10 bits of mantissa.
        precision: of forward and backward; weights and optimizer stay float32. "auto" is bf16 on GPUs and
            CPUs that compute in it, otherwise fp16 with loss scaling on GPUs and fp32 on CPUs.
        recompute: activation recomputation. "on" computes norms and hidden layers of the feed-forward parts again in
            the backward, "off" keeps them for it, which is faster (8 % fewer operations) and takes more memory (47 MB
            a sample of "base" in 16 bits); "auto" keeps them where they take up to a sixth of the device's memory. The
            weights come out the same.
        compile: run the network through torch.compile; "layers" compiles encoder and decoder layers alone, a kind of
            layer once, whatever their number and the tasks.
        graphs: record each task's step as a CUDA graph, which one launch replays; the weights come out the same. "on"
            refuses where that cannot be, "auto" launches operation by operation there.
        zero: ZeRO-1: each rank keeps the moments of its share of the parameters alone, and updates these. A checkpoint
            holds all, for which the ranks wait; a run resumes with and without.
        allreduce: in what the ranks send each other the gradients of the body; 16 bits halve the bytes and round once
            more, "fp32" sends them as they are. Head and tail, 3 % of them, always go in float32.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        checkpoint_minutes: minutes between checkpoints, in place of ``checkpoint_every``; the clock is looked at with
            each log line. 0 leaves it to the steps.
        keep_every: epochs between checkpoints that are kept for good as checkpoint_epoch<N>.pt; 0 keeps the last two.
        log_every: steps between log lines.
        max_bad_steps: non-finite steps in a row after which the run stops.
        peak_tflops: TFLOP/s of a large GEMM on one device, that the log's MFU is a share of; 0 takes the one reported
            for the device, if it is a V100, A100 or H100, and tells no MFU on others.
        wandb: project of Weights & Biases that the log goes to as well; None for none.
    """

    preset: str = "base"
    model: IPTConfig = field(default_factory=IPTConfig)
    epochs: float | None = 300
    steps: int | None = None
    batch_size: int = 256
    lr: float = 5e-5
    lr_final: float = 2e-5
    schedule: Literal["step", "cosine", "constant"] = "step"
    lr_drop_at: float = 200 / 300
    warmup_steps: int = 0
    optimizer: Literal["auto", "torch", "apex"] = "auto"
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad: float = 0.0
    ema: float = 0.0
    lam: float = 0.1
    contrastive: Literal["paper", "supcon"] = "paper"
    contrastive_scope: Literal["global", "local"] = "global"
    loader: Literal["auto", "dali", "torch"] = "auto"
    workers: int | None = None
    prefetch: int = 2
    crops_per_image: int = 1
    data_fraction: float = 1.0
    augment: bool = False
    rain: str | None = None
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    tf32: bool = False
    recompute: Literal["auto", "on", "off"] = "auto"
    compile: Literal[False, True, "layers"] = False
    graphs: Literal["auto", "on", "off"] = "auto"
    zero: bool = False
    allreduce: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpoint_every: int = 500
    checkpoint_minutes: float = 0.0
    keep_every: int = 0
    log_every: int = 20
    max_bad_steps: int = 10
    peak_tflops: float = 0.0
    wandb: str | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError(
                f"the length of the run is given by epochs or by steps, one of them (got epochs={self.epochs}, "
                f"steps={self.steps})"
            )
        at_least: dict[str, float] = {
            "batch_size": 1, "warmup_steps": 0, "clip_grad": 0, "lam": 0, "prefetch": 1, "crops_per_image": 1,
            "weight_decay": 0, "checkpoint_every": 1, "checkpoint_minutes": 0, "keep_every": 0, "log_every": 1,
            "max_bad_steps": 1, "workers": 0, "peak_tflops": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} must be at least {least} (got {value})")
        for name in ("epochs", "steps", "lr", "lr_final", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be positive and finite (got {value})")
        if not 0 < self.data_fraction <= 1:
            raise ConfigError(f"data_fraction must be in (0, 1] (got {self.data_fraction})")
        if not 0 <= self.lr_drop_at <= 1:
            raise ConfigError(f"lr_drop_at is a fraction of the run, 0 to 1 (got {self.lr_drop_at})")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be in [0, 1), 0 for none (got {self.ema})")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas must be two numbers in [0, 1) (got {self.betas})")

    def changed(self) -> set[str]:
        """Return the names of the settings that differ from their defaults."""
        return {f.name for f in fields(self) if getattr(self, f.name) != f.default}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and checkpoints."""
        return {**asdict(self), "betas": list(self.betas), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the inverse of ``to_dict``; raises ``ConfigError`` on a key that no field has."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown settings {unknown}; {_hint(unknown[0], known)}")
        model = IPTConfig.from_dict(dict(values.get("model", {})))
        return cls(**{**values, "model": model, "betas": tuple(values.get("betas", cls.betas))})


@checked(steps_per_epoch=1)
def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the length of the run in steps."""
    if config.epochs is None:
        return int(config.steps or 0)  # one of the two is given
    return max(1, round(config.epochs * steps_per_epoch))


@checked(step=0, total=1)
def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate of the step with that number, from 0, in a run of ``total`` steps.

    It is a pure function of the step, so that a resumed run needs no state for it.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        return config.lr if step < round(config.lr_drop_at * total) else config.lr_final
    if config.schedule == "cosine":
        # The last step is at lr_final.
        done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
        return config.lr_final + (config.lr - config.lr_final) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.lr


def log_differences(then: Mapping[str, Any], config: TrainConfig) -> None:
    """Warn of the settings in which a resumed run differs from ``then``, its settings before."""
    now = {key: value for key, value in config.to_dict().items() if key not in _FREE and then.get(key) != value}
    if differing := [f"{key} was {then.get(key)!r}, is {value!r}" for key, value in now.items()]:
        _log.warning("the run goes on with other settings: %s", "; ".join(differing))


# What differs from the defaults of ``TrainConfig``.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "epochs": None, "steps": 2000, "batch_size": 8, "lr": 1e-3, "lr_final": 1e-5, "schedule": "cosine",
        "warmup_steps": 100, "clip_grad": 1.0, "crops_per_image": 2, "checkpoint_every": 250,
    },
    "pocket": {
        "epochs": None, "steps": 100_000, "batch_size": 8, "lr": 5e-4, "lr_final": 5e-6, "schedule": "cosine",
        "warmup_steps": 500, "clip_grad": 1.0, "ema": 0.999, "lam": 0.0, "crops_per_image": 2, "augment": True,
        "checkpoint_every": 1000,
    },
    "small": {
        "epochs": None, "steps": 100_000, "batch_size": 128, "lr": 3e-4, "lr_final": 1e-6, "schedule": "cosine",
        "warmup_steps": 1000, "clip_grad": 1.0,
    },
    "base": {},
    "deblur": {"batch_size": 32},
}  # fmt: skip


@checked
def recipe(name: str, changes: Sequence[str] = ()) -> TrainConfig:
    """Return the recipe of a preset, with ``--set`` changes applied.

    Raises:
        ConfigError: no such preset, no such key, or a value that the key cannot have.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return apply_changes(TrainConfig(preset=name, model=preset(name), **RECIPES[name]), changes)


@checked
def finetune_recipe(network: IPTConfig, task: str) -> TrainConfig:
    """Return the paper's fine-tuning of a network on one task.

    30 epochs at 2e-5, the supervised loss alone; flips and rotations for super-resolution and deraining.
    """
    return TrainConfig(
        preset=f"finetune {task}",
        model=replace(network, tasks=(task,)),
        epochs=30,
        lr=2e-5,
        lr_final=2e-5,
        schedule="constant",
        lam=0.0,
        augment=get_task(task).kind in ("sr", "derain"),
    )


@checked
def apply_changes(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """Return ``config`` with changes such as ``lr=1e-4``, ``model.num_layers=4`` or ``model.tasks=sr2,derain``.

    Setting ``steps`` clears ``epochs`` and the other way round; the warmup keeps its share of the steps, unless it is
    set as well.
    """
    kinds = get_type_hints(TrainConfig) | {f"model.{key}": kind for key, kind in get_type_hints(IPTConfig).items()}
    del kinds["model"], kinds["preset"]
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {change!r}: write it as KEY=VALUE")
        if key not in kinds:
            raise ConfigError(f"--set {key}: no such setting; {_hint(key, kinds)}")
        values[key] = _parse(key, text.strip(), kinds[key])
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if values.get(key) is not None:
            values.setdefault(other, None)
    if config.steps and values.get("steps"):
        values.setdefault("warmup_steps", round(config.warmup_steps * min(1.0, values["steps"] / config.steps)))
    model = {key[6:]: values.pop(key) for key in list(values) if key.startswith("model.")}
    try:
        return replace(config, **values, model=replace(config.model, **model))
    except ValueError as error:
        raise ConfigError(f"--set {' '.join(changes)}: {error}") from error


# What other programs call our settings.
_SYNONYMS = {
    "learning_rate": "lr", "base_lr": "lr", "min_lr": "lr_final", "lr_min": "lr_final", "lr_scheduler": "schedule",
    "scheduler": "schedule", "warmup": "warmup_steps", "warmup_iter": "warmup_steps", "batch": "batch_size",
    "bs": "batch_size", "num_epochs": "epochs", "max_epochs": "epochs", "n_epochs": "epochs", "max_steps": "steps",
    "num_steps": "steps", "iterations": "steps", "iters": "steps", "total_iter": "steps", "wd": "weight_decay",
    "grad_clip": "clip_grad", "gradient_clip_val": "clip_grad", "max_grad_norm": "clip_grad", "ema_decay": "ema",
    "lambda": "lam", "num_workers": "workers", "num_worker_per_gpu": "workers", "prefetch_factor": "prefetch",
    "dtype": "precision", "amp": "precision", "fp16": "precision", "mixed_precision": "precision",
    "activation_checkpointing": "recompute", "gradient_checkpointing": "recompute", "save_every": "checkpoint_every",
    "save_steps": "checkpoint_every", "save_interval": "checkpoint_every", "log_interval": "log_every",
    "logging_steps": "log_every", "use_hflip": "augment", "random_seed": "seed", "manual_seed": "seed",
    "depth": "num_layers", "layers": "num_layers", "n_layers": "num_layers", "heads": "num_heads", "nhead": "num_heads",
    "n_heads": "num_heads", "channels": "n_feats", "dim": "n_feats",
}  # fmt: skip


def _hint(key: str, known: Iterable[str]) -> str:
    """Say which settings somebody may have meant by ``key``; "num_layers" means "model.num_layers"."""
    full = {name.removeprefix("model."): name for name in known}
    plain = key.lower().replace("-", "_").removeprefix("model.")
    plain = _SYNONYMS.get(plain, plain)
    near = [plain] if plain in full else difflib.get_close_matches(plain, full)
    return f"did you mean {' or '.join(full[n] for n in near)}?" if near else f"known are {', '.join(full.values())}"


def settings_help() -> str:
    """Return what ``--set`` takes, for a ``--help``: the arguments of ``TrainConfig`` as its docstring says them."""
    arguments = (inspect.getdoc(TrainConfig) or "").partition("Args:\n")[2]
    return f"settings of the recipe, for --set (those of the network as model.num_layers=4):\n{arguments}"


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _parse(key: str, text: str, kind: Any) -> Any:
    """Return ``text`` as a value of the annotated type ``kind``."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(key, text, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        if True in args and text.lower() in _BOOLS:
            return _BOOLS[text.lower()]
        if text not in args:
            raise ConfigError(f"--set {key}={text}: must be one of {', '.join(str(arg).lower() for arg in args)}")
        return text
    if origin is tuple:
        return tuple(_parse(key, part.strip(), args[0]) for part in text.strip("()[]").split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ConfigError(f"--set {key}={text}: must be true or false")
        return _BOOLS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"--set {key}={text}: must be {expected}") from error
