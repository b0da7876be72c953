"""What is installed, under which names, and what importing it needs."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ipt_fast

ROOT = Path(__file__).resolve().parent.parent
OURS = ("ipt_fast", "kernels", "bench", "tests", "scripts", "train.py", "setup.py")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "runs", "results", "__pycache__", ".*_cache"
)


def our_files() -> list[Path]:
    listed = [ROOT / name for name in OURS]
    files = [f for path in listed for f in (path.rglob("*.py") if path.is_dir() else [path]) if f.exists()]
    return sorted(f for f in files if "ipt_fast/kernels/" not in f.as_posix())


def run_python(program: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, set[str]]:
    """Names in the wheel and in the source archive, built from a copy of the tree without any network."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools 77")
    place = tmp_path_factory.mktemp("build")
    tree = place / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    program = f"from setuptools import build_meta as b; b.build_wheel({str(place)!r}); b.build_sdist({str(place)!r})"
    done = run_python(program, tree)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (source,) = place.glob("*.whl"), place.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z, tarfile.open(source) as t:
        return {"wheel": set(z.namelist()), "sdist": {name.partition("/")[2] for name in t.getnames()}}


def test_wheel_holds_the_library_and_the_kernels(archives):
    expected = {f.relative_to(ROOT).as_posix() for f in our_files() if f.is_relative_to(ROOT / "ipt_fast")}
    expected |= {f"ipt_fast/kernels/{f.name}" for f in (ROOT / "kernels").glob("*.py")}
    expected.add("ipt_fast/py.typed")
    assert expected - archives["wheel"] == set()


def test_version_is_that_of_the_library(archives):
    (folder,) = {name.partition("/")[0] for name in archives["wheel"] if ".dist-info/" in name}
    assert folder == f"ipt_fast-{ipt_fast.__version__}.dist-info"


def test_wheel_holds_nothing_else(archives):
    tops = {name.partition("/")[0] for name in archives["wheel"]}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ipt_fast"}


def test_sdist_can_build_the_kernels(archives):
    expected = {f"kernels/{f.name}" for f in (ROOT / "kernels").glob("*.py")} | {"setup.py", "pyproject.toml"}
    assert expected - archives["sdist"] == set()


def test_kernels_is_not_ours_from_the_root_of_the_repository():
    # A bare folder is only found as a namespace, which any installed package of that name comes before; none of our
    # files may make it a package of its own.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    program = "import importlib.util as u; s = u.find_spec('kernels'); print('none' if s is None else s.origin)"
    assert run_python(program).stdout.strip() in ("none", "None")


def test_an_installed_package_named_kernels_comes_first(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("WHOSE = 'theirs'\n")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels, ipt_fast.kernels; print(kernels.WHOSE)"
    assert run_python(program).stdout.strip() == "theirs"


def test_ops_import_with_torch_alone():
    program = """
import sys, torch
from importlib.machinery import PathFinder

# torch and what torch itself brings; the compiler reads how Python was built from a module named after the platform.
ALLOWED = "torch functorch ipt_fast numpy sympy mpmath networkx jinja2 markupsafe filelock fsspec typing_extensions"

class TorchAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in ALLOWED.split() or top.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if known else None

sys.meta_path[sys.meta_path.index(PathFinder)] = TorchAlone
for name in [m for m in sys.modules if m.partition(".")[0] in ("triton", "xformers", "PIL", "safetensors", "rich")]:
    del sys.modules[name]
from ipt_fast.ops import degrade, patch_attention, patch_contrastive_loss, pixelshuffle_tail
q = torch.randn(2, 4, 8)
print(list(patch_attention(q, q, q, num_heads=2).shape), patch_contrastive_loss(q).dim())
"""
    done = run_python(program)
    assert done.stdout.strip() == "[2, 4, 8] 0", done.stderr[-2000:]


PUBLIC = ["IPT", "IPTConfig", "TASKS", "accelerate", "load_checkpoint", "ops", "prepare_for_inference", "restore"]
OPS = ["PixelShuffleTail", "degrade", "patch_attention", "patch_contrastive_loss", "pixelshuffle_tail"]


def test_public_names_are_these():
    assert set(ipt_fast.__all__) == {*PUBLIC, "__version__"}
    assert set(dir(ipt_fast)) >= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_loads(name):
    if name == "prepare_for_inference":
        pytest.importorskip("ipt_fast.inference.prepare")
    assert getattr(ipt_fast, name) is not None


@pytest.mark.parametrize("name", OPS)
def test_public_ops_are_there(name):
    assert name in ipt_fast.ops.__all__ and callable(getattr(ipt_fast.ops, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ipt_fast' has no attribute 'upscale'"):
        _ = ipt_fast.upscale


@pytest.mark.parametrize("forbidden", ["torchvision", "kernels"])
def test_no_file_of_ours_imports(forbidden):
    found = []
    for file in our_files():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found += [f"{file.name}:{node.lineno}" for name in names if name.partition(".")[0] == forbidden]
    if forbidden == "kernels":
        found = [place for place in found if not place.startswith("test_packaging.py")]
    assert found == []


def test_every_file_is_python_3_10():
    files = our_files()
    assert len(files) > 20
    for file in files:
        ast.parse(file.read_text(), filename=str(file), feature_version=(3, 10))


def test_importing_the_library_probes_no_device():
    program = "import ipt_fast, torch; ipt_fast.ops.degrade; ipt_fast.IPT; print(torch.cuda.is_initialized())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.strip() == "False"
