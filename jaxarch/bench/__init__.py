"""Training steps timed against torch, in one process.

The folder is the registry of benchmarks other than architectures: `jaxarch bench lstm` calls `contests` of
`lstm.py`; every other name is an architecture or one of its variants.
"""

import importlib
import logging
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxarch import catalog, state
from jaxarch.convert import load_state_dict
from jaxarch.errors import JaxarchError, UsageError, require_torch
from jaxarch.optim import create_optimizer
from jaxarch.parity import draw_inputs
from jaxarch.parity.pair import channels_last

if TYPE_CHECKING:
    import torch

OURS = "jaxarch"
IMAGES = 8
REFUSED = object()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contest:
    """The same work done in several ways: label -> a call that does it once and returns its loss, or None.

    Where the work is to generate text, `tokens` is the number of tokens a call generates.
    """

    name: str
    runs: Mapping[str, Callable[[], float | None]]
    tokens: int | None = None


@dataclass(frozen=True)
class Timing:
    """Median seconds of each way, the ratio of ours to each other (below 1: faster than it), tokens a second."""

    name: str
    seconds: dict[str, float]
    ratio: dict[str, float]
    tokens_per_second: dict[str, float] = field(default_factory=dict)


def contests(name: str, *, compiled: bool = True) -> Iterator[Contest]:
    """The contests of a benchmark, an architecture, or a variant of one.

    Args:
        name: of a benchmark of this folder, an architecture or a variant.
        compiled: time torch.compile too.

    Raises:
        UsageError: unknown name, or no torch.
    """
    require_torch("bench")
    if name in (m.name for m in pkgutil.iter_modules(__path__)):
        yield from importlib.import_module(f"{__name__}.{name}").contests(compiled=compiled)
    else:
        model, variant = catalog.find(name)
        yield model_contest(name, model, variant or catalog.default_variant(model), compiled)


def measure(contest: Contest, repeat: int = 7) -> Timing:
    """Medians of `repeat` rounds in which all ways take turns, so that a busy machine slows all of them.

    Raises:
        UsageError: `repeat` is not positive.
        JaxarchError: the losses of the second run differ, so the ways do not do the same work.
    """
    if repeat < 1:
        raise UsageError(f"repeat must be at least 1, not {repeat}")
    second = {
        label: loss for label, run in contest.runs.items() if (loss := _second(label, run)) is not REFUSED
    }
    losses = {k: v for k, v in second.items() if v is not None}
    scale = max((abs(v) for v in losses.values()), default=0.0)
    if losses and not max(losses.values()) - min(losses.values()) <= 1e-3 * scale:
        raise JaxarchError(f"bench {contest.name}: the second losses differ: {losses}; run jaxarch parity")
    seconds: dict[str, list[float]] = {label: [] for label in second}
    for _ in range(repeat):
        for label in second:
            start = time.perf_counter()
            contest.runs[label]()
            seconds[label].append(time.perf_counter() - start)
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    ours = medians.get(OURS)
    ratio = {k: ours / v for k, v in medians.items() if k != OURS} if ours is not None else {}
    rate = {} if contest.tokens is None else {k: contest.tokens / v for k, v in medians.items()}
    return Timing(contest.name, medians, ratio, rate)


def _second(label: str, run: Callable[[], float | None]) -> Any:
    """What the second run returns, or REFUSED, with a warning, where torch.compile fails."""
    if not label.endswith("compiled"):
        return [run(), run()][-1]
    from torch._dynamo.exc import TorchDynamoException

    try:
        return [run(), run()][-1]
    except TorchDynamoException as e:
        _log.warning("%s is left out, torch.compile refuses it: %s", label, str(e).strip().split("\n")[0])
        return REFUSED


def model_contest(label: str, name: str, variant: str, compiled: bool) -> Contest:
    """An AdamW step in float32 and train mode (dropout off) from the same weights on the page's inputs.

    Images are in batches of eight.
    """
    import torch

    entry = catalog.page(name)
    torch.manual_seed(0)
    image = any(v.kind == "image" for v in entry.inputs.values())
    examples = [
        draw_inputs(entry, catalog.arguments(name, variant), seed, variant=variant)
        for seed in range(IMAGES if image else 1)
    ]
    inputs = {k: np.concatenate([e[k] for e in examples])[: IMAGES if image else None] for k in examples[0]}
    inputs = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in inputs.items()}
    ours = catalog.create_model(name, variant)
    runs: dict[str, Callable[[], float | None]] = {}
    ways = ["torch", *(["torch channels_last"] if image else []), *(["torch compiled"] if compiled else [])]
    theirs = catalog.create_model(name, variant, package="torchref")
    load_state_dict(ours, theirs.state_dict())
    ours.train()
    _disable_dropout(ours)
    arrays = {k: jnp.asarray(channels_last(v, entry.inputs[k].kind)) for k, v in inputs.items()}
    runs[OURS] = jax_step(ours, arrays)
    weights = theirs.state_dict()
    for way in ways:
        twin: Any = catalog.create_model(name, variant, package="torchref")
        twin.load_state_dict(weights)
        for module in twin.modules():
            if "dropout" in type(module).__name__.lower():
                module.p = 0.0
        tensors = {k: torch.tensor(v) for k, v in inputs.items()}
        if way == "torch channels_last":
            twin = twin.to(memory_format=torch.channels_last)
            tensors = {
                k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
                for k, v in tensors.items()
            }
        runs[way] = torch_step(twin, tensors, compiled=way == "torch compiled")
    return Contest(label, runs)


def jax_step(model: nnx.Module, inputs: Mapping[str, Any]) -> Callable[[], float]:
    """A jitted AdamW step with donated state, as a zero-argument callable that returns the loss."""
    graph, params, rest = state.split(model)
    optimizer = create_optimizer("adamw", learning_rate=1e-4)

    def loss_of(params: state.Flat, rest: state.Flat, inputs: Mapping[str, Any]) -> tuple[Any, state.Flat]:
        merged: Any = state.merge(graph, params, rest)
        outputs = merged(**inputs)
        return _scalar(outputs, jax.tree.leaves(outputs), jnp.issubdtype), state.rest_of(merged)

    def step(
        params: state.Flat, rest: state.Flat, opt_state: Any, inputs: Mapping[str, Any]
    ) -> tuple[tuple[Any, state.Flat, Any], jax.Array]:
        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(params, rest, inputs)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), rest, opt_state), loss

    jitted = jax.jit(step, donate_argnums=(0, 1, 2))
    current = (params, rest, optimizer.init(params))

    def run() -> float:
        nonlocal current
        current, loss = jitted(*current, inputs)
        return float(jax.block_until_ready((current, loss))[1])

    return run


def torch_step(
    module: "torch.nn.Module", inputs: Mapping[str, Any], *, compiled: bool
) -> Callable[[], float]:
    """The same step in torch."""
    import torch

    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, weight_decay=0.0)
    call = torch.compile(module) if compiled else module

    def run() -> float:
        optimizer.zero_grad()
        outputs = call(**inputs)
        leaves = torch.utils._pytree.tree_leaves(outputs)
        loss = _scalar(outputs, [x for x in leaves if isinstance(x, torch.Tensor)], None)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def _scalar(outputs: Any, leaves: Sequence[Any], issubdtype: Any) -> Any:
    """The model's own loss, or the mean square of every floating output."""
    if isinstance(outputs, Mapping) and outputs.get("loss") is not None:
        return outputs["loss"]
    floating = [
        x for x in leaves if (issubdtype(x.dtype, jnp.floating) if issubdtype else x.is_floating_point())
    ]
    total = (floating[0] ** 2).mean()
    for x in floating[1:]:
        total = total + (x**2).mean()
    return total


def _disable_dropout(model: nnx.Module) -> None:
    """Dropout off: the frameworks would draw different masks, and the losses would differ."""
    for _, module in nnx.iter_modules(model):
        if hasattr(module, "deterministic"):
            module.deterministic = True
