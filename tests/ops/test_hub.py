"""The ops as a Hub kernel: loaded in a process without this package, they give what the package gives."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from bench import ROOT
from ipt_fast import ops
from ipt_fast.kernels import hub

# How the program gets the kernel as ``k``, what must not be importable meanwhile, what the process is given.
WAYS = {
    "path": ("spec('alone', folder / '__init__.py')", ("ipt_fast", "triton", "numpy"), {}),
    # Beside the package, as old versions of ``kernels`` find it, and attention in Triton's interpreter.
    "interpreter": (
        "(__import__('ipt_fast.ops'), spec('ipt_fast_ops', folder / 'ipt_fast_ops' / '__init__.py'))[1]",
        (),
        {"TRITON_INTERPRET": "1"},
    ),
    "kernels": ("__import__('kernels').get_local_kernel(folder.parent.parent)", ("ipt_fast",), {"HF_HUB_OFFLINE": "1"}),
}
PROGRAM = """
import importlib.util, sys
from pathlib import Path
folder, blocked, target = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3]
sys.path.append(sys.argv[4])
sys.modules.update(dict.fromkeys(blocked))
import torch
def spec(name, path):
    found = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
k = {how}
from torch import Tensor
{compute}
torch.save(compute(k, {impl!r}), target)
print(k.patch_attention.__module__)
"""
COMPUTE = '''
def compute(k, impl):
    """Return outputs and gradients of every op of ``k`` as a dict of tensors."""
    torch.manual_seed(0)
    tokens, embed = (torch.randn(*shape, requires_grad=True) for shape in ((2, 16, 32), (16, 32)))
    weights = [torch.randn(n, requires_grad=True) for n in (32, 32)] + [torch.randn(48, 32), torch.randn(48)]
    convs = [(torch.randn(16, 4, 3, 3), torch.randn(16)), (torch.randn(3, 4, 3, 3), None)]
    out = {"attention": k.patch_attention(tokens, tokens, tokens, num_heads=2, q_embed=embed, impl=impl)}
    out["loss"] = k.patch_contrastive_loss(tokens)
    out["rows"] = k.row_contrastive_loss(embed, embed.flip(0), 2.0)
    out["linear"] = k.layernorm_linear(tokens, *weights)
    out["ffn"] = k.ffn(tokens, *weights, weights[2].T.contiguous(), weights[0])
    out["tail"] = k.pixelshuffle_tail(torch.randn(1, 4, 5, 6), convs, (2,))
    clean = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    for task in ("sr2", "denoise30", "derain"):
        out[task] = k.degrade(clean, task, seeds=torch.arange(2))[0]
    total = sum(out[name].square().sum() for name in ("attention", "loss", "rows", "linear", "ffn"))
    grads = torch.autograd.grad(total, (tokens, embed, *weights[:2]))
    return {name: x.detach() for name, x in out.items()} | {f"gradient {i}": g for i, g in enumerate(grads)}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub.write_kernel(tmp_path_factory.mktemp("repository"), version=3)


@pytest.fixture(scope="module")
def expected():
    space = {"torch": torch}
    exec(COMPUTE, space)
    return space["compute"](ops, None)


@pytest.mark.parametrize("way", WAYS)
def test_a_clean_process_gets_the_same_numbers(way, folder, expected, tmp_path):
    how, blocked, given = WAYS[way]
    needed = {"interpreter": "triton", "kernels": "kernels"}.get(way, "torch")
    there = importlib.util.find_spec(needed)
    if there is None or there.origin is None:  # without origin: this repository's own folder kernels/
        pytest.skip(f"needs the package {needed}")
    place = os.path.dirname(there.submodule_search_locations[0]) if way == "kernels" else str(ROOT)
    target = tmp_path / "found.pt"
    impl = "triton" if way == "interpreter" else None
    program = PROGRAM.format(how=how, compute=COMPUTE, impl=impl)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "IPT_FAST_IMPL", "TRITON_INTERPRET")}
    command = [sys.executable, "-c", program, str(folder), " ".join(blocked), str(target), place]
    done = subprocess.run(
        command, cwd=tmp_path, env={**environment, **given}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stdout.startswith("ipt_fast.")  # the copy's, not the package's
    found = torch.load(target)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, msg=lambda text, name=name: f"{name}: {text}")


def test_two_versions_have_operators_of_their_own(folder, tmp_path):
    names = [(path / "_ops.py").read_text() for path in (folder, hub.write_kernel(tmp_path, version=4))]
    assert names[0] != names[1]
    assert hub.write_kernel(tmp_path, version=3).joinpath("_ops.py").read_text() == names[0]  # replaced, same names


def test_every_import_of_the_package_is_relative(folder):
    texts = [path.read_text() for path in folder.rglob("*.py")]
    assert len(texts) > 20
    assert not [text for text in texts if "from ipt_fast" in text or "import ipt_fast" in text]


@pytest.mark.parametrize(
    "module, line, expected",
    [
        (
            "ipt_fast.ops.degrade",
            "    from ipt_fast.kernels import degrade as k",
            "    from ..kernels import degrade as k",
        ),
        ("ipt_fast.ops", "from ipt_fast.ops.ffn import ffn", "from ..ops.ffn import ffn"),
        ("ipt_fast.ops._common", "from ipt_fast.tasks import Task", "from ..tasks import Task"),
        ("ipt_fast.tasks", "from ipt_fast.arguments import checked", "from .arguments import checked"),
    ],
)
def test_imports_become_relative(module, line, expected):
    text = f"if True:\n{line}\n" if line.startswith(" ") else f"{line}\n"
    assert expected in hub.relative(module, text)


def test_an_import_that_cannot_be_made_relative_is_refused():
    with pytest.raises(ValueError, match="imports ipt_fast whole"):
        hub.relative("ipt_fast.tasks", "import ipt_fast.ops\n")


def test_the_command_says_how_to_load_it(tmp_path, capsys):
    assert hub.main([str(tmp_path / "out")]) == 0
    assert "get_local_kernel" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in ops.__all__ if name[0].islower())
    (tmp_path / "file").write_text("")
    assert hub.main([str(tmp_path / "file")]) == 2
    assert hub.main([str(tmp_path), "--version", "-1"]) == 2
    assert "at least 0 (got -1)" in capsys.readouterr().err
