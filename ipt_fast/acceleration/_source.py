"""What the forward of a class does with one of its parts, read from its source: is nothing done to it in between?

A class that writes ``self.conv_last(self.upsample(x))`` shows that nothing happens between the two. That cannot be
seen from the modules, and to find out at each call would need results that are not yet computed.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn

Flags = tuple[tuple[nn.Module, str, Any], ...]


def follower(owner: nn.Module, part: str) -> tuple[str, Flags] | str:
    """Return which child of ``owner`` is called with what ``part`` returns, and nothing else is.

    Read are ``forward`` and the methods that it reaches. Branches that an attribute of ``owner`` decides, as in
    ``if self.upsampler == "pixelshuffle"``, count as they would be taken now; these attributes are returned.

    Returns:
        (name of the child, flags), or the reason why there is none, as the end of a sentence.
    """
    who = f"the forward of {type(owner).__name__}"
    flags: dict[str, Any] = {}
    methods, seen = ["forward"], set()
    uses: list[ast.Attribute] = []
    good: dict[int, str] = {}
    while methods:
        name = methods.pop()
        seen.add(name)
        try:
            functions = list(_functions(type(owner), name))
        except (OSError, TypeError, SyntaxError, IndentationError):
            return f"is called by {who}, whose source cannot be read"
        for function in functions:
            me = function.args.args[0].arg if function.args.args else "self"
            live = _Pruned(owner, me, flags).visit(function)
            good.update(_in_order(live, me, part))
            for node in ast.walk(live):
                if isinstance(node, ast.Constant) and node.value == part:
                    return f"is called by {who}, which has its name as a string"
                if not isinstance(node, ast.Attribute):
                    continue
                if _is_own(node, me) and node.attr == part:
                    uses.append(node)
                elif node.attr not in seen and inspect.isroutine(getattr(type(owner), node.attr, None)):
                    methods.append(node.attr)
    names = set(good.values())
    if not uses:
        return f"is called by {who} in no way that its source shows"
    if len(names) != 1 or any(id(use) not in good for use in uses):
        return f"is called by {who}, which does not hand its result to one convolution and to nothing else"
    return names.pop(), tuple((owner, name, value) for name, value in flags.items())


def _functions(kind: type, name: str) -> Iterator[ast.FunctionDef]:
    for base in kind.__mro__:
        found = vars(base).get(name)
        if found is None or base.__module__.startswith("torch.nn"):
            continue
        found = getattr(found, "fget", None) or getattr(found, "__func__", found)
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(found))))
        yield from (node for node in tree.body if isinstance(node, ast.FunctionDef))


def _is_own(node: ast.AST, me: str) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == me


def _called(node: ast.AST | None, me: str) -> str | None:
    """Return the name of the part of ``self`` that an expression calls with one argument, or None."""
    if isinstance(node, ast.Call) and _is_own(node.func, me) and len(node.args) == 1 and not node.keywords:
        return node.func.attr  # type: ignore[attr-defined]
    return None


def _in_order(function: ast.AST, me: str, part: str) -> Iterator[tuple[int, str]]:
    """Yield each use of ``part`` whose result goes to another part alone, with the name of that other."""
    for node in ast.walk(function):
        other = _called(node, me)
        if other and _called(node.args[0], me) == part:  # type: ignore[attr-defined]
            yield id(node.args[0].func), other  # type: ignore[attr-defined]
        for field in ("body", "orelse", "finalbody"):
            lines = getattr(node, field, None)
            for now, then in itertools.pairwise(lines) if isinstance(lines, list) else ():
                if isinstance(now, ast.Assign) and _called(now.value, me) == part:
                    other = _only_use(now, then, me)
                    if other:
                        yield id(now.value.func), other  # type: ignore[attr-defined]


def _only_use(now: ast.Assign, then: ast.stmt, me: str) -> str | None:
    """``x = self.part(...)``, then ``x = ... self.other(x) ...`` or ``return ... self.other(x) ...``: ``other``."""
    if len(now.targets) != 1 or not isinstance(now.targets[0], ast.Name):
        return None
    name = now.targets[0].id
    rebound = isinstance(then, ast.Assign) and [getattr(t, "id", None) for t in then.targets] == [name]
    if not rebound and not isinstance(then, ast.Return):
        return None
    value = then.value  # type: ignore[attr-defined]
    loads = [n for n in ast.walk(value) if isinstance(n, ast.Name) and n.id == name] if value else []
    calls = [n for n in ast.walk(value) if _called(n, me) and n.args[0] in loads] if value else []  # type: ignore[attr-defined]
    return _called(calls[0], me) if len(loads) == len(calls) == 1 else None


class _Pruned(ast.NodeTransformer):
    """Takes out the branches that plain attributes of the module rule out, and notes those attributes."""

    def __init__(self, owner: nn.Module, me: str, flags: dict[str, Any]):
        self.owner, self.me, self.flags = owner, me, flags

    def _lines(self, lines: list[ast.stmt]) -> list[ast.stmt]:
        live: list[ast.stmt] = []
        for line in lines:
            seen = self.visit(line)
            live += seen if isinstance(seen, list) else [seen]
            if live and isinstance(live[-1], ast.Return | ast.Raise):
                break  # what follows is never reached
        return live

    def visit_FunctionDef(self, node: ast.FunctionDef):
        node.body = self._lines(node.body)
        return node

    def visit_If(self, node: ast.If):
        taken = self._decide(node.test)
        if taken is not None:
            return self._lines(node.body if taken else node.orelse)
        node.body, node.orelse = self._lines(node.body), self._lines(node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp):
        taken = self._decide(node.test)
        return self.generic_visit(node) if taken is None else self.visit(node.body if taken else node.orelse)

    def _decide(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            taken = self._decide(test.operand)
            return None if taken is None else not taken
        plain = test.left if isinstance(test, ast.Compare) and len(test.ops) == 1 else test
        if not _is_own(plain, self.me):
            return None
        name = plain.attr  # type: ignore[attr-defined]
        if not isinstance(self.owner.__dict__.get(name, ...), str | int | float | None):
            return None
        value = self.owner.__dict__[name]
        if isinstance(test, ast.Compare):
            try:
                other = ast.literal_eval(test.comparators[0])
                result = _COMPARE[type(test.ops[0])](value, other)
            except (ValueError, KeyError, TypeError):
                return None
        else:
            result = value
        self.flags[name] = value
        return bool(result)


_COMPARE = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
}
