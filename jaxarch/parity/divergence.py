"""The first module whose output, or the gradient of whose output, differs between the frameworks."""

import contextlib
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxarch import nn, state
from jaxarch.arrays import as_numpy
from jaxarch.observe import observe
from jaxarch.parity.compare import BOUND, relative
from jaxarch.parity.pair import Pair, to_jax
from jaxarch.parity.sides import Arrays, Masks, leaves, torch_masks


def first_divergence(pair: Pair, masks: Masks, our_masks: Masks, cotangents: Arrays) -> str:
    """Name the first module that diverges forward and, if none does, backward; "" if none does at all.

    Modules are compared by path where both frameworks have one whose output is an array, or a tuple that starts
    with one, in the order in which torch's calls end. A module that is called more than once is compared on its
    first call. Modules inside a checkpointed (rematerialised) block or a scanned step cannot be seen; the block
    or the module that scans can.
    """
    theirs, their_gradients = _torch_record(pair, masks, cotangents)
    ours, our_gradients = _jax_record(pair, our_masks, cotangents)
    classes = {name: type(module).__name__ for name, module in pair.torch.named_modules()}
    shared = [name for name in theirs if name in ours]
    for name in shared:
        error = _error(theirs[name], ours[name])
        if not error <= BOUND:
            return f"{_label(name, classes)}: forward error {error:.1e}"
    later = ""
    for name in reversed(shared):
        if name not in their_gradients or name not in our_gradients:
            continue
        error = _error(their_gradients[name], our_gradients[name])
        if not error <= BOUND:
            # The gradient of this output is wrong, so it went wrong in what came after it.
            return f"{_label(later or name, classes)}: backward error {error:.1e}"
        later = name
    return ""


def _torch_record(pair: Pair, masks: Masks, cotangents: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and their gradients by module path, in the order in which the calls end."""
    import torch

    outputs: dict[str, Any] = {}

    def note(name):
        def hook(module, arguments, output):
            output = _first(output)
            if torch.is_tensor(output) and name not in outputs:
                if output.requires_grad:
                    output.retain_grad()
                outputs[name] = output

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in pair.torch.named_modules()]
    try:
        with torch_masks(pair, masks, draw=False):
            found = leaves(pair.torch(**pair.torch_inputs()))
            pairs = [(v, torch.from_numpy(cotangents[k])) for k, v in found.items() if k in cotangents]
            used = [(v, c) for v, c in pairs if v.requires_grad]
            torch.autograd.backward([v for v, _ in used], [c for _, c in used])
    finally:
        for handle in handles:
            handle.remove()
        pair.torch.zero_grad()
        pair.torch.load_state_dict(pair.weights)
    gradients = {k: as_numpy(v.grad) for k, v in outputs.items() if v.grad is not None}
    return {k: as_numpy(v) for k, v in outputs.items()}, gradients


def _jax_record(pair: Pair, masks: Masks, cotangents: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of the nnx module: a zero is added to every output, and differentiated."""
    graph, params, rest = state.split(pair.model)
    inputs = pair.jax_inputs()

    def forward(params, rest, inputs, masks, nudges):
        seen: dict[str, Any] = {}
        here = jax.extend.core.get_opaque_trace_state(convention="nnx")

        def hook(path, run):
            output = run()
            value = _first(output)
            # What a loop or a rematerialised block computes is not known outside it.
            inner = jax.extend.core.get_opaque_trace_state(convention="nnx") != here
            if inner or not isinstance(value, jax.Array) or path in seen:
                return output
            seen[path] = value
            if nudges is None or path not in nudges:
                return output
            value = value + nudges[path]
            return (value, *output[1:]) if type(output) is tuple else value

        model = state.merge(graph, params, rest)
        with nn.inject_masks(masks) if masks else contextlib.nullcontext(), observe(model, hook):
            found = leaves(model(**inputs))
        return {k: v for k, v in found.items() if k in cotangents}, seen

    _, shapes = jax.eval_shape(forward, params, rest, inputs, masks, None)
    nudges = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items() if "float" in str(v.dtype)}
    seeds = {k: jnp.asarray(to_jax(v, pair.outputs)) for k, v in cotangents.items()}

    @jax.jit
    def run(params, rest, inputs, masks, nudges, seeds):
        _, pullback, seen = jax.vjp(lambda n: forward(params, rest, inputs, masks, n), nudges, has_aux=True)
        return seen, pullback(seeds)[0]

    seen, gradients = run(params, rest, inputs, masks, nudges, seeds)
    return {k: np.asarray(v) for k, v in seen.items()}, {k: np.asarray(v) for k, v in gradients.items()}


def _first(output: Any) -> Any:
    """The output itself, or the first of a tuple (a recurrent layer's output before its state)."""
    return output[0] if type(output) is tuple and output else output


def _error(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The error in whichever axis order fits best; only a report depends on it, never a verdict."""
    orders = [ours, *(np.moveaxis(ours, -1, axis) for axis in range(1, ours.ndim - 1))]
    errors = [relative(theirs, x) for x in orders if x.shape == theirs.shape]
    return min(errors, default=float("inf"))


def _label(name: str, classes: dict[str, str]) -> str:
    return f"{name or 'the model itself'} ({classes.get(name, '?')})"
