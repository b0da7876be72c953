"""What the tests of several commands share: a checkpoint, and what a refusal looks like."""

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.cli import main


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """Return a file with the keys of the released ones, of a network as narrow as they may be."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("released") / "IPT_pretrain.pt"
    torch.save(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1)).state_dict(), path)
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
