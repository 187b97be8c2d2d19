"""Which part of a file's content is the weights: what wraps them is opened, and what is left out is named."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from jaxarch.convert.limits import check_names_of_file
from jaxarch.errors import ConversionError, printable

T = TypeVar("T")

# The keys under which training loops save a model, in the order of preference.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "model_dict",
    "net_state_dict",
    "weights",
    "params",
    "parameters",
    "target",
)
# Those of averaged weights: taken if there is nothing else, or by name.
AVERAGES = (
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema_state_dict",
    "ema_params",
    "params_ema",
    "swa_model",
    "averaged_model",
)
KEYS = (*WRAPPERS, *AVERAGES)
MOST_LEVELS = 32
# A scalar that is longer is named, not carried.
LONGEST_TEXT = 1000


class Chosen(NamedTuple, Generic[T]):
    """The weights of a file.

    Attributes:
        tensors: by name.
        taken: the keys around them, joined by dots; empty where there are none.
        metadata: numbers and texts beside them, as texts.
        notes: a line for each of the other things beside them, and for the choice among several.
    """

    tensors: dict[str, T]
    taken: str
    metadata: dict[str, str]
    notes: list[str]


def choose(
    content: Any,
    is_tensor: Callable[[Any], bool],
    path: object,
    wrapper: str | None = None,
    wrappers: Sequence[str] = KEYS,
) -> Chosen[Any]:
    """The weights in the content of a file.

    Args:
        content: nested mappings with tensors, numbers, texts and other objects.
        path: of the file, for errors.
        wrapper: the keys of the part to take, joined by dots; default: the first of `wrappers` at each level.

    Raises:
        ConversionError: it holds no tensors, lacks `wrapper`, has names that no model has, or two tensors of
            one name.
    """
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds {kind_of(content)}, not a state_dict")
    chosen: Chosen[Any] = Chosen({}, "", {}, [])
    keys: list[str] = []
    wanted = wrapper.split(".") if wrapper else []
    while (
        len(keys) < MOST_LEVELS and (key := _wrapper(content, is_tensor, wanted, wrappers, path)) is not None
    ):
        keys.append(key)
        _note(chosen, {k: v for k, v in content.items() if k != key}, is_tensor, keys[:-1])
        content = content[key]
        wanted = wanted[1:]
    for name, value in _flat(content, is_tensor, path).items():
        if is_tensor(value):
            chosen.tensors[name] = value
        else:
            _note(chosen, {name: value}, is_tensor, keys)
    if not chosen.tensors:
        raise ConversionError(f"{path} holds no tensors{_found(chosen)}")
    check_names_of_file(chosen.tensors, path)
    if keys:
        chosen.notes.insert(0, f"the weights are those under {printable('.'.join(keys))!r}")
    return chosen._replace(taken=".".join(keys))


def kind_of(value: Any) -> str:
    """What a value is, for a line."""
    name = getattr(value, "name", None)
    return printable(name, 80) if isinstance(name, str) else f"a {type(value).__name__}"


def _wrapper(
    content: Mapping[Any, Any],
    is_tensor: Callable[[Any], bool],
    wanted: list[str],
    wrappers: Sequence[str],
    path: object,
) -> str | None:
    """The key of the part of `content` that holds the weights; None where they lie in it directly."""
    if wanted:
        if not isinstance(content.get(wanted[0]), Mapping):
            raise ConversionError(f"{path} has no part {wanted[0]!r}; it holds {_listed(content)}")
        return wanted[0]
    if any(is_tensor(v) for v in content.values()):
        return None
    held = [k for k in wrappers if isinstance(content.get(k), Mapping)]
    return next((k for k in held if _count(content[k], is_tensor)[0]), None)


def _flat(content: Any, is_tensor: Callable[[Any], bool], path: object) -> dict[Any, Any]:
    """Nested mappings as one, with the keys joined by dots; what holds no tensors stays as it is."""
    flat: dict[Any, Any] = {}
    pending: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while pending:
        keys, value = pending.pop()
        if isinstance(value, Mapping) and (not keys or _count(value, is_tensor)[0]):
            if len(keys) > MOST_LEVELS:
                raise ConversionError(f"{path} is nested more than {MOST_LEVELS} levels deep")
            pending += [((*keys, k), v) for k, v in reversed(list(value.items()))]
            continue
        name = keys[0] if len(keys) == 1 else ".".join(str(k) for k in keys)
        if name in flat:
            raise ConversionError(f"{path} holds {printable(name)!r} twice")
        flat[name] = value
    return flat


def _note(
    chosen: Chosen[Any], others: Mapping[Any, Any], is_tensor: Callable[[Any], bool], keys: list[str]
) -> None:
    """Carry numbers and texts as metadata, and name the rest."""
    for key, value in others.items():
        name = ".".join(map(str, (*keys, key)))
        if isinstance(value, bool | int | float | str) and len(text := str(value)) <= LONGEST_TEXT:
            chosen.metadata[printable(name)] = printable(text, LONGEST_TEXT)
            continue
        held = kind_of(value)
        if isinstance(value, Mapping | list | tuple):
            tensors, objects = _count(value, is_tensor)
            held = f"tensors: {tensors}" if tensors else f"entries: {objects}"
        chosen.notes.append(f"left out: {printable(name)!r} ({held})")


def _count(value: Any, is_tensor: Callable[[Any], bool]) -> tuple[int, int]:
    """The tensors and the other values in nested mappings and lists, each container once."""
    tensors = objects = 0
    pending, met = [value], set()
    while pending:
        value = pending.pop()
        if is_tensor(value):
            tensors += 1
        elif isinstance(value, Mapping | list | tuple):
            if id(value) not in met:
                met.add(id(value))
                pending += value.values() if isinstance(value, Mapping) else value
        else:
            objects += 1
    return tensors, objects


def _listed(content: Mapping[Any, Any]) -> str:
    shown = [printable(k, 40) for k in list(content)[:8]]
    return f"{', '.join(shown)}{' ...' if len(content) > 8 else ''}" or "nothing"


def _found(chosen: Chosen[Any]) -> str:
    found = [*chosen.notes, *chosen.metadata]
    return f"; {found[0]}" if found else ""
