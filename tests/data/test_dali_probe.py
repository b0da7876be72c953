"""The trial of DALI's GPU decoder, with stand-ins for it."""

import re
import sys
import types

import numpy as np
import pytest
import torch

from ipt_fast.data import build_index, make_loader
from ipt_fast.data.dali.probe import gpu_decoder_fault
from ipt_fast.data.plan import CropPlan, crop_spec
from ipt_fast.data.source import CropSource, PhotoTable
from tests.data.photo_files import write_jpegs

RIGHT = "import numpy as np; crops = np.load(c); "


@pytest.fixture
def index(tmp_path):
    write_jpegs(tmp_path / "photos", 20, 120, 140)
    return build_index(tmp_path / "photos", progress=False)


@pytest.mark.parametrize(
    "code, fault",
    [
        (RIGHT + "np.save(b, crops)", None),
        (RIGHT + "np.save(b, crops ^ 1)", None),  # rounded otherwise
        (RIGHT + "np.save(b, np.roll(crops, 4, -1))", r"other pixels than the CPU in a trial, \d+\.\d of 255 apart"),
        (RIGHT + "np.save(b, crops[..., :8])", "crops of another shape in a trial"),
        ("import os; os.kill(os.getpid(), 11)", r"died in a trial \(SIGSEGV\)"),
        ("raise RuntimeError('nvJPEG: 7')", r"died in a trial \(exit code 1: RuntimeError: nvJPEG: 7\)"),
        ("import time; time.sleep(60)", "did not come to an end within 3 s"),
    ],
    ids=["right", "rounded", "shifted", "cut", "killed", "failed", "hung"],
)
def test_what_the_decoder_does_is_seen(index, tmp_path, code, fault):
    table = PhotoTable(index.usable[:4])
    plan = CropPlan(table.widths, table.heights, (crop_spec("denoise30", 48),), 4, 0)
    source = CropSource(plan, table, 0, 1)
    np.save(tmp_path / "right.npy", source[0].batch.gt.numpy())
    command = [sys.executable, "-c", f"import sys; c, _, b = sys.argv[1:]; {code}", tmp_path / "right.npy"]
    said = gpu_decoder_fault(source, command, 3 if "sleep" in code else 120)
    if fault is None:
        assert said is None
    else:
        assert said is not None and re.search(fault, said), said


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that sets what the trial says of a GPU that is not here; loaders are dictionaries."""
    dali = types.ModuleType("ipt_fast.data.dali.loader")
    dali.DaliLoader = lambda source, **options: options
    monkeypatch.setitem(sys.modules, "ipt_fast.data.dali.loader", dali)
    monkeypatch.setattr("ipt_fast.data.factory.unavailable_reason", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tried = []

    def says(fault):
        monkeypatch.setattr(
            "ipt_fast.data.factory.gpu_decoder_fault", lambda source: tried.append(source.batch_size) or fault
        )
        return tried

    return says


def test_a_gpu_that_decodes_badly_is_not_used_and_the_loader_says_why(index, gpu):
    tried = gpu("the GPU decoder died")
    loader = make_loader(index, batch_size=4)
    assert (loader["device"], loader["why"]) == (torch.device("cpu"), "the GPU decoder died")
    with pytest.raises(RuntimeError, match=r'device="cuda": the GPU decoder died; use device="cpu"'):
        make_loader(index, batch_size=4, device="cuda")
    assert tried == [8, 8]
    assert make_loader(index, batch_size=4, device="cpu")["why"] == "" and tried == [8, 8]


def test_a_gpu_that_decodes_well_is_used(index, gpu):
    gpu(None)
    for device in (None, "cuda"):
        loader = make_loader(index, batch_size=4, device=device)
        assert (loader["device"], loader["why"]) == (torch.device("cuda"), "")
