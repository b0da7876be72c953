"""What is installed, under which names, and what importing it needs."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ipt_fast
from ipt_fast.cuda import code
from ipt_fast.cuda.kernels import ARCHS, kernels_of

ROOT = Path(__file__).resolve().parent.parent
OURS = ("ipt_fast", "kernels", "bench", "tests", "scripts", "train.py", "setup.py")
NO_CUDA_CORE = "import sys; sys.modules['cuda.core'] = None"
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "*.egg-info", "runs", "results", "__pycache__", ".*_cache"
)


def our_files() -> list[Path]:
    listed = [ROOT / name for name in OURS]
    files = [f for path in listed for f in (path.rglob("*.py") if path.is_dir() else [path]) if f.exists()]
    return sorted(f for f in files if "ipt_fast/kernels/" not in f.as_posix())


def run_python(program: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )


def build(place: Path, before: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Build the wheel and the source archive of a copy of the tree into ``place``."""
    tree = place / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=LEFT_OUT)
    program = f"{before}\nfrom setuptools import build_meta as b; b.build_wheel({str(place)!r})"
    return run_python(f"{program}; b.build_sdist({str(place)!r})", tree, **variables)


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict:
    """Names in the wheel and in the source archive, and the wheel's content, built without any network."""
    pytest.importorskip("setuptools", minversion="77", reason="the build needs setuptools 77")
    place = tmp_path_factory.mktemp("build")
    done = build(place)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,), (source,) = place.glob("*.whl"), place.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as z, tarfile.open(source) as t:
        z.extractall(place / "wheel")
        return {
            "wheel": set(z.namelist()),
            "sdist": {name.partition("/")[2] for name in t.getnames()},
            "folder": place / "wheel",
        }


@pytest.mark.parametrize("arch", ARCHS)
def test_wheel_holds_machine_code_where_a_compiler_is_at_hand(archives, arch):
    files = [archives["folder"] / "ipt_fast" / "cuda" / "cubins" / code.packaged_name(s, arch) for s in code.sources()]
    if code.compiler_missing(arch):
        assert not any(file.exists() for file in files)
        pytest.skip(f"no compiler here: it {code.compiler_missing(arch)}")
    assert len(files) == 2
    for file, source in zip(files, code.sources(), strict=True):
        content = file.read_bytes()
        assert content[:4] == b"\x7fELF" and arch in content[48:50]  # flags; CUDA 12 and 13 differ
        symbols = {code.symbol(content, kernel) for kernel in kernels_of(source, arch)}
        assert len(symbols) == 3  # d = 32, 48, 64
        assert all(f"\0.text.{name}\0".encode() in content for name in symbols)


@pytest.mark.parametrize(
    "mode, text",
    [
        ("require", "IPT_FAST_CUBINS=require: no machine code for sm_70: it needs "),
        ("no", "choose auto, require or off"),
    ],
)
def test_a_build_that_cannot_have_the_machine_code_it_wants_fails(mode, text, tmp_path):
    done = build(tmp_path, NO_CUDA_CORE, IPT_FAST_CUBINS=mode)
    assert done.returncode != 0 and text in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_without_a_compiler_the_wheel_is_built_without_machine_code(tmp_path):
    done = build(tmp_path, NO_CUDA_CORE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the wheel has no machine code for sm_70: it needs the package cuda-core" in done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        assert not [name for name in z.namelist() if "cubin" in name]


def test_wheel_holds_the_library_and_the_kernels(archives):
    expected = {f.relative_to(ROOT).as_posix() for f in our_files() if f.is_relative_to(ROOT / "ipt_fast")}
    expected |= {f"ipt_fast/kernels/{f.name}" for f in (ROOT / "kernels").glob("*.py")}
    expected |= {f"ipt_fast/csrc/{f.name}" for f in (ROOT / "csrc").glob("*.cu*")}
    expected |= {"ipt_fast/py.typed", "ipt_fast/evaluation/gallery.html"}
    assert expected - archives["wheel"] == set()


def test_wheel_and_source_hold_the_weights(archives):
    names = {f"ipt_fast/weights/pretrained.{suffix}" for suffix in ("safetensors", "sha256")}
    assert names <= archives["wheel"] and names <= archives["sdist"]
    installed = archives["folder"] / "ipt_fast" / "weights" / "pretrained.safetensors"
    assert installed.read_bytes() == (ROOT / "ipt_fast" / "weights" / installed.name).read_bytes()
    assert installed.stat().st_size <= 12e6


def test_version_is_that_of_the_library(archives):
    (folder,) = {name.partition("/")[0] for name in archives["wheel"] if ".dist-info/" in name}
    assert folder == f"ipt_fast-{ipt_fast.__version__}.dist-info"


def test_wheel_holds_nothing_else(archives):
    tops = {name.partition("/")[0] for name in archives["wheel"]}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ipt_fast"}


def test_sdist_holds_what_a_wheel_is_made_of_and_no_part_of_the_tests(archives):
    made = {name for name in archives["wheel"] if ".dist-info/" not in name and "/cubins/" not in name}
    moved = {re.sub("^ipt_fast/(kernels|csrc)/", r"\1/", name) for name in made}
    assert moved - archives["sdist"] - {"csrc/__init__.py", "kernels/__init__.py"} == set()
    assert not [name for name in archives["sdist"] if name.startswith(("tests", "bench", "docs"))]


def test_sdist_can_build_the_kernels(archives):
    expected = {f"kernels/{f.name}" for f in (ROOT / "kernels").glob("*.py")} | {"setup.py", "pyproject.toml"}
    expected |= {f"csrc/{f.name}" for f in (ROOT / "csrc").glob("*.cu*")}
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

# torch and what it needs, not NumPy; the compiler reads how Python was built from a module named after the platform.
ALLOWED = "torch functorch ipt_fast sympy mpmath networkx jinja2 markupsafe filelock fsspec typing_extensions"

class TorchAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in sys.stdlib_module_names or top in ALLOWED.split() or top.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if known else None

sys.meta_path[sys.meta_path.index(PathFinder)] = TorchAlone
ABSENT = "triton xformers PIL safetensors rich numpy"
for name in [m for m in sys.modules if m.partition(".")[0] in ABSENT.split()]:
    del sys.modules[name]
from ipt_fast.ops import degrade, patch_attention, patch_contrastive_loss, pixelshuffle_tail
q = torch.randn(2, 4, 8)
degrade(torch.zeros(2, 3, 24, 24, dtype=torch.uint8), "sr2", seeds=torch.arange(2))
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


def test_torch_is_bounded_by_what_was_tried():
    script = (ROOT / "scripts" / "install_torch.sh").read_text()
    tried = re.findall(r"^2\.(\d+) triton==[\d.]+ numpy", script, re.MULTILINE)
    assert f'"torch>=2.{tried[0]},<2.{int(tried[-1]) + 1}"' in (ROOT / "pyproject.toml").read_text()


def test_a_torch_that_was_not_tried_is_refused_by_name(tmp_path):
    environment = {**os.environ, "TORCH": "2.9", "PYTHON": sys.executable, "VENV": str(tmp_path / "venv")}
    script = ["bash", ROOT / "scripts" / "install_torch.sh"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "TORCH=2.9 is not among those tried: 2.10 " in done.stderr and not (tmp_path / "venv").exists()


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


def test_wherever_the_toolkit_is_installed_torch_is_named():
    """Torch 2.10 and the newest toolkit of cuda12 exclude each other: pip would take a torch without sm_70."""
    places = [*ROOT.glob("docker/*"), *ROOT.glob("scripts/*.sh"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]
    commands = [
        command
        for place in places
        for command in place.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
        if "install" in command and re.search(r"\[[^]]*(cuda12|cuda13|\$extra)", command)
    ]
    assert len(commands) >= 3
    assert [command for command in commands if "torch==" not in command] == []
