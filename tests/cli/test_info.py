"""``ipt-fast info`` prints what ``python -m ipt_fast.info`` prints."""

from ipt_fast.cli import main
from ipt_fast.info import OPS


def test_prints_every_op_and_leaves_with_zero(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(op in text for op in OPS)
    assert "torch" in text
