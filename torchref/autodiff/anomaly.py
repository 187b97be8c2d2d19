"""Which operation of which module produced the first NaN, forward or backward, and on which line."""

import contextlib
import functools
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORWARD, BACKWARD = "forward", "backward"
HIDDEN = (os.path.dirname(torch.__file__), __file__, contextlib.__file__, functools.__file__)


@dataclass(frozen=True)
class Anomaly:
    """Where the first NaN (or infinity) that reached the results came from.

    `primitive` is "argument" if an argument was already non-finite, and `module` is then its path; `phase` is
    forward or backward; `line` is FILE:LINE (FUNCTION), of the forward call that a backward operation belongs
    to.
    """

    primitive: str
    module: str
    phase: str
    line: str

    def __str__(self) -> str:
        if self.primitive == "argument":
            return f"{self.module} was already non-finite"
        where = f"module {self.module}" if self.module else "no module"
        return f"produced by {self.primitive}, {self.phase}, in {where}, at {self.line}"


class AnomalyError(RuntimeError):
    """A result is not finite; `anomaly` says why."""

    def __init__(self, what: str, anomaly: Anomaly | None):
        cause = "its origin was not recorded" if anomaly is None else str(anomaly)
        super().__init__(f"{what} in the loss or its gradient: {cause}")
        self.anomaly = anomaly


def detect_anomaly(loss_fn: Callable[..., Any], model: Module, *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """`enable_autograd_detection(loss_fn)(model, *arguments)`: the loss and its gradient by path."""
    return enable_autograd_detection(loss_fn)(model, *arguments)


def enable_autograd_detection(
    loss_fn: Callable[..., Any], *, infinities: bool = False
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A function (model, *arguments) -> (loss, gradients by path) that raises where either is NaN.

    Args:
        loss_fn: (model, *arguments) -> scalar.
        infinities: report infinities, too.

    Raises:
        AnomalyError: from the returned function; it names the operation, the module and the line.
    """

    @functools.wraps(loss_fn)
    def checked(model: Module, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        named = dict(model.named_parameters())
        with _Watch([model], infinities) as watch:
            loss = loss_fn(model, *arguments)
            grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        gradients = dict(zip(named, grads, strict=True))
        results = [loss, *grads, *model.buffers()]
        if any(_bad(v, infinities) for v in results):
            inputs = {**named, **dict(model.named_buffers()), **_names(arguments)}
            raise AnomalyError("NaN or infinity" if infinities else "NaN", watch.first(results, inputs))
        return loss.detach(), gradients

    return checked


def first_anomaly(function: Callable[..., Any], *arguments: Any, infinities: bool = False) -> Anomaly | None:
    """Where the first NaN in the results of any function comes from; None if they have none.

    Operations are attributed to modules if an argument is a module.
    """
    models = [a for a in arguments if isinstance(a, Module)]
    with _Watch(models, infinities) as watch:
        results = [v for v in tree_leaves(function(*arguments)) if torch.is_tensor(v)]
    if not any(_bad(v, infinities) for v in results):
        return None
    inputs = {k: p for m in models for k, p in (*m.named_parameters(), *m.named_buffers())}
    return watch.first(results, {**inputs, **_names(arguments)})


def _names(arguments: Any) -> dict[str, Tensor]:
    """A name for each tensor, for messages."""
    pairs = torch.utils._pytree.tree_flatten_with_path(arguments)[0]
    return {f"argument {torch.utils._pytree.keystr(p)}": v for p, v in pairs if torch.is_tensor(v)}


def _bad(value: Tensor, infinities: bool) -> bool:
    """Whether a tensor has a NaN; integers have none."""
    if not (value.is_floating_point() or value.is_complex()):
        return False
    return bool(((~value.isfinite()) if infinities else value.isnan()).any())


class _Watch(TorchDispatchMode):
    """Records each operation with a bad operand or result, the backward ones included."""

    def __init__(self, models: list[Module], infinities: bool):
        super().__init__()
        self.models, self.infinities = models, infinities
        self.path: list[str] = []
        self.records: list[tuple[Anomaly, set[int], set[int]]] = []
        self.alive: list[Any] = []  # so that no id is reused

    def __enter__(self) -> "_Watch":
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
        for model in self.models:
            self.stack.enter_context(self._follow(model))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        bad_operands = self._ids((args, kwargs))
        results = func(*args, **(kwargs or {}))
        bad_results = self._ids(results)
        if bad_results:
            self.alive += [args, kwargs, results]
            self.records.append((self._describe(func.overloadpacket.__name__), bad_operands, bad_results))
        return results

    def first(self, results: list[Tensor], inputs: dict[str, Tensor]) -> Anomaly | None:
        """The first operation with a bad result and no bad operand, among those that a bad output depends on."""
        reached = self._ids(results)
        first = None
        for anomaly, bad_operands, bad_results in reversed(self.records):
            # An in-place operation returns its operand; a detached or accumulated result is a new tensor.
            if reached.isdisjoint(bad_results):
                continue
            reached |= bad_operands
            if not bad_operands:
                first = anomaly
        for name, value in inputs.items():
            ids = self._ids(value)
            if ids & reached and not any(ids & bad_results for _, _, bad_results in self.records):
                return Anomaly("argument", name, FORWARD, "")
        return first

    def _ids(self, tree: Any) -> set[int]:
        """The storages of the bad tensors: views and detached tensors share them."""
        tensors = [v for v in tree_leaves(tree) if torch.is_tensor(v)]
        return {v.untyped_storage().data_ptr() for v in tensors if _bad(v.detach(), self.infinities)}

    @contextlib.contextmanager
    def _follow(self, model: Module) -> Iterator[None]:
        """Track the path of the module that runs, and store it in the autograd nodes that it creates."""
        starts: list[set[Any]] = []

        def enter(path: str) -> Callable[[Module, Any], None]:
            def hook(module: Module, arguments: Any) -> None:
                self.path.append(path)
                starts.append({v.grad_fn for v in tree_leaves(arguments) if torch.is_tensor(v)})

            return hook

        def leave(module: Module, arguments: Any, output: Any) -> None:
            path, stop = self.path.pop(), starts.pop()
            nodes: list[Any] = [v.grad_fn for v in tree_leaves(output) if torch.is_tensor(v)]
            while nodes:
                node = nodes.pop()
                if node is None or node in stop or "module" in node.metadata:
                    continue
                node.metadata["module"] = path
                nodes += [n for n, _ in node.next_functions]

        handles = [m.register_forward_pre_hook(enter(path)) for path, m in model.named_modules()]
        handles += [m.register_forward_hook(leave) for m in model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _describe(self, name: str) -> Anomaly:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_stack()]
            return Anomaly(name, self.path[-1] if self.path else "", FORWARD, _line(frames))
        trace = "".join(node.metadata.get("traceback_", []))
        frames = [(f, int(n), s) for f, n, s in re.findall(r'File "(.*?)", line (\d+), in (.*)', trace)]
        return Anomaly(name, node.metadata.get("module", ""), BACKWARD, _line(frames))


def _line(frames: list[Any]) -> str:
    """The innermost of the user's own lines."""
    users = [f for f in frames if not f[0].startswith(HIDDEN)]
    return f"{_short(users[-1][0])}:{users[-1][1]} ({users[-1][2]})" if users else "an unknown line"


def _short(file: str) -> str:
    """A file below the working directory relative to it."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative
