"""Values as data that carries no code: how arguments and results cross from one process to the other.

A message lists the objects that can be reached from some values: for each its kind, an option of that kind, and what it
consists of. Kinds are a closed list: Python's data types and a few well-known ones of the standard library, rebuilt by
constructors that are named here. An instance of a subclass is sent as what it is derived from. What arrives has therefore
no methods of the sender's own: an object that claims to equal everything cannot be sent.

Objects keep their identity within a message, and across a message and its answer: objects that came with the question
are named in the answer by their number, and those of them that can change bring what they consist of by then.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import chain
from operator import methodcaller
from typing import Any, NamedTuple

Described = tuple[str, Any]
"""A kind that is not in the list, and what stands for the object."""

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})
_BASE_OF_ATOM: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
}

_FACTORIES = {kind.__name__: kind for kind in (int, float, str, bool, list, tuple, dict, set)}
"""Default factories that a defaultdict keeps; with another it has none on the other side."""


class _Mutable(NamedTuple):
    kind: type
    new: Callable[[Any], Any]
    parts: Callable[[Any], Iterable[Any]]
    fill: Callable[[Any, list[Any]], None]
    option: Callable[[Any], Any] = lambda value: None


class _Immutable(NamedTuple):
    kind: type
    make: Callable[..., Any]
    parts: Callable[[Any], Iterable[Any]]


def _fill_list(value: Any, parts: list[Any]) -> None:
    value[:] = parts


def _fill_bytes(value: bytearray, parts: list[Any]) -> None:
    (value[:],) = parts


def _fill_dict(value: Any, parts: list[Any]) -> None:
    value.clear()
    for key, each in zip(parts[::2], parts[1::2], strict=True):
        value[key] = each


def _fill_set(value: set[Any], parts: list[Any]) -> None:
    value.clear()
    value.update(parts)


def _fill_deque(value: deque[Any], parts: list[Any]) -> None:
    value.clear()
    value.extend(parts)


def _pairs(value: Any) -> Iterable[Any]:
    return chain.from_iterable(value.items())


def _factory(value: Any) -> str | None:
    return next((name for name, kind in _FACTORIES.items() if kind is value.default_factory), None)


def _clock(kind: type[datetime] | type[time], text: str, fold: int) -> datetime | time:
    return kind.fromisoformat(text).replace(fold=fold)


# The first that an object is an instance of counts: those derived from others come first.
_MUTABLE = {
    "OrderedDict": _Mutable(OrderedDict, lambda _: OrderedDict(), _pairs, _fill_dict),
    "defaultdict": _Mutable(
        defaultdict, lambda name: defaultdict(name and _FACTORIES[name]), _pairs, _fill_dict, _factory
    ),
    "Counter": _Mutable(Counter, lambda _: Counter(), _pairs, _fill_dict),
    "dict": _Mutable(dict, lambda _: {}, _pairs, _fill_dict),
    "list": _Mutable(list, lambda _: [], iter, _fill_list),
    "set": _Mutable(set, lambda _: set(), iter, _fill_set),
    "bytearray": _Mutable(bytearray, lambda _: bytearray(), lambda value: [bytes(value)], _fill_bytes),
    "deque": _Mutable(deque, lambda maxlen: deque(maxlen=maxlen), iter, _fill_deque, lambda value: value.maxlen),
}
_IMMUTABLE = {
    "tuple": _Immutable(tuple, lambda *parts: parts, iter),
    "frozenset": _Immutable(frozenset, lambda *parts: frozenset(parts), iter),
    "complex": _Immutable(complex, complex, lambda value: (value.real, value.imag)),
    "range": _Immutable(range, range, lambda value: (value.start, value.stop, value.step)),
    "slice": _Immutable(slice, slice, lambda value: (value.start, value.stop, value.step)),
    "Fraction": _Immutable(Fraction, Fraction, lambda value: (value.numerator, value.denominator)),
    "Decimal": _Immutable(Decimal, Decimal, lambda value: (Decimal.__str__(value),)),
    "datetime": _Immutable(datetime, partial(_clock, datetime), lambda value: (datetime.isoformat(value), value.fold)),
    "date": _Immutable(date, date.fromisoformat, lambda value: (date.isoformat(value),)),
    "time": _Immutable(time, partial(_clock, time), lambda value: (time.isoformat(value), value.fold)),
    "timedelta": _Immutable(timedelta, timedelta, lambda value: (value.days, value.seconds, value.microseconds)),
    **{
        # A view cannot be pointed at its own dictionary, only at a copy of it.
        name: _Immutable(type(methodcaller(name)({})), getattr(dict, name), lambda value: (dict(value.mapping),))
        for name in ("keys", "values", "items")
    },
}


_KINDS: dict[str, type] = {name: each.kind for name, each in _MUTABLE.items()}
_KINDS |= {name: each.kind for name, each in _IMMUTABLE.items()}


def _kind(value: Any) -> str:
    """The kind of an object; empty if it is none of them."""
    return next((name for name, kind in _KINDS.items() if isinstance(value, kind)), "")


def encode(
    values: Sequence[Any], describe: Callable[[Any], Described], known: Sequence[Any] = ()
) -> tuple[bytes, list[Any]]:
    """Values as bytes.

    Args:
        values: what to send.
        describe: gives a kind of its own, and plain data, for an object of no kind in the list; raises if it can't.
        known: the objects of the message that this one answers.

    Returns:
        The message, and its objects, to read an answer with.
    """
    objects = list(known)
    places = {id(value): place for place, value in enumerate(objects)}
    nodes: dict[int, tuple[str, Any, list[Any]]] = {}
    waiting = [place for place, value in enumerate(objects) if _kind(value) in _MUTABLE]

    def reserve(value: Any) -> int:
        places[id(value)] = len(objects)
        objects.append(value)
        return len(objects) - 1

    def refer(parts: list[Any]) -> list[Any]:
        return [part if type(part) in _ATOMS else (places[id(part)],) for part in parts]

    def place_all(parts: list[Any]) -> None:
        """Give numbers to objects; those that cannot change come after what they consist of."""
        stack = parts[::-1]
        opened: dict[int, tuple[str, list[Any]]] = {}
        while stack:
            value = stack[-1]
            if type(value) in _ATOMS or id(value) in places:
                stack.pop()
            elif id(value) in opened:
                kind, inner = opened[id(value)]
                nodes[reserve(value)] = (kind, None, refer(inner))
            elif (kind := _kind(value)) in _MUTABLE:
                waiting.append(reserve(value))
            elif kind:
                inner = _plain(_IMMUTABLE[kind].parts(value))
                opened[id(value)] = kind, inner
                stack += inner
            else:
                kind, option = describe(value)
                nodes[reserve(value)] = (kind, option, [])

    roots = _plain(values)
    place_all(roots)
    for place in waiting:  # grows meanwhile
        kind = _kind(objects[place])
        parts = _plain(_MUTABLE[kind].parts(objects[place]))
        place_all(parts)
        nodes[place] = (kind, _MUTABLE[kind].option(objects[place]), refer(parts))
    return pickle.dumps((refer(roots), nodes), protocol=5), objects


def _plain(values: Iterable[Any]) -> list[Any]:
    """The values, with instances of subclasses of atoms as these."""
    return [value if type(value) in _ATOMS else _atom(value) for value in values]


def _atom(value: Any) -> Any:
    return next((base(value) for kind, base in _BASE_OF_ATOM.items() if isinstance(value, kind)), value)


class _Unpickler(pickle.Unpickler):
    """Knows no class and no function at all."""

    def find_class(self, module: str, name: str) -> type:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


def decode(
    message: bytes, restore: Callable[[str, Any], Any], known: Sequence[Any] = ()
) -> tuple[list[Any], list[Any]]:
    """Values from untrusted bytes.

    Args:
        message: what `encode` made.
        restore: makes an object from what `describe` gave; raises for kinds that it doesn't know.
        known: the objects of the message that this one answers. Those that have changed are changed in place.

    Returns:
        The values, and the message's objects.

    Raises:
        Exception: the bytes are something else; any class may be raised.
    """
    roots, nodes = _Unpickler(io.BytesIO(message)).load()
    objects = dict(enumerate(known))
    for place, (kind, option, _) in nodes.items():
        if place in objects and (kind not in _MUTABLE or kind != _kind(objects[place])):
            raise ValueError(f"object {place} is no {kind}")
        if place not in objects and kind in _MUTABLE:
            objects[place] = _MUTABLE[kind].new(option)

    def resolve(parts: list[Any]) -> Iterator[Any]:
        for part in parts:
            if type(part) in _ATOMS:
                yield part
            else:
                (place,) = part
                yield objects[place]

    for place, (kind, option, parts) in nodes.items():
        if place not in objects:
            make = _IMMUTABLE[kind].make if kind in _IMMUTABLE else None
            objects[place] = make(*resolve(parts)) if make else restore(kind, option)
    for place, (kind, _, parts) in nodes.items():
        if kind in _MUTABLE:
            value, now = objects[place], list(resolve(parts))
            if not _are_same(list(_MUTABLE[kind].parts(value)), now):
                _MUTABLE[kind].fill(value, now)
    return list(resolve(roots)), [objects[place] for place in range(len(objects))]


def _are_same(before: list[Any], now: list[Any]) -> bool:
    """Whether nothing has changed; an object that is changed while a loop goes over it would disturb the loop."""
    return len(before) == len(now) and all(
        old is new or (type(old) in _ATOMS and type(old) is type(new) and old == new)
        for old, new in zip(before, now, strict=True)
    )
