"""What the forward of a class does with one of its parts, read from its source: is nothing done to it in between?

A class that writes ``self.conv_last(self.upsample(x))`` shows that nothing happens between the two. That cannot be
seen from the modules, and to find out at each call would need results that are not yet computed.
"""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from torch import nn

Flags = tuple[tuple[nn.Module, str, Any], ...]


def follower(owner: nn.Module, part: str) -> tuple[str, Flags] | str:
    """Return which child of ``owner`` is called with what ``part`` returns, and nothing else is.

    Read are ``forward`` and the methods that it reaches; every mention of ``part`` has to be one of the two forms of
    ``_handed_on``. Branches that plain attributes of ``owner`` decide, as in ``if self.upsampler == "pixelshuffle"``,
    count as they would be taken now; these attributes are returned.

    Returns:
        (name of the child, flags), or the reason why there is none, as the end of a sentence.
    """
    if "forward" in vars(owner):
        return "stands in a forward of its own"
    who = f"is called by the forward of {type(owner).__name__}"
    plain = {name: v for name, v in vars(owner).items() if isinstance(v, str | int | float | None)}
    methods, asked, followers = ["forward", "__call__"], set[str](), set[str | None]()
    for method in methods:  # grows
        try:
            trees = list(_sources(type(owner), method))
        except (OSError, TypeError, SyntaxError):
            return f"{who}, whose source cannot be read"
        for tree in trees:
            handed_on = _handed_on(tree)
            for node in _live(tree, plain, asked):
                if isinstance(node, ast.Constant) and node.value == part:
                    return f"{who}, which has its name as a string"
                if isinstance(node, ast.Attribute) and node.attr == part:
                    followers.add(handed_on.get(node))
                elif isinstance(node, ast.Attribute) and node.attr not in methods:
                    methods.append(node.attr)
    if not followers:
        return f"{who} in no way that its source shows"
    name = followers.pop()
    if name is None or followers:
        return f"{who}, which does not hand its result to one convolution and to nothing else"
    return name, tuple((owner, name, plain[name]) for name in sorted(asked))


def _sources(kind: type, name: str) -> Iterator[ast.AST]:
    """Parse what ``name`` is in each class, all of which ``super`` may reach."""
    for base in kind.__mro__:
        found: Any = vars(base).get(name)
        found = getattr(found, "fget", None) or getattr(found, "__func__", found)
        if hasattr(found, "__get__") and not base.__module__.startswith(("torch.nn", "builtins")):
            yield ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(found))))


def _live(node: ast.AST, plain: dict[str, Any], asked: set[str]) -> Iterator[ast.AST]:
    """Yield all nodes but those of branches that plain attributes rule out, and add these attributes to ``asked``."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If | ast.IfExp):
        names = {"__builtins__": {}, "self": SimpleNamespace(**plain)}
        try:
            taken = node.body if eval(compile(ast.Expression(node.test), "", "eval"), names) else node.orelse
        except Exception:  # the test asks something else too, so both branches count
            pass
        else:
            asked.update(n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute) and n.attr in plain)
            children = taken if isinstance(taken, list) else [taken]
    for child in children:
        yield from _live(child, plain, asked)


def _handed_on(tree: ast.AST) -> dict[ast.AST, str]:
    """Return each ``self.part`` whose result goes to one other part of ``self`` alone, with the other's name.

    That is ``self.other(self.part(...))``, and ``x = self.part(...)`` with ``x = ... self.other(x) ...`` or
    ``return ... self.other(x) ...`` on the next line.
    """
    found: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        other, argument = _call(node)
        part, _ = _call(argument)
        if part:
            found[part] = other.attr
        for _, lines in ast.iter_fields(node):
            for now, then in itertools.pairwise(lines if isinstance(lines, list) else ()):
                if isinstance(now, ast.Assign) and (part := _call(now.value)[0]) and (other := _only_use(now, then)):
                    found[part] = other.attr
    return found


def _call(node: Any) -> tuple[Any, Any]:
    """Return ``self.name`` and ``argument`` of ``self.name(argument)``."""
    match node:
        case ast.Call(ast.Attribute(ast.Name("self")) as part, [argument], []):
            return part, argument
    return None, None


def _only_use(now: ast.Assign, then: ast.stmt) -> Any:
    """Return ``self.other`` where line ``then`` calls it with the result of ``now``, the only use of that result."""
    name = ast.unparse(now.targets[0])
    if len(now.targets) > 1 or not ast.unparse(then).startswith((f"{name} = ", "return ")):
        return None
    loads = [n for n in ast.walk(then) if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]
    calls = [part for part, argument in map(_call, ast.walk(then)) if argument in loads]
    return calls[0] if len(loads) == len(calls) == 1 else None
