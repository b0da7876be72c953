"""One task's network as a program of its own: torch.export (``.pt2``) or ONNX (``.onnx``), checked against eager.

The program takes windows x [B, 3, S, S], RGB 0..255 or 0..1, for any B, and gives [B, 3, rS, rS]. It holds plain
operators alone, unless asked to keep the ops, and runs without this package; cutting an image into windows is the
caller's (or ``restore_tiled``'s) part. What a caller must know is in the file: ``METADATA``.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ipt_fast.arguments import Shape, checked
from ipt_fast.inference.prepare import PreparedIPT, prepare_for_inference
from ipt_fast.io.atomic import atomic_path
from ipt_fast.model import IPT
from ipt_fast.ops._registry import module_missing
from ipt_fast.tasks import get_task

SUFFIXES = (".pt2", ".onnx")
ONNX_OPSET = 18
# Keys of an ONNX file's metadata_props, and of the JSON "ipt_fast.json" in a .pt2 file; all values are text.
METADATA = ("task", "scale", "window", "range", "dtype", "config", "package")
_PT2_FILE = "ipt_fast.json"
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


class Program(nn.Module):
    """A prepared network with pixels 0..``top`` and its own dtype on both sides."""

    def __init__(self, network: PreparedIPT, top: int):
        super().__init__()
        self.network, self.top = network, top

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, S, S] -> [B, 3, rS, rS]."""
        y = self.network(x.float() * (255 / self.top) if self.top != 255 else x.float())
        return (y * (self.top / 255) if self.top != 255 else y).to(self.network.dtype)


@checked
def export_network(
    model: IPT,
    task: str,
    path: str | Path,
    *,
    value_range: Literal[255, 1] = 255,
    dtype: torch.dtype = torch.float32,
    keep_ops: bool = False,
) -> float:
    """Write one task's network to ``path`` (``.pt2`` or ``.onnx``), run the file, and compare it with eager.

    Args:
        model: an ``IPT`` on any device, of any dtype and mode; it is not changed.
        task: a task of the network.
        value_range: 255 for pixels 0..255 in and out, 1 for 0..1.
        dtype: torch.float32 or torch.float16: of the weights, and of the pixels in and out.
        keep_ops: leave the ops as nodes ``ipt_fast::...`` in a ``.pt2``, so that a compiler or another device takes
            their kernels; such a program needs ``import ipt_fast.ops`` before it is loaded.

    Returns:
        The largest difference between the file's output and eager's in float32, in levels of 0..255, over batches of 1
        and 3.

    Raises:
        ValueError: another kind of file, range or dtype, an unknown task, or ``keep_ops`` for ONNX.
        ExportError: ONNX packages are missing, or the outputs differ by more than a program of this dtype may; no file
            is left then.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: give it a name that ends in {' or '.join(SUFFIXES)}")
    onnx = path.suffix.lower() == ".onnx"
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"export_network: dtype must be torch.float32 or torch.float16, got {dtype}")
    if onnx and keep_ops:
        raise ValueError("export_network: keep_ops is for .pt2; ONNX holds standard operators alone")
    if onnx and (reason := onnx_missing()):
        raise ExportError(reason)
    # Head, tail and embedding of the other tasks are left behind, so that the file does not hold them.
    on_cpu = all(t.is_cpu for t in model.state_dict().values())
    model = model if on_cpu else copy.deepcopy(model).cpu()
    network = prepare_for_inference(model, task, torch.float32)
    size = network.config.patch_size
    about = {
        "task": task, "scale": get_task(task).scale, "window": size, "range": value_range,
        "dtype": str(dtype).removeprefix("torch."), "config": json.dumps(network.config.to_dict()),
        "package": "ipt-fast",
    }  # fmt: skip
    metadata = {key: str(about[key]) for key in METADATA}
    part = Program(prepare_for_inference(model, task, dtype), value_range)
    with atomic_path(path) as temporary, nullcontext() if keep_ops else plain_operators(), torch.no_grad():
        # Two windows: a batch of one would be taken for a constant.
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        window = torch.zeros(2, 3, size, size, dtype=dtype)
        program = torch.export.export(part, (window,), dynamic_shapes={"x": {0: batch}})
        if onnx:
            _save_onnx(program, temporary, metadata)
        else:
            torch.export.save(program, temporary, extra_files={_PT2_FILE: json.dumps(metadata)})
        return _compare(network, temporary, value_range, dtype)


def onnx_missing() -> str | None:
    """Say what ONNX lacks here and how to get it, or None."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if module_missing(name)]
    return f"ONNX needs the package {missing[0]}: pip install 'ipt-fast[export]'" if missing else None


@checked
def run_exported(path: str | Path, x: Annotated[Tensor, Shape("B 3 S S", "float", held=True)]) -> Tensor:
    """Compute the output of an exported file on windows x [B, 3, S, S] of the file's dtype and range.

    Raises:
        FileNotFoundError: no such file.
        ValueError: its name is none of an exported program, or x is no window or of another dtype.
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
        _check_dtype(path, x, session.get_modelmeta().custom_metadata_map.get("dtype"))
        return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    about = {_PT2_FILE: ""}
    program = torch.export.load(path, extra_files=about)
    _check_dtype(path, x, json.loads(about[_PT2_FILE] or "{}").get("dtype"))
    with torch.no_grad():
        return program.module()(x)


def _check_dtype(path: Path, x: Tensor, wanted: str | None) -> None:
    given = str(x.dtype).removeprefix("torch.")
    if given != (wanted or "float32"):
        raise ValueError(f"run_exported: x must be {wanted or 'float32'}, as {path} is (got {given})")


def _save_onnx(program: Any, path: Path, metadata: dict[str, str]) -> None:
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
    written.model.metadata_props.update(metadata)
    written.save(str(path), external_data=False)


def _compare(network: PreparedIPT, path: Path, top: int, dtype: torch.dtype) -> float:
    size, worst = network.config.patch_size, 0.0
    # Of a float16 program the last bit of a pixel of 255 is 1/8, and ten bits are left of all that is added up.
    absolute, relative = (0.05, 1e-4) if dtype == torch.float32 else (0.5, 1e-2)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        x = (torch.rand(count, 3, size, size, generator=generator) * top).to(dtype)
        wanted, got = network(x.float() * (255 / top)), run_exported(path, x).float() * (255 / top)
        if wanted.shape != got.shape:
            raise ExportError(f"the exported program gives {list(got.shape)}, the network {list(wanted.shape)}")
        allowed = max(absolute, relative * wanted.abs().max().item())
        worst = max(worst, (wanted - got).abs().max().item())
        if not worst <= allowed:
            raise ExportError(f"the exported program is {worst:.3g} levels off the network, allowed are {allowed:.3g}")
    return worst
