"""What a terminal shows of every command: groups, width, exit codes, completion, colours."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_fast.cli import COMMANDS, GROUPS, main
from ipt_fast.engine.run import EXIT_CODES

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = (ROOT / "docs" / "commands.md").read_text()


def help_of(*command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_prose_keeps_to_the_terminal_and_examples_stay_whole(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of(command, capsys=capsys).splitlines()
    assert [line for line in lines if len(line) > columns and not line.startswith("  ")] == []


def test_commands_and_options_stand_in_groups(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text = help_of(capsys=capsys)
    assert all(f"\n\n{title}:\n" in text for title in GROUPS)
    assert max(map(len, text.splitlines())) <= 80
    for command, groups in {
        "restore": ["outputs", "how images go through the network"],
        "eval": ["outputs", "how images go through the network"],
        "finetune": ["what is trained", "recipe", "this machine"],
    }.items():
        text = help_of(command, capsys=capsys)
        assert all(f"\n{group}:\n" in text for group in groups), command


def _returned(path: Path) -> set[int]:
    """Return the exit codes that ``run`` of a command names."""
    (run,) = (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == "run")
    values = [node.value for node in ast.walk(run) if isinstance(node, ast.Return)]
    parts = [part for v in values for part in ([v.body, v.orelse] if isinstance(v, ast.IfExp) else [v])]
    return {part.value for part in parts if isinstance(part, ast.Constant)}


def test_the_table_of_exit_codes_is_what_the_commands_return():
    told = {name for line in DOCS.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    elsewhere = {"bench", "finetune"}  # the codes of another program, and of train.py
    for command in set(COMMANDS) - elsewhere:
        codes = _returned(ROOT / "ipt_fast" / "cli" / f"{command}.py")
        assert codes <= {0, 1} and (1 in codes) == (command in told), command
    assert elsewhere <= told
    training = (ROOT / "docs" / "training" / "index.md").read_text()
    for code in re.findall(r"\b(\d+) [a-zCS]", EXIT_CODES):
        assert re.search(rf"^\| ([\d, ]*\b)?{code}\b", training, re.MULTILINE), code


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs the extra completion")
    done = subprocess.run(
        [sys.executable, "-m", "ipt_fast.cli", "completion", "bash"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    script = tmp_path_factory.mktemp("completion") / "ipt-fast"
    script.write_text(done.stdout)
    return script


@pytest.mark.parametrize(
    "words, completed",
    [
        (["aud"], ["audit"]),
        (["eval", "--preci"], ["--precision"]),
        (["eval", "--stitch", ""], ["blend", "official"]),
        (["convert", "--layout", "o"], ["own"]),
        (["eval", "--data", "test"], ["tests"]),
        (["convert", "READ"], ["README.md"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(words, completed, bash_script):
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_ipt_fast; echo "${COMPREPLY[@]}"'
    command = ["bash", "-c", program, "bash", bash_script, "ipt-fast", *words]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split() == completed


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_take_their_script(shell, capsys, tmp_path):
    pytest.importorskip("shtab", reason="needs the extra completion")
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    assert all(command in script.read_text() for command in COMMANDS)
    if shutil.which(shell):
        assert subprocess.run([shell, "-n", script], capture_output=True, timeout=60).returncode == 0


def test_completion_without_its_extra(monkeypatch, assert_refused):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert_refused("completion", ["bash"], "pip install 'ipt-fast[completion]'")


@pytest.mark.parametrize("no_color, coloured", [(None, True), ("1", False)])
def test_colours_are_for_terminals_and_no_color_takes_them_away(no_color, coloured, tmp_path, monkeypatch, capsys):
    Image.fromarray(np.zeros((20, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    main_end, program_end = os.openpty()
    with open(program_end, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["eval", "--task", "denoise30", "--data", str(tmp_path)]) == 0
        said = os.read(main_end, 1 << 16).decode()
    os.close(main_end)
    assert tmp_path.name in said
    assert bool(re.search(r"\x1b\[[\d;]*(3[0-7]|38|9[0-7])[;\dm]", said)) == coloured
    assert "\x1b" not in capsys.readouterr().out  # no terminal
