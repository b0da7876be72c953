"""``checked``: what each kind of annotation takes and refuses, in which words; compilers and tracers see through it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ipt_fast import accelerate
from ipt_fast.arguments import Shape, checked


@checked(count=1)
def function(
    tensor: Tensor | None = None,
    count: int = 1,
    rate: float = 0.5,
    name: str = "",
    names: Sequence[str] = (),
    sizes: tuple[int, ...] = (),
    pair: tuple[Path, Path] | None = None,
    path: str | Path = "x",
    mode: Literal["fast", "slow"] = "fast",
    flag: bool = False,
    hook: Callable[[int], int] | None = None,
    device: torch.device | str = "cpu",
    scores: Mapping[str, float] | None = None,
    anything: Any = None,
    plain=None,
):
    """Return what is given."""
    return locals()


@pytest.mark.parametrize(
    "given",
    [
        {"tensor": torch.ones(1)}, {"tensor": nn.Parameter(torch.ones(1))}, {"count": np.int64(3)}, {"rate": 1},
        {"rate": np.float32(2)}, {"names": ["a"]}, {"names": ("a", "b")}, {"sizes": [1, 2]}, {"path": Path("a")},
        {"pair": (Path("a"), Path("b"))}, {"hook": abs}, {"device": torch.device("meta")}, {"device": "cpu"},
        {"scores": {"a": 1.0}}, {"anything": object(), "plain": object()},
    ],
    ids=str,
)  # fmt: skip
def test_what_fits_arrives_as_it_was_given(given):
    result = function(**given)
    assert all(result[name] is value for name, value in given.items())


@pytest.mark.parametrize(
    "given, error, needed",
    [
        ({"tensor": [1.0]}, TypeError, "a tensor or None (got a list of 1.0)"),
        ({"tensor": np.ones((2, 3))}, TypeError, "a tensor or None (got a ndarray float64 [2, 3])"),
        ({"count": 2.0}, TypeError, "a whole number (got 2.0)"),
        ({"count": True}, TypeError, "a whole number (got True)"),
        ({"count": torch.tensor(2)}, TypeError, "a whole number (got a tensor torch.int64 [])"),
        ({"count": 0}, ValueError, "at least 1 (got 0)"),
        ({"rate": "1"}, TypeError, "a finite number (got '1')"),
        ({"rate": float("nan")}, ValueError, "a finite number (got nan)"),
        ({"name": b"x"}, TypeError, "a string (got bytes)"),
        ({"names": "abc"}, TypeError, "a sequence of strings (got 'abc')"),
        ({"names": ["a", 3]}, TypeError, "a sequence of strings (got a list of 'a', ...)"),
        ({"sizes": (1, None)}, TypeError, "a tuple of whole numbers (got a tuple of 1, ...)"),
        ({"pair": (Path("a"),)}, TypeError, "a pair of paths or None (got a tuple of PosixPath)"),
        ({"path": 3}, TypeError, "a path (got 3)"),
        ({"path": ""}, ValueError, "a path (got '')"),
        ({"path": "a\0b"}, ValueError, "a path (got 'a\\x00b')"),
        ({"mode": "quick"}, ValueError, "one of \"fast\", \"slow\" (got 'quick')"),
        ({"mode": None}, TypeError, 'one of "fast", "slow" (got None)'),
        ({"flag": 1}, TypeError, "True or False (got 1)"),
        ({"hook": "abs"}, TypeError, "a function or None (got 'abs')"),
        ({"device": "gpu"}, ValueError, "a device (got 'gpu')"),
        ({"scores": {"a": "b"}}, TypeError, "a mapping or None (got dict)"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_sentence(given, error, needed):
    name = next(iter(given))
    with pytest.raises(error) as caught:
        function(**given)
    assert str(caught.value) == f"function: {name} must be {needed}"


def test_places_count_as_names_do():
    with pytest.raises(TypeError, match=r"^function: count must be a whole number \(got 'x'\)$"):
        function(None, "x")
    with pytest.raises(TypeError, match="too_many"):
        function(too_many=1)


def test_a_class_checks_what_it_is_made_of():
    @checked
    @dataclass(frozen=True)
    class Sizes:
        width: int

    assert Sizes(3) == Sizes(width=3)
    with pytest.raises(TypeError, match=r"^Sizes: width must be a whole number \(got None\)$"):
        Sizes(None)


Images = Annotated[Tensor, Shape("B 3 H W", "uint8")]


@checked
def pair(images: Images, seeds: Annotated[Tensor, Shape("B", "int64")] | None = None):
    """Return nothing."""


@pytest.mark.parametrize(
    "images, seeds, error, message",
    [
        (torch.ones(2, 3, 4, 5), None, TypeError, "images must be a dense uint8 tensor [B, 3, H, W] (got a tensor"),
        (torch.ones(3, 4, 5).byte(), None, ValueError, "[B, 3, H, W], no axis empty (got a tensor torch.uint8 [3, 4,"),
        (torch.ones(2, 1, 4, 5).byte(), None, ValueError, "images must be a dense uint8 tensor [B, 3, H, W], no axis"),
        (torch.ones(2, 3, 4, 0).byte(), None, ValueError, "no axis empty"),
        (torch.ones(2, 3, 4, 5).byte().to_sparse(), None, TypeError, "images must be a dense uint8 tensor"),
        (torch.ones(2, 3, 4, 5).byte(), torch.arange(3), ValueError, "pair: seeds must have B=2, as images has (got"),
        (
            torch.ones(2, 3, 4, 5).byte(),
            torch.arange(2).to("meta"),
            ValueError,
            "seeds must have device=cpu, as images",
        ),
    ],
)
def test_shapes_go_together(images, seeds, error, message):
    pair(torch.ones(2, 3, 4, 5).byte())
    pair(torch.ones(2, 3, 4, 5).byte(), torch.arange(2))
    with pytest.raises(error, match=re.escape(message)):
        pair(images, seeds)


@checked(power=1)
def scaled(x: Annotated[Tensor, Shape("A B", "float")], power: int = 2, *, factor: float = 3.0) -> Tensor:
    """Return something simple."""
    return x**power * factor


def test_compilers_tracers_and_transforms_see_through_it():
    x = torch.arange(1.0, 5.0).reshape(2, 2)
    expected = scaled(x)
    compiled = torch.compile(lambda x: scaled(x, 2, factor=3.0), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.compile(lambda x: scaled(x, x.shape[0]), fullgraph=True, dynamic=True, backend="eager")(x),
                       expected)  # fmt: skip
    assert torch.equal(torch.vmap(scaled)(x[None])[0], expected)
    assert torch.equal(torch.func.grad(lambda x: scaled(x).sum())(x), 6 * x)
    assert torch.equal(torch.jit.trace(scaled, (x,))(x), expected)

    class Network(nn.Module):
        def forward(self, x):
            return scaled(x)

    assert torch.equal(torch.fx.symbolic_trace(Network())(x), expected)
    assert torch.equal(torch.export.export(Network(), (x,)).module()(x), expected)


def test_tensors_without_a_shape_are_shown():
    with pytest.raises(TypeError, match=r"accelerate: .*without a shape"):
        accelerate(nn.UninitializedParameter())
