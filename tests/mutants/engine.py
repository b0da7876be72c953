"""Faults of the training loop, its step and its losses."""

from tests.mutants import Mutant

_CONFIG, _STEP = "ipt_fast/engine/config.py", "ipt_fast/engine/step.py"
_TRAINER, _PRECISION = "ipt_fast/engine/trainer.py", "ipt_fast/engine/precision.py"
_DISTRIBUTED, _LOSSES = "ipt_fast/engine/distributed.py", "ipt_fast/losses.py"

_TEST_CONFIG, _TEST_TRAINER = "tests/engine/test_config.py", "tests/engine/test_trainer.py"
_TEST_PROCESSES = "tests/engine/test_processes.py"

MUTANTS = [
    # Learning rate.
    Mutant(
        _CONFIG, "config.lr * (step + 1) / config.warmup_steps", "config.lr * step / config.warmup_steps", _TEST_CONFIG
    ),
    Mutant(_CONFIG, "max(1, total - 1 - config.warmup_steps)", "max(1, total - config.warmup_steps)", _TEST_CONFIG),
    Mutant(
        _CONFIG, "step < round(config.lr_drop_at * total)", "step <= round(config.lr_drop_at * total)", _TEST_CONFIG
    ),
    Mutant(
        _TRAINER, "rate = learning_rate(self.config, self.step,", "rate = learning_rate(self.config, 0,", _TEST_TRAINER
    ),
    Mutant(_STEP, '            group["lr"] = lr\n', '            group["lr"] = self.config.lr\n', _TEST_TRAINER),
    # The step.
    Mutant(_STEP, "        self.optimizer.zero_grad(set_to_none=True)\n", "", _TEST_TRAINER),
    Mutant(_STEP, "weights, 1 - self.config.ema", "weights, self.config.ema", _TEST_TRAINER),
    Mutant(_STEP, "        if self.config.clip_grad:\n", "        if False:\n", _TEST_TRAINER),
    Mutant(_STEP, ".clamp(min=1.0)", "", _TEST_TRAINER),
    Mutant(_STEP, "bad = ~(norm.isfinite() & numbers.isfinite().all())", "bad = ~norm.isfinite()", _TEST_TRAINER),
    Mutant(
        _STEP, "bad = ~(norm.isfinite() & numbers.isfinite().all())", "bad = ~numbers.isfinite().all()", _TEST_TRAINER
    ),
    Mutant(_STEP, "get_total_norm(grads).float() / self.scale.factor", "get_total_norm(grads).float()", _TEST_TRAINER),
    Mutant(
        _STEP, "divisor = self.scale.factor.clone() if self.scale.enabled else None", "divisor = None", _TEST_TRAINER
    ),
    Mutant(_STEP, "skipped and scale > 1, stop > 0", "False, stop > 0", _TEST_TRAINER),
    Mutant(_STEP, "else orient(lq, orientation)", "else lq", "tests/engine/test_finetune.py"),
    Mutant(_STEP, "part = part.flip(-1) if k >= 4 else part", "part = part.flip(-1)", "tests/engine/test_step.py"),
    Mutant(_STEP, "mode=config.contrastive, ", "", _TEST_TRAINER),
    # Precision.
    Mutant(
        _PRECISION,
        "torch.where(bad, self.factor * 0.5,",
        "torch.where(bad, self.factor,",
        "tests/engine/test_precision.py",
    ),
    Mutant(_PRECISION, "torch.where(bad, 0.0, self.good + 1)", "self.good + 1", "tests/engine/test_precision.py"),
    Mutant(
        _PRECISION, "config.batch_size // dist_info.world_size", "config.batch_size", "tests/engine/test_precision.py"
    ),
    # Ranks.
    Mutant(_DISTRIBUTED, "            flat /= self.world_size\n", "", _TEST_PROCESSES),
    Mutant(
        _DISTRIBUTED, "            work.wait()\n", "            work.wait()\n            continue\n", _TEST_PROCESSES
    ),
    Mutant(_STEP, "            numbers /= self.dist_info.world_size\n", "", _TEST_PROCESSES),
    # Counting, checkpoints, resume.
    Mutant(
        _TRAINER, "+ 1 if result.skipped and not result.rescaled else 0", "+ 1 if result.skipped else 0", _TEST_TRAINER
    ),
    Mutant(_TRAINER, 'self.step = int(state["step"])', 'self.step = int(state["step"]) + 1', _TEST_TRAINER),
    Mutant(_TRAINER, "        if failed:\n", "        if False:\n", _TEST_TRAINER),
    Mutant(_TRAINER, "        request.hold_child_signal()\n", "", _TEST_TRAINER),
    Mutant(_TRAINER, " or self._is_kept()\n", "\n", _TEST_TRAINER),
    Mutant(
        "ipt_fast/engine/metrics.py",
        "self.skipped += not result.rescaled",
        "self.skipped += 1",
        "tests/engine/test_metrics.py",
    ),
    # Losses.
    Mutant(_LOSSES, "(output - target).abs().mean()", "(output - target).square().mean()", "tests/test_losses.py"),
    Mutant(_LOSSES, "l1 + lam * contrastive, l1", "l1 + contrastive, l1", "tests/test_losses.py"),
    Mutant(
        _LOSSES,
        "patch_contrastive_loss(feats, mode, scope=scope)",
        "patch_contrastive_loss(feats, scope=scope)",
        "tests/test_losses.py",
    ),
]
