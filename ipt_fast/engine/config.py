"""What a training run needs to know, and the recipes per preset."""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ipt_fast.model import PRESETS, IPTConfig, preset


class ConfigError(ValueError):
    """A setting that does not exist or cannot be; the message names the key."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights of a run; the defaults are the paper's recipe (section 4.1).

    Args:
        preset: name of the network's preset; ``model`` is the network itself.
        epochs, steps: length of the run, one of the two. An epoch sees every usable image ``crops_per_image`` times.
        batch_size: over all ranks. One task a batch, drawn uniformly, the same on all ranks.
        lr, lr_final: learning rate at the start (after the warmup) and at the end.
        schedule: "step" drops from ``lr`` to ``lr_final`` at the fraction ``lr_drop_at`` of the run (the paper: at
            epoch 200 of 300); "cosine" goes down smoothly; "constant" stays at ``lr``.
        warmup_steps: linear rise from ``lr / warmup_steps`` before any of these.
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
        precision: of forward and backward; weights and optimizer stay float32. "auto" is bf16 on GPUs and
            CPUs that compute in it, otherwise fp16 with loss scaling on GPUs and fp32 on CPUs.
        recompute: "on" makes the hidden layers of the network again in the backward, "off" keeps them for it, which is
            faster (8 % fewer operations) and takes more memory (29 MB a sample of "base" in 16 bits); "auto" keeps them
            where they take up to a sixth of the device's memory. The weights come out the same.
        compile: run the network through torch.compile.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep_every: epochs between checkpoints that are kept for good as checkpoint_epoch<N>.pt; 0 keeps the last two.
        log_every: steps between log lines.
        max_bad_steps: non-finite steps in a row after which the run stops.
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
    recompute: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    checkpoint_every: int = 500
    keep_every: int = 0
    log_every: int = 20
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError(
                f"the length of the run is given by epochs or by steps, one of them (got epochs={self.epochs}, "
                f"steps={self.steps})"
            )
        at_least: dict[str, float] = {
            "batch_size": 1, "warmup_steps": 0, "clip_grad": 0, "lam": 0, "prefetch": 1, "crops_per_image": 1,
            "weight_decay": 0, "checkpoint_every": 1, "keep_every": 0, "log_every": 1, "max_bad_steps": 1,
        }  # fmt: skip
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be at least {least} (got {getattr(self, name)})")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must be at least 0 (got {self.workers})")
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        return {**asdict(self), "betas": list(self.betas), "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of ``to_dict``; raises ``ConfigError`` on a key that no field has."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown settings {unknown}; known are {sorted(known)}")
        model = IPTConfig.from_dict(dict(values.get("model", {})))
        return cls(**{**values, "model": model, "betas": tuple(values.get("betas", (0.9, 0.999)))})


# What differs from the defaults above.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "epochs": None, "steps": 2000, "batch_size": 8, "lr": 1e-3, "lr_final": 1e-5, "schedule": "cosine",
        "warmup_steps": 100, "clip_grad": 1.0, "crops_per_image": 2, "checkpoint_every": 250,
    },
    "small": {
        "epochs": None, "steps": 100_000, "batch_size": 128, "lr": 3e-4, "lr_final": 1e-6, "schedule": "cosine",
        "warmup_steps": 1000, "clip_grad": 1.0,
    },
    "base": {},
    "deblur": {"batch_size": 32},
}  # fmt: skip


def recipe(name: str, changes: Sequence[str] = ()) -> TrainConfig:
    """The recipe of a preset, with ``--set`` changes applied.

    Raises:
        ConfigError: no such preset, no such key, or a value that the key cannot have.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; choose one of {', '.join(PRESETS)}")
    return apply_changes(TrainConfig(preset=name, model=preset(name), **RECIPES[name]), changes)


def apply_changes(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """``config`` with changes such as ``lr=1e-4``, ``steps=500``, ``model.num_layers=4`` or ``model.tasks=sr2,derain``.

    Setting ``steps`` clears ``epochs`` and the other way round.
    """
    own: dict[str, Any] = {}
    model: dict[str, Any] = {}
    types_own, types_model = _settable(TrainConfig), _settable(IPTConfig)
    for change in changes:
        key, equals, text = change.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set {change!r}: write it as KEY=VALUE")
        if key in types_own:
            own[key] = _parse(key, text.strip(), types_own[key])
        elif key.startswith("model.") and key[6:] in types_model:
            model[key[6:]] = _parse(key, text.strip(), types_model[key[6:]])
        else:
            raise ConfigError(_unknown(key, [*types_own, *(f"model.{name}" for name in types_model)]))
    if own.get("steps") is not None and "epochs" not in own:
        own["epochs"] = None
    if own.get("epochs") is not None and "steps" not in own:
        own["steps"] = None
    try:
        return replace(config, **own, model=replace(config.model, **model))
    except ValueError as error:
        raise ConfigError(f"--set {' '.join(changes)}: {error}") from error


def _settable(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.name not in ("model", "preset")}


def _unknown(key: str, known: Sequence[str]) -> str:
    full = {name.removeprefix("model."): name for name in known}  # "num_layers" is meant for "model.num_layers"
    near = difflib.get_close_matches(key.removeprefix("model."), full, n=3, cutoff=0.6)
    if near:
        return f"--set {key}: no such setting; did you mean {' or '.join(full[name] for name in near)}?"
    return f"--set {key}: no such setting; known are {', '.join(known)}"


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _parse(key: str, text: str, kind: Any) -> Any:
    """``text`` as a value of the annotated type ``kind``."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(key, text, next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        if text not in args:
            raise ConfigError(f"--set {key}={text}: must be one of {', '.join(args)}")
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
