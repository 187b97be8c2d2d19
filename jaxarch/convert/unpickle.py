"""The pickle of a torch file as plain values: nothing is imported, called or allocated because the file says so.

The opcodes are read by the standard library's `pickletools`; a tensor becomes a description of where its numbers
lie. Calls of what is not a tensor become `Record`s if the class is known to hold plain data, else they are refused.
"""

import itertools
import pickletools
from collections.abc import Callable, Iterable, Mapping
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

# A tensor takes about 30 operations. Each takes less than a microsecond and 100 bytes.
MOST_OPERATIONS = 2_000_000
# What training loops save beside weights: described by name, never built.
PLAIN_DATA = (
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "builtins.slice",
    "collections.Counter",
    "collections.defaultdict",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "datetime.",
    "lightning.",
    "lightning_fabric.",
    "numpy.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion",
)
_KINDS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values (device meta)",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
}
# Operations that push their argument.
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_ARGUMENTS = frozenset((*_NUMBERS, *_BYTES, *_TEXTS))
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Global(NamedTuple):
    """A class or function that the file names; it is not imported."""

    name: str


class Storage(NamedTuple):
    """A run of numbers in the file: its key, torch's name of the storage class, and the count of its elements."""

    key: str
    kind: str
    count: Any


class StoredTensor(NamedTuple):
    """A view of a storage, in elements; `dtype` is torch's name, or None for that of the storage class.

    Nothing here is checked yet. `flags` are those of a lazy conjugate or negation.
    """

    storage: Storage
    offset: Any
    shape: Any
    stride: Any
    dtype: str | None = None
    flags: Any = None


class Record:
    """What the file calls besides tensors: the name of the class or function, its arguments and its state."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Any, state: Any = None) -> None:
        self.name, self.arguments, self.state = name, arguments, state


class Unreadable(NamedTuple):
    """A tensor of a kind that is not read, such as a sparse one."""

    name: str


def read_pickle(
    stream: BinaryIO, records: Iterable[str] = PLAIN_DATA, storages: dict[str, Storage] | None = None
) -> Any:
    """The next pickle of a stream in memory, with tensors as `StoredTensor`.

    Args:
        records: names of classes that become a `Record`; one that ends in a dot stands for all of a package.
        storages: is filled with the storages that the pickle names.

    Raises:
        UnpicklingError: it is damaged or too long, or asks for a class or function that is not known here.
    """
    machine = _Machine(tuple(records), {} if storages is None else storages)
    try:
        for operation, argument, _ in itertools.islice(pickletools.genops(stream), MOST_OPERATIONS):
            if operation.name == "STOP":
                return machine.stack.pop()
            machine.run(operation.name, argument)
    except UnpicklingError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, EOFError) as error:
        raise UnpicklingError(f"it is damaged ({type(error).__name__})") from None
    raise UnpicklingError(f"its pickle has more than {MOST_OPERATIONS:,} operations")


class _Machine:
    """The stack machine of pickle, with the operations that torch's files use."""

    def __init__(self, records: tuple[str, ...], storages: dict[str, Storage]) -> None:
        self.records, self.storages = records, storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One operation."""
        stack = self.stack
        if name in _ARGUMENTS:
            stack.append(argument)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = stack[-1]
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            items = tuple(stack[-count:])
            if len(items) != count:
                raise IndexError
            stack[-count:] = [items]
        elif (operation := getattr(self, f"_{name.lower()}", None)) is not None:
            operation(argument)
        else:
            raise UnpicklingError(f"its pickle has the operation {name}, which torch does not write")

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, _: Any) -> None:
        items = tuple(self._marked())
        self.stack.append(items)

    def _list(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(items)

    def _dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(_filled({}, items))

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Record):  # whose items are not needed
            _of(list, self.stack[-1]).extend(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _setitems(self, _: Any) -> None:
        self._fill(self._marked())

    def _fill(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], Record):
            _filled(_of(dict, self.stack[-1]), items)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(f"{module}.{name}"))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{_of(str, module)}.{_of(str, name)}"))

    def _reduce(self, _: Any) -> None:
        arguments = _of(tuple, self.stack.pop())
        self.stack[-1] = self._called(_of(Global, self.stack[-1]).name, arguments)

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Record):
            built.state = state
        elif not isinstance(built, dict | StoredTensor):  # their attributes are not needed
            raise TypeError

    def _binpersid(self, _: Any) -> None:
        kind, *identity = _of(tuple, self.stack.pop())
        if kind == "module":
            raise UnpicklingError("it holds a whole model, which is code: save model.state_dict()")
        storage, key, _, count, *view = identity
        if kind != "storage" or any(v is not None for v in view):
            raise TypeError
        value = Storage(_of(str, key), _of(Global, storage).name.rpartition(".")[2], count)
        self.stack.append(self.storages.setdefault(value.key, value) and value)

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "collections.OrderedDict":
            return _filled(
                {}, [x for pair in (arguments[0] if arguments else ()) for x in _of(list | tuple, pair)]
            )
        if name == "torch.Size":
            return tuple(*arguments)
        room, _, function = name.rpartition(".")
        if room == "torch._utils" and function in _KINDS:
            return Unreadable(_KINDS[function])
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            storage, offset, shape, stride, *more = arguments
            return StoredTensor(
                _of(Storage, storage), offset, shape, stride, None, more[2] if more[2:] else None
            )
        if name == "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, dtype, *more = arguments
            kind = _of(Global, dtype).name.removeprefix("torch.")
            return StoredTensor(_of(Storage, storage), offset, shape, stride, kind, more[0] if more else None)
        if room == "torch._utils" and function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return arguments[0]
        if name == "torch.nn.parameter.Parameter":
            return arguments[0]
        if name == "torch._tensor._rebuild_from_type_v2":
            function, cls, inner, _ = arguments
            if _of(Global, cls).name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                return Unreadable(f"a tensor subclass ({cls.name})")
            return self._called(_of(Global, function).name, _of(tuple, inner))
        if any(name == known or (known.endswith(".") and name.startswith(known)) for known in self.records):
            return Record(name, arguments)
        raise UnpicklingError(f"it would call {name}, which is code: save model.state_dict() alone")


def _of(kind: Any, value: Any) -> Any:
    """`value`, which must be of a type."""
    if not isinstance(value, kind):
        raise TypeError
    return value


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    """A dictionary with keys and values in turn. Keys that are slow to compare or to hash are refused."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | Record | None) and not (isinstance(key, int) and abs(key) < 2**53):
            raise UnpicklingError(f"a dictionary has a {type(key).__name__} as key")
        target[key] = value
    return target
