"""The command ``app`` where it refuses; tests/app/test_page.py has the page itself."""

import os
import sys

import pytest


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--port", "0"], "--port must be 1 to 65535, got 0"),
        (["--max-pixels", "0"], "--max-pixels must be at least 1, got 0"),
        (["--max-upload", "-1"], "--max-upload must be at least 1, got -1"),
    ],
)
def test_refusals(arguments, message, assert_refused):
    assert_refused("app", arguments, message)


def test_without_its_extra(monkeypatch, assert_refused):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ipt_fast.app.page", raising=False)
    assert_refused("app", [], "pip install 'ipt-fast[app]' in an environment of its own")
