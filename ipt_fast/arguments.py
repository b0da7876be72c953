"""``@checked`` compares a function's arguments with its annotations, and says in one sentence what does not fit.

The ops check by hand: they ask more of a tensor than that it is one, and are called more often.
"""

import functools
import inspect
import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

_F = TypeVar("_F", bound=Callable[..., Any])
_WORDS = {  # class -> one of them, several
    "Tensor": ("a tensor", "tensors"),
    "Module": ("an nn.Module", "modules"),
    "dtype": ("a torch.dtype", "torch.dtypes"),
    "device": ("a device", "devices"),
    "str": ("a string", "strings"),
    "bool": ("True or False", "bools"),
}
_PATH = ("a path", "paths")


@dataclass(frozen=True)
class Kind:
    """What an argument may be: its ``words`` (one, several), whether a value is of that type, and then possible."""

    words: tuple[str, str]
    fits: Callable[[Any], bool]
    holds: Callable[[Any], bool] = lambda value: True


@overload
def checked(function: _F, /) -> _F: ...
@overload
def checked(**least: int) -> Callable[[_F], _F]: ...
def checked(function: Any = None, /, **least: int) -> Any:
    """Check arguments of every call of ``function`` (of a class: of its constructor) by its annotations.

    A number is finite, a bool is no number, a string is no sequence of strings, a path is not empty. What has no
    annotation, or ``Any``, is taken as it comes. ``least``: ``@checked(workers=0)`` refuses what is less.

    Raises:
        TypeError: of a call, an argument has another type than its annotation.
        ValueError: of a call, it has that type and a value that cannot be.
    """
    if function is None:
        return functools.partial(checked, **least)
    if isinstance(function, type):
        function.__init__ = checked(function.__init__, **least)  # type: ignore[misc]
        return function
    title = function.__qualname__.removesuffix(".__init__").rpartition("<locals>.")[2]
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = {p.name: kind_of(hints[p.name]) for p in parameters if p.name in hints and p.kind != p.VAR_KEYWORD}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(plain, args, strict=False), *kwargs.items()):
            if name in kinds:
                _check(title, name, kinds[name], value)
            if name in least and value is not None and value < least[name]:
                raise ValueError(f"{title}: {name} must be at least {least[name]} (got {value})")
        return function(*args, **kwargs)

    return call


def _check(title: str, name: str, kind: Kind, value: Any) -> None:
    if not kind.fits(value):
        if not type(value).__module__.startswith("torch.fx"):  # a tracer's stand-in
            raise TypeError(f"{title}: {name} must be {kind.words[0]} (got {_shown(value)})")
    elif not kind.holds(value):
        raise ValueError(f"{title}: {name} must be {kind.words[0]} (got {_shown(value)})")


def kind_of(hint: Any) -> Kind:
    """Return what an annotation allows.

    Raises:
        TypeError: an annotation that this does not know.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return Kind(("anything", "anything"), lambda value: True)
    if hint is None or hint is type(None):
        return Kind(("None", "None"), lambda value: value is None)
    if origin in (Union, types.UnionType):
        return _union(parts)
    if origin is Literal:
        words = "one of " + ", ".join(f'"{choice}"' if isinstance(choice, str) else repr(choice) for choice in parts)
        kinds = tuple({type(choice) for choice in parts})
        return Kind((words, words), lambda value: type(value) in kinds, lambda value: value in parts)
    if origin is tuple and parts[-1] is not ...:
        inside = [kind_of(part) for part in parts]
        words = f"a pair of {inside[0].words[1]}" if len(parts) == 2 else f"{len(parts)} values"
        return _container((words, words), tuple | list, lambda value: zip(inside, value, strict=True), len(parts))
    if origin is tuple:
        of = kind_of(parts[0])
        return _container((f"a tuple of {of.words[1]}", "tuples"), tuple | list, lambda value: ((of, x) for x in value))
    if origin is not None and issubclass(origin, Mapping):
        of = kind_of(parts[1])
        return _container(("a mapping", "mappings"), Mapping, lambda value: ((of, part) for part in value.values()))
    if hint is Callable or origin is Callable:
        return Kind(("a function", "functions"), callable)
    if origin is not None and issubclass(origin, Iterable):
        return _sequence(origin, kind_of(parts[0]))
    if not isinstance(hint, type):
        raise TypeError(f"checked: cannot check an annotation {hint!r}")
    return _class(hint)


def _class(hint: type) -> Kind:
    if hint is int:
        return Kind(("a whole number", "whole numbers"), _is_number(Integral))
    if hint is float:
        return Kind(("a finite number", "finite numbers"), _is_number(Real), lambda value: math.isfinite(value))
    if issubclass(hint, os.PathLike):
        return Kind(_PATH, lambda value: isinstance(value, hint))
    article = "an" if hint.__name__[0] in "AEIOU" else "a"
    words = _WORDS.get(hint.__name__, (f"{article} {hint.__name__}", f"{hint.__name__} objects"))
    return Kind(words, lambda value: isinstance(value, hint))


def _is_number(number: type) -> Callable[[Any], bool]:
    # A tensor is no number; neither is a bool, though Python takes it for one. SymInt is a compiler's size.
    return lambda value: (isinstance(value, number) and not isinstance(value, bool)) or type(value).__name__ == "SymInt"


def _union(parts: Sequence[Any]) -> Kind:
    kinds = [kind_of(part) for part in parts]
    if str in parts and any(isinstance(part, type) and issubclass(part, os.PathLike) for part in parts):
        others = [kind for kind in kinds if kind.words not in (_PATH, _WORDS["str"])]
        kinds = [Kind(_PATH, lambda value: isinstance(value, str | os.PathLike), _is_possible_path), *others]
    if str in parts and (device := next((part for part in parts if _name(part) == "device"), None)):
        others = [kind for kind in kinds if kind.words not in (_WORDS["device"], _WORDS["str"])]
        named = Kind(
            _WORDS["device"], lambda value: isinstance(value, str | device), lambda value: _makes(device, value)
        )
        kinds = [named, *others]
    several = [_listed([kind.words[i] for kind in kinds]) for i in (0, 1)]
    return Kind(
        (several[0], several[1]),
        lambda value: any(kind.fits(value) for kind in kinds),
        lambda value: any(kind.fits(value) and kind.holds(value) for kind in kinds),
    )


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", "")


def _makes(kind: type, value: Any) -> bool:
    try:
        kind(value)
    except RuntimeError:  # torch.device of a name that is none
        return False
    return True


def _is_possible_path(value: Any) -> bool:
    text = os.fspath(value)
    return bool(text) and (b"\0" if isinstance(text, bytes) else "\0") not in text


def _sequence(origin: type, of: Kind) -> Kind:
    what = "a sequence" if issubclass(origin, Collection) else "several"
    words = (f"{what} of {of.words[1]}", f"{origin.__name__}s of {of.words[1]}")
    if not issubclass(origin, Collection):  # looking into it would use it up
        return Kind(words, lambda value: isinstance(value, origin) and not isinstance(value, str))
    return _container(words, origin, lambda value: ((of, part) for part in value))


def _container(
    words: tuple[str, str], origin: Any, parts: Callable[[Any], Iterable[tuple[Kind, Any]]], length: int | None = None
) -> Kind:
    def fits(value: Any) -> bool:
        if not isinstance(value, origin) or isinstance(value, str):
            return False
        return length in (None, len(value)) and all(of.fits(part) for of, part in parts(value))

    return Kind(words, fits, lambda value: all(of.holds(part) for of, part in parts(value)))


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float) or value is None:
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__.lower()} {value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {_shown(value[0])}{', ...' if len(value) > 1 else ''}"
    return f"an empty {type(value).__name__}" if isinstance(value, list | tuple) else type(value).__name__
