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
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

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
_HUGE = 2**63  # torch takes no larger whole numbers


@dataclass(frozen=True)
class Kind:
    """What an argument may be: its ``words`` (one, several), whether a value is of that type, and then possible."""

    words: tuple[str, str]
    fits: Callable[[Any], bool]
    holds: Callable[[Any], bool] = lambda value: True
    shape: "Shape | None" = None


@dataclass(frozen=True)
class Shape:
    """What ``Annotated[Tensor, Shape("B 3 H W", "uint8")]`` asks of a tensor; it is dense in any case.

    A letter stands for one size in all arguments of a call, which lie on one device; "..." for any number of axes. No
    axis is empty. ``dtype`` is a name, "float" for any floating-point one, or "real" for all but complex and bool.
    ``held``: it holds data, so that it is none on the meta device.
    """

    axes: str = "..."
    dtype: str = "real"
    held: bool = False

    @property
    def words(self) -> str:
        """Say it."""
        kind = {"real": "real", "float": "floating-point"}.get(self.dtype, self.dtype)
        axes = "" if self.axes == "..." else f" [{', '.join(self.axes.split())}]"
        return f"a dense {kind} tensor{axes}" + " that holds data" * self.held

    def fits(self, x: Any) -> bool:
        """Return whether it is a tensor of that dtype and number of axes."""
        name = str(getattr(x, "dtype", "")).removeprefix("torch.")
        if not hasattr(x, "layout") or str(x.layout) != "torch.strided" or (self.held and x.is_meta):
            return False
        if self.dtype == "float":
            return x.is_floating_point()
        return self.dtype == name or (self.dtype == "real" and name != "bool" and not x.is_complex())

    def sizes(self, x: Any) -> dict[str, int] | None:
        """Return axis -> size of the named axes; None where it has others."""
        axes = self.axes.split()
        if axes[0] == "...":
            axes = axes[1:]
            shape = x.shape[x.dim() - len(axes) :] if x.dim() >= len(axes) else ()
        else:
            shape = x.shape
        found: dict[str, int] = {}
        if len(shape) != len(axes):
            return None
        for axis, size in zip(axes, shape, strict=True):
            if size == 0 or size != (int(axis) if axis.isdigit() else found.setdefault(axis, size)):
                return None
        return found


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
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = {p.name: kind_of(hints[p.name]) for p in parameters if p.name in hints and p.kind != p.VAR_KEYWORD}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes: dict[str, Any] = {}  # of the axes, and the device
        for name, value in (*zip(plain, args, strict=False), *kwargs.items()):
            if name in kinds and _check(title, name, kinds[name], value):
                _check_shape(title, name, kinds[name].shape, value, sizes)
            if name in least and value is not None and value < least[name]:
                raise ValueError(f"{title}: {name} must be at least {least[name]} (got {value})")
        return function(*args, **kwargs)

    return call


def _check(title: str, name: str, kind: Kind, value: Any) -> bool:
    """Return whether it has a shape to be looked at."""
    if not kind.fits(value):
        if type(value).__module__.startswith("torch.fx"):  # a tracer's stand-in
            return False
        raise TypeError(f"{title}: {name} must be {kind.words[0]} (got {_shown(value)})")
    if not kind.holds(value):
        raise ValueError(f"{title}: {name} must be {kind.words[0]} (got {_shown(value)})")
    return kind.shape is not None and value is not None


def _check_shape(title: str, name: str, shape: Any, value: Any, sizes: dict[str, Any]) -> None:
    found = shape.sizes(value)
    if found is None:
        raise ValueError(f"{title}: {name} must be {shape.words}, no axis empty (got {_shown(value)})")
    for axis, size in {**found, "device": value.device}.items():
        first, owner = sizes.setdefault(axis, (size, name))
        if first != size:
            given = size if axis == "device" else _shown(value)
            raise ValueError(f"{title}: {name} must have {axis}={first}, as {owner} has (got {given})")


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
    if origin is Annotated:
        shape = parts[1]
        return Kind((shape.words, "tensors"), shape.fits, shape=shape)
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
        return Kind(("a whole number", "whole numbers"), _is_number(Integral), lambda value: abs(value) < _HUGE)
    if hint is float:
        return Kind(("a finite number", "finite numbers"), _is_number(Real), _is_possible_number)
    if issubclass(hint, os.PathLike):
        return Kind(_PATH, lambda value: isinstance(value, hint))
    article = "an" if hint.__name__[0] in "AEIOU" else "a"
    words = _WORDS.get(hint.__name__, (f"{article} {hint.__name__}", f"{hint.__name__} objects"))
    return Kind(words, lambda value: isinstance(value, hint))


def _is_number(number: type) -> Callable[[Any], bool]:
    # A tensor is no number; neither is a bool, though Python takes it for one. SymInt is a compiler's size.
    return lambda value: (isinstance(value, number) and not isinstance(value, bool)) or type(value).__name__ == "SymInt"


def _is_possible_number(value: Any) -> bool:
    return abs(int(value)) < _HUGE if isinstance(value, Integral) else math.isfinite(value)


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
        next((kind.shape for kind in kinds if kind.shape), None),
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
        if not isinstance(value, origin) or isinstance(value, str | bytes) or hasattr(value, "dtype"):
            return False
        return length in (None, len(value)) and all(of.fits(part) for of, part in parts(value))

    return Kind(words, fits, lambda value: all(of.holds(part) for of, part in parts(value)))


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float) or value is None:
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:80]}..."
    if hasattr(type(value), "shape") and hasattr(type(value), "dtype"):
        try:
            return f"a {type(value).__name__.lower()} {value.dtype} {list(value.shape)}"
        except RuntimeError:  # nested, or not initialised yet
            return f"a {type(value).__name__.lower()} without a shape"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {_shown(value[0])}{', ...' if len(value) > 1 else ''}"
    return f"an empty {type(value).__name__}" if isinstance(value, list | tuple) else type(value).__name__
