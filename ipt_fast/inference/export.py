"""One task's network as a program of its own: torch.export (``.pt2``) or ONNX (``.onnx``), checked against eager.

The program takes windows x [B, 3, S, S], float32, RGB 0..255, for any B, and gives [B, 3, rS, rS]. It holds plain
operators alone and runs without this package; cutting an image into windows is the caller's (or ``restore``'s) part.
"""

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from ipt_fast.arguments import Shape, checked
from ipt_fast.inference.prepare import PreparedIPT, prepare_for_inference
from ipt_fast.io.atomic import atomic_path
from ipt_fast.model import IPT
from ipt_fast.ops._registry import module_missing

SUFFIXES = (".pt2", ".onnx")
ONNX_OPSET = 18
_PLAIN = "patch_attention=eager,pixelshuffle_tail=eager,layernorm_linear=eager,ffn=eager"


class ExportError(RuntimeError):
    """A package is missing, or the written program does not compute what the network does."""


@contextmanager
def plain_operators() -> Iterator[None]:
    """Let the ops be made of operators that any runtime knows."""
    before = os.environ.get("IPT_FAST_IMPL")
    os.environ["IPT_FAST_IMPL"] = _PLAIN
    try:
        yield
    finally:
        del os.environ["IPT_FAST_IMPL"]
        if before is not None:
            os.environ["IPT_FAST_IMPL"] = before


@checked
def export_network(model: IPT, task: str, path: str | Path) -> float:
    """Write one task's network to ``path`` (``.pt2`` or ``.onnx``), run the file, and compare it with eager.

    Args:
        model: an ``IPT`` on any device, of any dtype and mode; it is not changed. The program is float32.
        task: a task of the network.

    Returns:
        The largest difference between the file's output and eager's, in levels of 0..255, over batches of 1 and 3.

    Raises:
        ValueError: another kind of file, or an unknown task.
        ExportError: ONNX packages are missing, or the outputs differ by more than a float32 program may; no file is
            left then.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: give it a name that ends in {' or '.join(SUFFIXES)}")
    onnx = path.suffix.lower() == ".onnx"
    if onnx and (reason := onnx_missing()):
        raise ExportError(reason)
    # Head, tail and embedding of the other tasks are left behind, so that the file does not hold them.
    on_cpu = all(t.is_cpu for t in model.state_dict().values())
    network = prepare_for_inference(model if on_cpu else copy.deepcopy(model).cpu(), task, torch.float32)
    with atomic_path(path) as temporary, plain_operators(), torch.no_grad():
        size = network.config.patch_size
        # Two windows: a batch of one would be taken for a constant.
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        program = torch.export.export(network, (torch.zeros(2, 3, size, size),), dynamic_shapes={"x": {0: batch}})
        if onnx:
            _save_onnx(program, temporary)
        else:
            torch.export.save(program, temporary)
        return _compare(network, temporary)


def onnx_missing() -> str | None:
    """Say what ONNX lacks here and how to get it, or None."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if module_missing(name)]
    return f"ONNX needs the package {missing[0]}: pip install 'ipt-fast[export]'" if missing else None


@checked
def run_exported(path: str | Path, x: Annotated[Tensor, Shape("B 3 S S", "float32", held=True)]) -> Tensor:
    """Compute the output of an exported file on windows x [B, 3, S, S], float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: its name is none of an exported program, or x is no window.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such exported program")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {' or '.join(SUFFIXES)}")
    if path.suffix.lower() == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    with torch.no_grad():
        return torch.export.load(path).module()(x)


def _save_onnx(program: Any, path: Path) -> None:
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it reports each package that it could have used
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            written = torch.onnx.export(
                program, dynamo=True, opset_version=ONNX_OPSET, input_names=["x"], output_names=["y"], verbose=False
            )
    finally:
        log.setLevel(level)
    assert written is not None
    written.save(str(path), external_data=False)


def _compare(network: PreparedIPT, path: Path) -> float:
    size, worst = network.config.patch_size, 0.0
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        x = torch.rand(count, 3, size, size, generator=generator) * 255
        wanted, got = network(x), run_exported(path, x)
        if wanted.shape != got.shape:
            raise ExportError(f"the exported program gives {list(got.shape)}, the network {list(wanted.shape)}")
        allowed = max(0.05, 1e-4 * wanted.abs().max().item())
        worst = max(worst, (wanted - got).abs().max().item())
        if not worst <= allowed:
            raise ExportError(f"the exported program is {worst:.3g} levels off the network, allowed are {allowed:.3g}")
    return worst
