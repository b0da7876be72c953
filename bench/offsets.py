"""Which tensors a compiled kernel reaches by 32-bit offsets alone, read from Triton's IR.

An offset of 32 bits wraps beyond 2^31 elements, and the kernel reads or writes elsewhere without a word.
"""

import re

_VALUE = r"%[\w$.-]+"
_ARGUMENT = re.compile(rf"({_VALUE}): !tt\.ptr<")
_ADVANCE = re.compile(rf"({_VALUE}) = tt\.addptr ({_VALUE}), {_VALUE} : [^,]+, (\S+)")
_SAME = re.compile(rf"({_VALUE}) = tt\.(?:splat|broadcast|expand_dims|reshape|trans) ({_VALUE})")
_RESULT = re.compile(rf"({_VALUE})(?::\d+)? = scf\.(?:for|while|if)")
_CARRIED = re.compile(rf"({_VALUE}) = ({_VALUE})(?:#\d+)?")
_ACCESS = re.compile(rf"tt\.(?:load|store) ({_VALUE})(?:#\d+)?")


def narrow_pointers(ttir: str) -> set[str]:
    """Return the names of pointer arguments that a load or store reaches through 32-bit offsets alone.

    A load at the argument itself counts as wide: it has no offset.
    """
    lines = ttir.splitlines()
    head = next(line for line in lines if "tt.func public" in line)
    arguments = set(_ARGUMENT.findall(head))
    comes_from: dict[str, list[tuple[str, str]]] = {}  # value -> (earlier value, "", "narrow" or "wide")
    result = ""
    for line in lines:
        if found := _ADVANCE.search(line):
            comes_from.setdefault(found[1], []).append((found[2], "wide" if "i64" in found[3] else "narrow"))
        elif found := _SAME.search(line):
            comes_from.setdefault(found[1], []).append((found[2], ""))
        if found := _RESULT.search(line):
            result = found[1]
        if "iter_args(" in line:
            for name, first in _CARRIED.findall(line.partition("iter_args(")[2]):
                comes_from.setdefault(name, []).append((first, ""))
                if result:
                    comes_from.setdefault(result, []).append((first, ""))
    narrow: set[str] = set()
    for line in lines:
        if found := _ACCESS.search(line):
            narrow |= _reached(found[1], comes_from, arguments)
    return {name.removeprefix("%") for name in narrow}


def _reached(value: str, comes_from: dict[str, list[tuple[str, str]]], arguments: set[str]) -> set[str]:
    """Return the arguments that a path from ``value`` reaches with narrow steps and no wide one."""
    found, seen, open_paths = set(), set(), [(value, False)]
    while open_paths:
        name, stepped = open_paths.pop()
        if (name, stepped) in seen:
            continue
        seen.add((name, stepped))
        if name in arguments and stepped:
            found.add(name)
        for earlier, step in comes_from.get(name, []):
            if step != "wide":
                open_paths.append((earlier, stepped or step == "narrow"))
    return found
