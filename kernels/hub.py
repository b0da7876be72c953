"""Write the ops as a kernel of the Hugging Face Hub, for programs that do not install this package.

    python -m ipt_fast.kernels.hub OUT          then, elsewhere: kernels.get_local_kernel(Path("OUT"))

``OUT/build/torch-universal`` holds the files that the ops need, with relative imports and operator names of their own,
so that it can be loaded beside the installed package and beside other versions of itself. It needs torch alone; on a
GPU also Triton, which torch brings. Layout: https://huggingface.co/docs/kernels/kernel-requirements.
"""

import argparse
import ast
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).absolute().parent.parent  # not resolved: in a source tree this folder is a link
NAME = "ipt-fast-ops"
VARIANT = Path("build", "torch-universal")
_ROOM, _ROOT = "ipt_fast", "ipt_fast.ops"
_NAMESPACE = '_NAMESPACE = "ipt_fast"'  # the line of ops/_registry.py that names the operators
_DATA = ("csrc/*.cu", "csrc/*.cuh")  # compiled where cuda-core is installed

_INIT = '''"""The fused ops of ipt-fast; see the card, and each function's own text."""

from .ops import {names}

__all__ = [
    {listed},
]
'''
_OPS = '''"""The names of this kernel's operators, which no other version of it has."""

import torch

NAMESPACE = "{namespace}"
ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the full name of one of this kernel's operators."""
    return f"{{NAMESPACE}}::{{op_name}}"
'''
# Versions of ``kernels`` before the flat layout look for a folder with the kernel's name.
_OLD_LAYOUT = '''"""The same kernel, where old versions of the package ``kernels`` look for it."""

import importlib.util
import sys
from pathlib import Path

_name = "{namespace}_flat"
if _name not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).parent.parent / "__init__.py")
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])
__all__ = sys.modules[_name].__all__
globals().update({{name: getattr(sys.modules[_name], name) for name in __all__}})
'''
_CARD = """---
license: mit
tags: [kernel]
---

# {name}

The fused operators of ipt-fast, a performance edition of IPT ("Pre-Trained Image Processing Transformer", CVPR 2021),
as one Hub kernel. Written by `python -m ipt_fast.kernels.hub`; the same code, with relative imports.

```python
from pathlib import Path
from kernels import get_local_kernel

ops = get_local_kernel(Path("."))  # this folder; from the Hub: get_kernel("OWNER/{name}", version={version})
out = ops.patch_attention(q, k, v, num_heads=12, q_embed=q_embed, k_embed=k_embed)  # q, k, v [B, N, D]
```

| function | what it computes |
|---|---|
| `patch_attention` | attention with embeddings of queries and keys that all images share, forward and backward |
| `patch_contrastive_loss` | Eq. 5 of the paper, or the supervised-contrastive form; no matrix of similarities |
| `row_contrastive_loss` | the losses of CLIP and SigLIP over rows of two matrices; no matrix of logits |
| `pixelshuffle_tail`, `collapse_tail` | conv, PixelShuffle, ..., conv as one convolution with an exact frame |
| `degrade` | clean uint8 crops to (input, target) of a task: `sr2`, `sr3`, `sr4`, `derain`, `denoise<sigma>` |
| `layernorm_linear`, `ffn` | LayerNorm and a linear layer; LayerNorm, linear, activation, linear, and the residual |

- Device: NVIDIA GPUs of capability 8.0 and newer by Triton; V100 and Turing by PyTorch's own kernels and, with
  `cuda-core` installed, by the CUDA C++ attention in `csrc/`; CPUs by PyTorch.
- Needs torch 2.10 or newer and Python 3.10 or newer; nothing else. Each function's text says what it takes and raises.
- `impl="eager"` is the plain formula, the oracle of the tests; `IPT_FAST_IMPL=eager` binds every op.
"""


def module_path(module: str) -> Path | None:
    """Return the file of a module of this package, or None where there is none of that name."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    found = (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.exists())
    return next(found, None)


def needed_modules() -> dict[str, str]:
    """Return every module that the ops import, at once or when a backend is chosen -> its text, as it is."""
    texts: dict[str, str] = {}
    todo = [_ROOT]
    while todo:
        module = todo.pop()
        path = module_path(module)
        if module in texts or module == _ROOM:
            continue
        texts[module] = path.read_text() if path else ""  # ipt_fast.kernels has no __init__.py
        todo.append(module.rpartition(".")[0])
        for node in _imports(texts[module]):
            todo.append(node.module or "")
            todo += [name for a in node.names if module_path(name := f"{node.module}.{a.name}")]
    return texts


def _imports(text: str) -> list[ast.ImportFrom]:
    """Return the ``from ipt_fast... import`` statements.

    Raises:
        ValueError: the package is imported in another way, which cannot be made relative.
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(a.name.split(".")[0] == _ROOM for a in node.names):
            raise ValueError(f"hub: line {node.lineno} imports {_ROOM} whole; write: from {_ROOM}... import")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _ROOM:
            found.append(node)
    return found


def relative(module: str, text: str) -> str:
    """Return the text of ``module`` with relative imports."""
    path = module_path(module)
    depth = module.count(".") - (path is None or path.name != "__init__.py")  # folders below the kernel's root
    lines = text.splitlines(keepends=True)
    for node in _imports(text):
        target = (node.module or "").removeprefix(_ROOM).removeprefix(".")
        old, new = f"from {node.module} import", f"from {'.' * (depth + 1)}{target} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(old, new, 1)
    return "".join(lines)


def write_kernel(out: Path, version: int = 0) -> Path:
    """Write the kernel into the folder ``out``; what a former call has built there is replaced.

    Args:
        out: a repository's root: gets README.md, LICENSE and build/.
        version: the Hub's; 0 promises nothing.

    Returns:
        The folder of the build variant.

    Raises:
        ValueError: a file of the package imports it in a way that cannot be made relative.
        OSError: ``out`` cannot be written.
    """
    texts = {module: relative(module, text) for module, text in needed_modules().items()}
    registry = f"{_ROOT}._registry"
    if texts[registry].count(_NAMESPACE) != 1:
        raise ValueError(f"hub: ops/_registry.py must hold the line {_NAMESPACE} once")
    digest = hashlib.sha256(json.dumps([version, texts], sort_keys=True).encode()).hexdigest()[:12]
    namespace = f"_{NAME.replace('-', '_')}_{digest}"
    texts[registry] = texts[registry].replace(_NAMESPACE, "from .._ops import NAMESPACE as _NAMESPACE")
    names = _public_names(texts[_ROOT])

    folder = out / VARIANT
    shutil.rmtree(folder, ignore_errors=True)
    files = {f"{NAME.replace('-', '_')}/__init__.py": _OLD_LAYOUT.format(namespace=namespace)}
    files["__init__.py"] = _INIT.format(names=", ".join(names), listed=",\n    ".join(f'"{n}"' for n in names))
    files["_ops.py"] = _OPS.format(namespace=namespace)
    for module, text in texts.items():
        path = module_path(module)
        place = module.removeprefix(f"{_ROOM}.").replace(".", "/")
        files[f"{place}.py" if path and path.name != "__init__.py" else f"{place}/__init__.py"] = text
    for path in (path for pattern in _DATA for path in sorted(PACKAGE.glob(pattern))):
        files[f"{path.parent.name}/{path.name}"] = path.read_text()
    metadata = {"id": namespace, "name": NAME, "version": version, "license": "MIT", "python-depends": []}
    files["metadata.json"] = json.dumps({**metadata, "backend": {"type": "cuda"}}, indent=1) + "\n"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (out / "README.md").write_text(_CARD.format(name=NAME, version=version))
    if (PACKAGE.parent / "LICENSE").exists():  # of a source tree; the card and metadata.json name it anywhere
        shutil.copyfile(PACKAGE.parent / "LICENSE", out / "LICENSE")
    return folder


def _public_names(text: str) -> list[str]:
    listed = re.search(r"__all__ = (\[.*?\])", text, re.DOTALL)
    if listed is None:
        raise ValueError("hub: ops/__init__.py has no __all__")
    return ast.literal_eval(listed[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Write the kernel and say how it is loaded; exit code 2 where it cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m ipt_fast.kernels.hub", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the kernel's repository; made where missing")
    parser.add_argument("--version", type=int, default=0, metavar="N", help="the Hub's number (default 0: no promises)")
    args = parser.parse_args(argv)
    if args.version < 0:
        print(f"hub: --version must be at least 0 (got {args.version})", file=sys.stderr)
        return 2
    try:
        folder = write_kernel(args.out, args.version)
    except OSError as error:
        print(f"hub: {error.filename or args.out}: {error.strerror}", file=sys.stderr)
        return 2
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"written: {folder}, {len(files)} files, {size / 1e3:.0f} kB")
    print(f'to load: kernels.get_local_kernel(Path("{args.out}"))')
    return 0


if __name__ == "__main__":
    sys.exit(main())
