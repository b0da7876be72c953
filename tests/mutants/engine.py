"""Faults of the training loop, its step and its losses."""

from tests.mutants import Mutant

_CONFIG, _STEP = "ipt_fast/engine/config.py", "ipt_fast/engine/step.py"
_TRAINER, _PRECISION = "ipt_fast/engine/trainer.py", "ipt_fast/engine/precision.py"
_DISTRIBUTED, _LOSSES = "ipt_fast/engine/distributed.py", "ipt_fast/losses.py"

_TEST_CONFIG, _TEST_LOSSES = "tests/engine/test_config.py", "tests/test_losses.py"
_TEST_TRAINER, _TEST_PRECISION = "tests/engine/test_trainer.py", "tests/engine/test_precision.py"
_HALF, _TEST_HALF = "ipt_fast/engine/half_weights.py", "tests/engine/test_half_weights.py"
_GRAPHS, _TEST_GRAPHS = "ipt_fast/engine/graphs.py", "tests/engine/test_graphs.py"
_TEST_RANKS = "tests/engine/test_processes.py::test_ranks_are_one_process_with_the_whole_batch"

# fmt: off
MUTANTS = [
    # Learning rate.
    Mutant(
        _CONFIG, "config.lr * (step + 1) / config.warmup_steps", "config.lr * step / config.warmup_steps", _TEST_CONFIG
    ),
    Mutant(_CONFIG, "max(1, total - 1 - config.warmup_steps)", "max(1, total - config.warmup_steps)", _TEST_CONFIG),
    Mutant(
        _CONFIG, "step < round(config.lr_drop_at * total)", "step <= round(config.lr_drop_at * total)", _TEST_CONFIG
    ),
    Mutant(_TRAINER, "rate = learning_rate(self.config, self.step,", "rate = learning_rate(self.config, 0,",
           f"{_TEST_TRAINER}::test_each_step_has_its_learning_rate"),
    Mutant(_STEP, 'group["lr"] = lr if', 'group["lr"] = self.config.lr if',
           f"{_TEST_TRAINER}::test_each_step_has_its_learning_rate"),
    # 16-bit weights, and steps from buffers.
    Mutant(_HALF, "_STAY_WIDE = LayerNorm, MeanShift", "_STAY_WIDE = (LayerNorm,)", _TEST_HALF),
    Mutant(_HALF, "        ctx.set_materialize_grads(False)", "        pass", _TEST_HALF),
    Mutant("ipt_fast/recording.py", "            buffer.copy_(x)\n", "            pass\n", _TEST_GRAPHS),
    Mutant(_GRAPHS, "        self.lr.fill_(lr)\n", "", _TEST_GRAPHS),
    Mutant(_PRECISION, "        self.used.copy_(self.factor)\n", "", _TEST_TRAINER),
    # The step.
    Mutant(_STEP, "        self.optimizer.zero_grad(set_to_none=True)\n", "",
           f"{_TEST_TRAINER}::test_resume_in_the_middle_is_bit_equal"),
    Mutant(_STEP, "weights, 1 - self.config.ema", "weights, self.config.ema",
           f"{_TEST_TRAINER}::test_the_average_of_the_weights_follows_them"),
    Mutant(_STEP, "        if self.config.clip_grad:\n", "        if False:\n",
           f"{_TEST_TRAINER}::test_clipping_bounds_the_step"),
    Mutant(_STEP, ".clamp(min=1.0)", "", f"{_TEST_TRAINER}::test_a_bound_above_the_norm_changes_nothing"),
    Mutant(_STEP, "bad = ~(norm.isfinite() & numbers.isfinite().all())", "bad = ~norm.isfinite()",
           f"{_TEST_TRAINER}::test_a_bad_step_is_skipped_and_counted"),
    Mutant(_STEP, "bad = ~(norm.isfinite() & numbers.isfinite().all())", "bad = ~numbers.isfinite().all()",
           f"{_TEST_TRAINER}::test_a_loss_scale_too_high_is_lowered_and_is_no_divergence"),
    Mutant(_STEP, "get_total_norm(grads).float() / self.scale.factor", "get_total_norm(grads).float()",
           f"{_TEST_TRAINER}::test_the_loss_scale_changes_no_weight"),
    Mutant(_STEP, "divisor = self.scale.factor.clone() if self.scale.enabled else None", "divisor = None",
           f"{_TEST_TRAINER}::test_the_loss_scale_changes_no_weight"),
    Mutant(_STEP, "skipped and scale > 1, stop > 0", "False, stop > 0",
           f"{_TEST_TRAINER}::test_a_loss_scale_too_high_is_lowered_and_is_no_divergence"),
    Mutant(_STEP, "else orient(lq, orientation)", "else lq", "tests/engine/test_finetune.py"),
    Mutant(_STEP, "part = part.flip(-1) if k >= 4 else part", "part = part.flip(-1)", "tests/engine/test_step.py"),
    Mutant(_STEP, "mode=config.contrastive, ", "", f"{_TEST_TRAINER}::test_settings_of_the_loss_reach_it"),
    # Precision.
    Mutant(_PRECISION, "torch.where(bad, self.factor * 0.5,", "torch.where(bad, self.factor,", _TEST_PRECISION),
    Mutant(_PRECISION, "torch.where(bad, 0.0, self.good + 1)", "self.good + 1", _TEST_PRECISION),
    Mutant(_PRECISION, "config.batch_size // dist_info.world_size", "config.batch_size", _TEST_PRECISION),
    # Ranks.
    Mutant(_DISTRIBUTED, "        flat /= self.world_size\n", "", _TEST_RANKS),
    Mutant(_DISTRIBUTED, "        dist.all_reduce(flat)\n", "", _TEST_RANKS),
    Mutant(_DISTRIBUTED, "        self._settle_buckets(ddp, model)\n", "",
           "tests/engine/test_processes.py::test_ranks_stop_together_and_go_on_bit_equal"),
    Mutant(_STEP, "            numbers /= self.dist_info.world_size\n", "", _TEST_RANKS),
    # Counting, checkpoints, resume.
    Mutant(_TRAINER, "+ 1 if result.skipped and not result.rescaled else 0", "+ 1 if result.skipped else 0",
           f"{_TEST_TRAINER}::test_a_loss_scale_too_high_is_lowered_and_is_no_divergence"),
    Mutant(_TRAINER, 'self.best = int(state["step"]),', 'self.best = int(state["step"]) + 1,',
           f"{_TEST_TRAINER}::test_resume_in_the_middle_is_bit_equal"),
    Mutant(_TRAINER, "        if failed:\n", "        if False:\n",
           f"{_TEST_TRAINER}::test_a_run_whose_last_checkpoint_is_missing_has_failed"),
    Mutant("ipt_fast/engine/checkpoint_writer.py", "staged = stage(state)", "staged = dict(state)",
           "tests/engine/test_checkpoint_writer.py::"
           "test_training_goes_on_meanwhile_and_the_checkpoint_is_that_of_its_step"),
    Mutant(_TRAINER, "        request.hold_child_signal()\n", "",
           f"{_TEST_TRAINER}::test_a_killed_worker_ends_the_run_between_two_steps"),
    Mutant(_TRAINER, " or self._is_kept()\n", "\n",
           f"{_TEST_TRAINER}::test_checkpoints_are_kept_at_their_epochs_whatever_the_steps_between"),
    Mutant("ipt_fast/engine/metrics.py", "self.skipped += not result.rescaled", "self.skipped += 1",
           "tests/engine/test_metrics.py"),
    Mutant(_TRAINER, "is_best, best = psnr > self.best", "is_best, best = psnr < self.best",
           "tests/evaluation/test_validation.py::test_the_best_checkpoint_is_kept_and_remembered"),
    Mutant("ipt_fast/engine/optimizer.py", " - (part._dummy_overflow_buf == 1).int()", "",
           "tests/engine/test_optimizer.py::test_a_step_that_is_left_out_counts_in_neither"),
    # Losses.
    Mutant(_LOSSES, "(output - target).abs().mean()", "(output - target).square().mean()", _TEST_LOSSES),
    Mutant(_LOSSES, "l1 + lam * contrastive, l1", "l1 + contrastive, l1", _TEST_LOSSES),
    Mutant(_LOSSES, "patch_contrastive_loss(feats, mode, scope=scope)", "patch_contrastive_loss(feats, scope=scope)",
           _TEST_LOSSES),
]
# fmt: on
