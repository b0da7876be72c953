"""The dispatcher: help without heavy imports, one-line errors, exit codes."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from ipt_fast import __version__
from ipt_fast.cli import COMMANDS, CommandError, main


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_an_example_of_it(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"ipt-fast {command} " in capsys.readouterr().out.split("example")[-1]


def test_unknown_command_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretend"])
    assert stop.value.code == 2
    assert "pretend" in capsys.readouterr().err


def test_a_command_error_is_one_line(monkeypatch, capsys):
    def fail(args):
        raise CommandError("no such folder: photos")

    monkeypatch.setattr("ipt_fast.cli.demo.run", fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "ipt-fast demo: no such folder: photos\n"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"bench"}))
def test_a_signal_ends_every_command_in_one_line(command, monkeypatch, capsys):
    def stop(args):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(f"ipt_fast.cli.{command}.run", stop)
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", lambda self, argv: argparse.Namespace(command=command))
    assert main([command]) == 143
    assert capsys.readouterr().err == f"ipt-fast {command}: stopped by SIGTERM\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"ipt-fast {__version__}\n"


def test_help_does_not_import_torch():
    program = "import sys, ipt_fast.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


def test_a_reader_that_leaves_is_no_error():
    program = "import sys; from ipt_fast.cli import main; sys.exit(main(['config', '--schema']))"
    command = f'set -o pipefail; {sys.executable} -c "{program}" | head -1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{\n" and done.stderr == "" and done.returncode in (0, 141)
