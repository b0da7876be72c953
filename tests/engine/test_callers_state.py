"""What is the caller's is his again when a run is over: generators, defaults, warnings, signals, logging, arguments."""

import copy
import logging
import random
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.data import build_index, make_loader
from tests.engine.fakes import fake_degrade, make_trainer, micro_config


def state():
    logger = logging.getLogger("ipt_fast")
    matmul = torch.backends.cuda.matmul
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "matmul": (
            torch.get_float32_matmul_precision(),
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_tf32,
        ),
        "cudnn": (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        # Libraries that torch imports late bring filters for warnings of their own.
        "warnings": [f for f in warnings.filters if f[2].__module__ == "builtins"],
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "logging": (logger.level, logger.propagate, list(logger.handlers), list(logging.root.handlers)),
    }


@pytest.fixture
def photos(tmp_path):
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 80, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("ends", ["at its end", "by a signal", "by an error"])
def test_a_run_leaves_the_process_as_it_was(photos, ends):
    config = micro_config("checkpoint_every=1000", steps=4)
    before = state()
    loader = make_loader(
        build_index([photos], progress=False), loader="torch", tasks=config.model.tasks, batch_size=4, patch_size=12,
        workers=1,
    )  # fmt: skip

    def degrade(*args, **options):
        if trainer.step == 2 and ends == "by a signal":
            signal.raise_signal(signal.SIGTERM)
        if trainer.step == 2 and ends == "by an error":
            raise ArithmeticError("of the caller's own")
        torch.rand(3), np.random.rand(3), random.random()
        return fake_degrade(*args, **options)

    trainer = make_trainer(photos / "run", config, loader=loader, degrade=degrade)
    if ends == "by an error":
        with pytest.raises(ArithmeticError):
            trainer.train()
    else:
        assert trainer.train().finished == (ends == "at its end")
    after = state()
    assert {key: after[key] for key in before if before[key] != after[key]} == {}


def test_a_resumed_run_draws_on_and_the_caller_does_not_notice(tmp_path):
    draws = []

    def degrade(*args, **options):
        draws.append((torch.rand(()).item(), np.random.rand(), random.random()))
        return fake_degrade(*args, **options)

    for out, steps in (("whole", [4]), ("parts", [2, 4])):
        np.random.seed(7), random.seed(7)
        for last in steps:
            trainer = make_trainer(tmp_path / out, micro_config(steps=last), degrade=degrade)
            trainer.resume("auto")
            before = state()
            trainer.train()
            assert state() == before
    assert len(draws) == 8 and draws[:4] == draws[4:]


def test_the_callers_defaults_change_no_weight(tmp_path):
    config = micro_config(steps=2)
    plain = make_trainer(tmp_path / "plain", config)
    plain.train()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(99)
        other = make_trainer(tmp_path / "other", config)
        other.train()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in plain.model.state_dict().items())


def test_settings_and_batches_are_not_written_to(tmp_path):
    config = micro_config("augment=on", steps=3)
    kept, batches = copy.deepcopy(config), []

    def degrade(clean, *args, **options):
        batches.append((clean, clean.clone()))
        return fake_degrade(clean, *args, **options)

    make_trainer(tmp_path, config, degrade=degrade).train()
    assert config == kept and all(torch.equal(*pair) for pair in batches)
