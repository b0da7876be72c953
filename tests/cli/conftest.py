"""What the tests of several commands share: a checkpoint, and what a refusal looks like."""

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """Return a file of a network with the six tasks."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("released") / "IPT_pretrain.pt"
    save_network(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1)), path)
    return str(path)


@pytest.fixture
def assert_refused(capsys):
    """Return a function that runs a command and asserts exit code 2 and a last line that holds ``message``."""

    def check(command, arguments, message, lines=1):
        assert main([command, *map(str, arguments)]) == 2
        said = capsys.readouterr().err.splitlines()
        assert message in said[-1] and said[-1].startswith(f"ipt-fast {command}: ")
        assert lines is None or len(said) == lines

    return check
