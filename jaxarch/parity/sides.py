"""One model run by each framework over the same inputs, masks, cotangents and targets."""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxarch import nn, state
from jaxarch.arrays import as_numpy
from jaxarch.convert.state_dict import to_torch as under_torch_keys
from jaxarch.errors import ConversionError, UsageError
from jaxarch.optim import create_optimizer, create_schedule
from jaxarch.parity.pair import Pair, to_jax, to_torch

# Whatever XLA_FLAGS say: gradients are proven as they are compiled for training.
OPTIMIZED = {"xla_backend_optimization_level": 3}

STEPS, LEARNING_RATE, WEIGHT_DECAY, MAX_NORM, WARMUP = 5, 1e-3, 0.1, 0.1, 2

Arrays = dict[str, np.ndarray]
Masks = dict[str, list[Any]]


@dataclass
class Passed:
    """One forward and backward pass, in torch's keys and axis orders."""

    outputs: Arrays
    parameters: Arrays
    inputs: Arrays
    buffers: Arrays


@dataclass
class Trained:
    """What is left after the training steps, in torch's keys and layouts."""

    parameters: Arrays
    exp_avg: Arrays
    exp_avg_sq: Arrays
    buffers: Arrays


def leaves(output: Any, path: str = "") -> dict[str, Any]:
    """The arrays of an output (an array, or tuples and mappings of them) by path; None is left out."""
    if output is None:
        return {}
    if isinstance(output, Mapping):
        items: Any = output.items()
    elif isinstance(output, tuple | list):
        items = enumerate(output)
    else:
        return {path: output}
    return {k: v for name, value in items for k, v in leaves(value, f"{path}.{name}".lstrip(".")).items()}


def is_float(value: Any) -> bool:
    """Whether an array or tensor, numpy's, JAX's or torch's, is floating."""
    return "float" in str(value.dtype)


# ------------------------------------------------------------------------------------------------ torch


def torch_dropouts(module: Any) -> dict[str, Any]:
    """The active dropout modules of a torch module by path."""
    from torch import nn as tnn

    kinds = (tnn.Dropout, tnn.Dropout1d, tnn.Dropout2d)
    return {k: m for k, m in module.named_modules() if isinstance(m, kinds) and 0 < m.p < 1}


@contextlib.contextmanager
def torch_masks(pair: Pair, masks: Masks, draw: bool) -> Iterator[None]:
    """Within the context torch's dropouts take masks by path: drawn and noted down, or those noted.

    Calls beyond the last mask begin again at the first: checkpointed blocks run a second time in backward.
    """
    import torch
    from torch import nn as tnn

    rng = np.random.default_rng(pair.seed)
    patched = torch_dropouts(pair.torch)

    def forward_of(path, module, calls):
        def forward(x):
            if not module.training:
                return x
            if draw:
                channels = isinstance(module, tnn.Dropout1d | tnn.Dropout2d)
                shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if channels else tuple(x.shape)
                masks.setdefault(path, []).append(rng.random(shape) >= module.p)
            own = masks[path]
            mask = torch.from_numpy(own[next(calls) % len(own)])
            return torch.where(mask, x / (1 - module.p), torch.zeros((), dtype=x.dtype))

        return forward

    for path, module in patched.items():
        module.forward = forward_of(path, module, iter(range(10**9)))
    try:
        yield
    finally:
        for module in patched.values():
            del module.forward


def draw_masks(pair: Pair) -> Masks:
    """A mask for every call of every active dropout, found by running torch once."""
    import torch

    masks: Masks = {}
    with torch.no_grad(), torch_masks(pair, masks, draw=True):
        pair.torch(**pair.torch_inputs())
    pair.torch.load_state_dict(pair.weights)
    return masks


def draw_like_outputs(pair: Pair, masks: Masks, salt: int) -> Arrays:
    """Random arrays of the shapes of torch's floating outputs: cotangents, or targets."""
    import torch

    with torch.no_grad(), torch_masks(pair, masks, draw=False):
        found = leaves(pair.torch(**pair.torch_inputs()))
    pair.torch.load_state_dict(pair.weights)
    rng = np.random.default_rng((pair.seed, salt))
    return {k: rng.normal(size=tuple(v.shape)) for k, v in found.items() if is_float(v)}


def torch_pass(pair: Pair, masks: Masks, cotangents: Arrays) -> Passed:
    """Outputs, and the vector-Jacobian product with the cotangents for every parameter and floating input."""
    import torch

    inputs = pair.torch_inputs()
    floats = {k: v for k, v in inputs.items() if v.requires_grad}
    parameters = dict(pair.torch.named_parameters())
    with torch_masks(pair, masks, draw=False):
        outputs = leaves(pair.torch(**inputs))
        used = {k: v for k, v in outputs.items() if k in cotangents and v.requires_grad}
        wanted = [*parameters.values(), *floats.values()]
        seeds = [torch.from_numpy(cotangents[k]) for k in used]
        gradients = torch.autograd.grad(list(used.values()), wanted, seeds, allow_unused=True)
    zeroed = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True)]
    arrays = [as_numpy(g) for g in zeroed]
    buffers = {k: as_numpy(v).copy() for k, v in pair.torch.named_buffers()}
    pair.torch.load_state_dict(pair.weights)
    return Passed(
        {k: as_numpy(v) for k, v in outputs.items()},
        dict(zip(parameters, arrays, strict=False)),
        dict(zip(floats, arrays[len(parameters) :], strict=True)),
        buffers,
    )


def torch_train(pair: Pair, masks: Masks, targets: Arrays, exact_zeros: set[str]) -> Trained:
    """Clipped AdamW steps on the squared distance of the outputs to the targets."""
    import torch

    named = dict(pair.torch.named_parameters())
    groups = [
        {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=LEARNING_RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _factor(step)
        optimizer.zero_grad()
        with torch_masks(pair, masks, draw=False):
            outputs = leaves(pair.torch(**{k: v.detach() for k, v in pair.torch_inputs().items()}))
            distances = [(outputs[k] - torch.from_numpy(t)).square().mean() for k, t in targets.items()]
            torch.stack(distances).sum().backward()
        for key, parameter in named.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if key in exact_zeros:
                parameter.grad.zero_()
        torch.nn.utils.clip_grad_norm_(named.values(), MAX_NORM)
        optimizer.step()
    moments = {k: optimizer.state[p] for k, p in named.items()}
    result = Trained(
        {k: as_numpy(v).copy() for k, v in named.items()},
        {k: as_numpy(v["exp_avg"]).copy() for k, v in moments.items()},
        {k: as_numpy(v["exp_avg_sq"]).copy() for k, v in moments.items()},
        {k: as_numpy(v).copy() for k, v in pair.torch.named_buffers()},
    )
    pair.torch.load_state_dict(pair.weights)
    return result


def _factor(step: int) -> float:
    """What `create_schedule("cosine", ...)` multiplies the learning rate with, written for torch's loop."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS + 1 - WARMUP)))


# ------------------------------------------------------------------------------------------------- jax


def jax_masks(pair: Pair, masks: Masks) -> Masks:
    """Torch's masks in the shapes that our dropouts ask for; channel masks have their channel axis moved."""
    if not masks:
        return {}
    needed: dict[str, list[tuple[int, ...]]] = {}

    def note(self, shape):
        needed.setdefault(self.path, []).append(shape)
        return jnp.ones(shape, bool)

    own, nn.Dropout._mask = nn.Dropout._mask, note  # type: ignore[method-assign]
    try:
        nnx.eval_shape(lambda model, inputs: leaves(model(**inputs)), pair.model, pair.jax_inputs())
    finally:
        nn.Dropout._mask = own  # type: ignore[method-assign]
    result: Masks = {}
    for path, values in masks.items():
        shapes = needed.get(path, [])
        if len(shapes) != len(values):
            raise UsageError(
                f"dropout {path!r} runs {len(values)} times in torch, {len(shapes)} times in jax"
            )
        result[path] = [jnp.asarray(_fitted(path, v, s)) for v, s in zip(values, shapes, strict=True)]
    return result


def _fitted(path: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    moved = np.moveaxis(mask, 1, -1) if mask.ndim > 2 else mask
    for candidate in (mask, moved):
        if candidate.shape == shape:
            return candidate
    raise UsageError(f"dropout {path!r} sees {mask.shape} in torch and {shape} in jax")


def check_dropouts(pair: Pair) -> None:
    """Refuse dropouts whose masks cannot be injected.

    Raises:
        UsageError: naming the first of them.
    """
    for path, module in nnx.iter_modules(pair.model):
        if isinstance(module, nnx.Dropout) and module.rate > 0:
            name = state.join(path)
            raise UsageError(f"{name} is nnx.Dropout: in train mode parity needs jaxarch.nn.Dropout there")


class Optimizer:
    """Clipped AdamW as training makes it, compiled once for all modes of a pair."""

    def __init__(self):
        optimizer = create_optimizer(
            "adamw",
            learning_rate=create_schedule("cosine", LEARNING_RATE, WARMUP, STEPS + 1),
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
        )

        @jax.jit
        def update(gradients, opt_state, params):
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        self.init, self.update = optimizer.init, update


class JaxSide:
    """The same by the nnx module: one compiled pass serves outputs, gradients and every training step."""

    def __init__(self, pair: Pair, masks: Masks):
        self.pair, self.masks = pair, masks
        graph, self.params, self.rest = state.split(pair.model)
        inputs = pair.jax_inputs()
        self.floats = {k: v for k, v in inputs.items() if is_float(v)}
        self.others = {k: v for k, v in inputs.items() if k not in self.floats}

        @functools.partial(jax.jit, compiler_options=OPTIMIZED if pair.training else None)
        def run(params, rest, floats, others, masks, given, squared):
            def forward(params, floats):
                model = state.merge(graph, params, rest)
                with nn.inject_masks(masks) if masks else contextlib.nullcontext():
                    found = leaves(model(**floats, **others))
                smooth = {k: v for k, v in found.items() if k in given}
                for k, v in smooth.items():
                    if v.shape != given[k].shape:
                        raise ConversionError(
                            f"output {k!r} has shape {v.shape} in jax, torch's is {given[k].shape} in jax's order"
                        )
                rough = {k: v for k, v in found.items() if k not in given}
                return smooth, (rough, state.rest_of(model))

            smooth, pullback, (rough, after) = jax.vjp(forward, params, floats, has_aux=True)
            # What is given are cotangents, or the targets of a mean squared distance.
            seeds = {
                k: jnp.where(squared, (v - given[k]) * (2 / v.size), given[k]) for k, v in smooth.items()
            }
            return {**smooth, **rough}, pullback(seeds), after

        self._run = run

    def _given(self, arrays: Arrays) -> dict[str, jax.Array]:
        return {k: jnp.asarray(to_jax(v, self.pair.outputs)) for k, v in arrays.items()}

    def passed(self, cotangents: Arrays) -> Passed:
        """One pass, the results in torch's keys and axis orders."""
        pair, given = self.pair, self._given(cotangents)
        outputs, (d_params, d_floats), after = self._run(
            self.params, self.rest, self.floats, self.others, self.masks, given, False
        )
        return Passed(
            {k: to_torch(v, pair.outputs) for k, v in outputs.items()},
            under_torch_keys(pair.rows, d_params),
            {k: to_torch(v, pair.kinds[k]) for k, v in d_floats.items()},
            under_torch_keys([r for r in pair.rows if not r.trainable], after),
        )

    def trained(self, optimizer: Optimizer, targets: Arrays, exact_zeros: set[str]) -> Trained:
        """The training steps."""
        pair, given = self.pair, self._given(targets)
        zeros = {r.path for r in pair.rows if r.torch in exact_zeros}
        params, rest = self.params, self.rest
        opt_state = optimizer.init(params)
        for _ in range(STEPS):
            _, (gradients, _), rest = self._run(
                params, rest, self.floats, self.others, self.masks, given, True
            )
            gradients = {k: jnp.zeros_like(g) if k in zeros else g for k, g in gradients.items()}
            params, opt_state = optimizer.update(gradients, opt_state, params)
        is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731
        (adam,) = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
        return Trained(
            under_torch_keys(pair.rows, params),
            under_torch_keys(pair.rows, adam.mu),
            under_torch_keys(pair.rows, adam.nu),
            under_torch_keys([r for r in pair.rows if not r.trainable], rest),
        )
