"""The pages say what is true: every snippet runs, every command parses, and the site builds without a dead link."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "anatomy.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/])(ipt-fast|train\.py) ")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Return a folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    save_network(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1)), folder / "IPT_pretrain.pt")
    Image.effect_noise((60, 50), 40).convert("RGB").save(folder / "photo.jpg")
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_snippets_run_in_order(page, place, monkeypatch):
    monkeypatch.chdir(place)
    program = compile("\n".join(blocks(page, "python")), name_of(page), "exec")
    exec(program, {"__name__": "__main__"})


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every ``ipt-fast`` and ``train.py`` line of the pages' shell blocks."""
    lines = [(page, line) for page in PAGES for block in blocks(page, "", "bash") for line in joined(block)]
    return [(name_of(page), command_words(line)) for page, line in lines if COMMAND.search(line)]


def joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def command_words(line: str) -> list[str]:
    words = shlex.split(line.partition(" > ")[0], comments=True)
    first = next(i for i, word in enumerate(words) if Path(word).name in ("ipt-fast", "train.py"))
    return [Path(words[first]).name, *words[first + 1 :]]


@pytest.mark.parametrize("page, words", commands(), ids=lambda value: value if isinstance(value, str) else value[1])
def test_commands_parse(page, words):
    if words[0] == "train.py":
        done = subprocess.run(
            [sys.executable, ROOT / "train.py", "--help"], capture_output=True, text=True, timeout=120
        )
        assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", done.stdout))
        return
    assert words[1] in COMMANDS, f"{page}: ipt-fast {words[1]} is no command"
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"ipt_fast.cli.{words[1]}").add_arguments(parser)
    parser.parse_args(words[2:])


def test_the_site_builds_without_a_dead_link(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "site/ops/patch_attention/index.html").stat().st_size > 10_000
