"""A network, a loader and a degradation small enough for a test to train in a second, here or in other processes."""

import os
import signal
import time

import torch
from rich.console import Console

from ipt_fast.data import Batch
from ipt_fast.engine.config import TrainConfig, apply_changes
from ipt_fast.engine.distributed import DistInfo, destroy_process_group, init_distributed
from ipt_fast.engine.terminal import show_logs
from ipt_fast.engine.trainer import LoaderError, Trainer
from ipt_fast.model import IPTConfig
from ipt_fast.tasks import get_task

MICRO = IPTConfig(
    n_feats=4, patch_size=12, patch_dim=3, num_heads=3, num_layers=1, tasks=("sr2", "derain", "denoise30")
)


def micro_config(*changes: str, steps: int = 6, batch_size: int = 4) -> TrainConfig:
    config = TrainConfig(
        preset="micro", model=MICRO, epochs=None, steps=steps, batch_size=batch_size, lr=1e-3, precision="fp32",
        log_every=1, checkpoint_every=2,
    )  # fmt: skip
    return apply_changes(config, changes)


class FakeLoader:
    """Crops of noise, each a pure function of its place in the data; rank r has its share of the global batch."""

    batches_per_epoch = 3
    description = "a loader of noise"

    def __init__(self, batch_size: int, rank: int = 0, world_size: int = 1, tasks=MICRO.tasks, side: int = 12):
        self.batch_size, self.rank, self.world_size, self.tasks, self.side = batch_size, rank, world_size, tasks, side
        self.position = 0
        self.closed = False

    def __iter__(self):
        while True:
            step = self.position
            task = self.tasks[step % len(self.tasks)]
            scale = get_task(task).scale
            side = (self.side + 4) * scale if task.startswith("sr") else self.side
            first = (step * self.world_size + self.rank) * self.batch_size
            seeds = torch.arange(first, first + self.batch_size)
            crops = [
                torch.randint(256, (3, side, side), generator=torch.Generator().manual_seed(int(seed)))
                for seed in seeds
            ]
            self.position += 1
            yield Batch(torch.stack(crops).to(torch.uint8), None, task, seeds, step // self.batches_per_epoch, step)

    def state_dict(self):
        return {"position": self.position, "global_batch": self.batch_size * self.world_size}

    def load_state_dict(self, state):
        if state["global_batch"] != self.batch_size * self.world_size:
            raise ValueError(f"the state was taken with global_batch={state['global_batch']}")
        self.position = state["position"]

    def stats(self):
        return {"bad_files": 0}

    def close(self):
        self.closed = True


def fake_degrade(clean, task, *, seeds, margin=0):
    """Return the task's shapes and a deterministic change of the pixels."""
    target = clean.float()
    if margin:
        scale = get_task(task).scale
        low = torch.nn.functional.avg_pool2d(target, scale)
        m, s = margin, margin * scale
        return low[..., m:-m, m:-m], target[..., s:-s, s:-s]
    shift = (seeds % 7).float().to(target.device)[:, None, None, None]
    return (target * 0.8 + 4 * shift).clamp(0, 255), target


def wait_until(true) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def make_trainer(out, config: TrainConfig, dist_info: DistInfo | None = None, loader=None, **options) -> Trainer:
    ranks = dist_info or DistInfo()
    share = config.batch_size // ranks.world_size
    loader = loader or FakeLoader(share, ranks.rank, ranks.world_size, config.model.tasks)
    return Trainer(config, loader, out, dist_info=ranks, degrade=options.pop("degrade", fake_degrade), **options)


class KilledInStaging(dict):
    """A part of a state that is killed for while it is copied."""

    def items(self):
        os.kill(os.getpid(), signal.SIGKILL)


class KilledInWriting:
    """A part of a state that is killed for while it is written."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def run_rank(out, environment, steps, batch_size, changes=(), trouble=None) -> None:
    """Run a process of its own.

    ``trouble`` (what, n, rank): "kill", "term", "nan" or "loader" at the n-th batch; "staging" or "writing", which
    kill rank 0 in the checkpoint after it.
    """
    os.environ.update({key: str(value) for key, value in environment.items()})
    torch.set_num_threads(1)
    dist_info = init_distributed()
    what, at, rank = trouble or ("", 0, 0)
    calls = 0

    def degrade(*given, **options):
        nonlocal calls
        calls += 1
        x, target = fake_degrade(*given, **options)
        if calls == at and dist_info.rank == rank and what in ("nan", "kill", "term"):
            if what == "nan":
                return x * float("nan"), target
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[what])
        return x, target

    class Loader(FakeLoader):
        def __iter__(self):
            for batch in super().__iter__():
                if (what, at, rank) == ("loader", batch.step + 1, self.rank):
                    raise OSError("the disk is gone")
                yield batch

        def state_dict(self):
            trap = {"staging": KilledInStaging, "writing": KilledInWriting}.get(what if self.position == at else "")
            return super().state_dict() | ({"trap": trap()} if trap else {})

    config = micro_config(*changes, steps=steps, batch_size=batch_size)
    loader = Loader(batch_size // dist_info.world_size, dist_info.rank, dist_info.world_size, config.model.tasks)
    with show_logs(Console(stderr=True, width=200), dist_info.is_main):
        trainer = make_trainer(out, config, dist_info, loader, degrade=degrade)
        trainer.resume("auto")
        try:
            summary = trainer.train()
        except LoaderError as error:
            (out / f"error{dist_info.rank}").write_text(str(error))
            raise SystemExit(4) from error
    destroy_process_group()
    raise SystemExit(0 if summary.signal is None else 128 + summary.signal)
