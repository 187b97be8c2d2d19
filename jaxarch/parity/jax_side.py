"""The nnx module of a pair, run as it is compiled for training."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxarch import nn, state
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import ConversionError
from jaxarch.observe import Hook, observe
from jaxarch.optim import create_optimizer, create_schedule
from jaxarch.optim.transformation import OptimizerState
from jaxarch.parity.compare import Arrays, is_float, leaves
from jaxarch.parity.masks import Masks
from jaxarch.parity.pair import Pair, channels_first, channels_last
from jaxarch.parity.sides import (
    LEARNING_RATE,
    MAX_NORM,
    STEPS,
    WARMUP,
    WEIGHT_DECAY,
    Passed,
    Recorded,
    Side,
    Trained,
    first_of,
)
from jaxarch.state import Flat

# Of the pass in train mode, whatever XLA_FLAGS say: gradients are proven as they are compiled for training.
COMPILER_OPTIONS: dict[str, str | bool | int | float] = {"xla_backend_optimization_level": 3}


class Optimizer:
    """Clipped AdamW as training makes it, compiled once for all modes of a pair."""

    def __init__(self) -> None:
        optimizer = create_optimizer(
            "adamw",
            learning_rate=create_schedule("cosine", LEARNING_RATE, WARMUP, STEPS + 1),
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
        )

        @jax.jit
        def update(grads: Flat, opt_state: optax.OptState, params: Flat) -> tuple[Flat, optax.OptState]:
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state  # type: ignore[return-value]

        self.init, self.update = optimizer.init, update


class JaxSide(Side):
    """JAX's side: one compiled pass serves outputs, gradients and every training step.

    Args:
        masks: as `jax_masks` fits them.
        optimizer: shared between the modes of a pair; a new one if not given.
    """

    def __init__(self, pair: Pair, masks: Masks, optimizer: Optimizer | None = None):
        self.pair, self.masks, self.optimizer = pair, masks, optimizer or Optimizer()
        self.graph, self.params, self.rest = state.split(pair.model)
        inputs = pair.jax_inputs()
        self.floats = {k: v for k, v in inputs.items() if is_float(v)}
        self.others = {k: v for k, v in inputs.items() if k not in self.floats}
        self._compiled = jax.jit(self._pass, compiler_options=COMPILER_OPTIONS if pair.training else None)

    def vjp(self, cotangents: Arrays) -> Passed:
        """Outputs, and the vector-Jacobian product with the cotangents for every parameter and floating input."""
        kinds = self.pair.kinds
        outputs, (d_params, d_floats), new_rest, _ = self._run(self.params, self.rest, cotangents, False)
        return Passed(
            {k: channels_first(v, self.pair.outputs) for k, v in outputs.items()},
            to_torch(self.pair.rows, d_params),
            {k: channels_first(v, kinds[k]) for k, v in d_floats.items()},
            self._buffers(new_rest),
        )

    def train(self, targets: Arrays, exact_zeros: set[str]) -> Trained:
        """Clipped AdamW steps on the mean squared error of the outputs."""
        rows = self.pair.rows
        zeros = {r.path for r in rows if r.torch in exact_zeros}
        params, rest, opt_state = self.params, self.rest, self.optimizer.init(self.params)
        for _ in range(STEPS):
            _, (grads, _), rest, changed = self._run(params, rest, targets, True)
            params = {**params, **changed}
            grads = {k: jnp.zeros_like(g) if k in zeros else g for k, g in grads.items()}
            params, opt_state = self.optimizer.update(grads, opt_state, params)
        is_adam = lambda x: isinstance(x, OptimizerState)  # noqa: E731
        (adam,) = [x.slots for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
        return Trained(
            to_torch(rows, params),
            to_torch(rows, adam["exp_avg"]),
            to_torch(rows, adam["exp_avg_sq"]),
            self._buffers(rest),
        )

    def record(self, cotangents: Arrays) -> Recorded:
        """What each module's first call returns, and the gradient with respect to it: that of a zero added to it."""

        def forward(
            params: Flat, rest: Flat, inputs: Flat, masks: Masks, perturbations: Flat
        ) -> tuple[Flat, Flat]:
            model = state.merge(self.graph, params, rest)
            recorded: Flat = {}
            with observe(model, _recorder(recorded, perturbations)):
                outputs = _outputs(model, inputs, masks)
            return {k: v for k, v in outputs.items() if k in cotangents}, recorded

        arguments = self.params, self.rest, {**self.floats, **self.others}, self.masks
        outputs, shapes = jax.eval_shape(forward, *arguments, {})
        zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items() if is_float(v)}
        seeds = {k: v for k, v in self._channels_last(cotangents).items() if k in outputs}

        @jax.jit
        def run(
            params: Flat, rest: Flat, inputs: Flat, masks: Masks, zeros: Flat, seeds: Flat
        ) -> tuple[Flat, Flat]:
            _, pullback, recorded = jax.vjp(
                lambda z: forward(params, rest, inputs, masks, z), zeros, has_aux=True
            )
            return recorded, pullback(seeds)[0]

        recorded, gradients = run(*arguments, zeros, seeds)
        return Recorded(
            {k: np.asarray(v) for k, v in recorded.items()}, {k: np.asarray(v) for k, v in gradients.items()}
        )

    def _run(
        self, params: Flat, rest: Flat, seeds: Arrays, as_targets: bool
    ) -> tuple[Flat, tuple[Flat, Flat], Flat, Flat]:
        seeds_last = self._channels_last(seeds)
        return self._compiled(params, rest, self.floats, self.others, self.masks, seeds_last, as_targets)

    def _pass(
        self,
        params: Flat,
        rest: Flat,
        floats: Flat,
        others: Flat,
        masks: Masks,
        seeds: Flat,
        as_targets: jax.Array,
    ) -> tuple[Flat, tuple[Flat, Flat], Flat, Flat]:
        """Outputs, the gradients of parameters and floating inputs, the remaining state after the call, and the
        parameters that the call has set.

        `seeds` are cotangents by output or, `as_targets`, the targets of a mean squared error.
        """

        def forward(params: Flat, floats: Flat) -> tuple[Flat, tuple[Flat, Flat, Flat]]:
            model = state.merge(self.graph, params, rest)
            outputs = _outputs(model, {**floats, **others}, masks)
            for k, seed in seeds.items():
                if k in outputs and outputs[k].shape != seed.shape:
                    raise ConversionError(
                        f"output {k!r} has shape {outputs[k].shape} in jax, "
                        f"torch's is {seed.shape} in jax's order"
                    )
            seeded = {k: v for k, v in outputs.items() if k in seeds}
            unseeded = {k: v for k, v in outputs.items() if k not in seeds}
            return seeded, (unseeded, state.rest_of(model), state.set_by_call(model, params))

        seeded, pullback, (unseeded, new_rest, changed) = jax.vjp(forward, params, floats, has_aux=True)
        cotangents = {
            k: jnp.where(as_targets, (v - seeds[k]) * (2 / v.size), seeds[k]) for k, v in seeded.items()
        }
        return {**seeded, **unseeded}, pullback(cotangents), new_rest, changed

    def _channels_last(self, outputs: Arrays) -> Flat:
        return {k: jnp.asarray(channels_last(v, self.pair.outputs)) for k, v in outputs.items()}

    def _buffers(self, rest: Flat) -> Arrays:
        return to_torch([r for r in self.pair.rows if not r.trainable], rest)


def _outputs(model: nnx.Module, inputs: Flat, masks: Masks) -> Flat:
    """The arrays that a call returns, by path."""
    with nn.inject_masks(masks) if masks else contextlib.nullcontext():
        return leaves(model(**inputs))  # type: ignore[operator]


def _recorder(recorded: Flat, perturbations: Flat) -> Hook:
    """A hook that keeps the output of each module's first call, with its perturbation added to it."""
    trace = jax.extend.core.get_opaque_trace_state(convention="nnx")

    def hook(path: str, run: Callable[[], Any]) -> Any:
        output = run()
        value = first_of(output)
        # What a loop or a rematerialised block computes is not known outside it.
        inner = jax.extend.core.get_opaque_trace_state(convention="nnx") != trace
        if inner or not isinstance(value, jax.Array) or path in recorded:
            return output
        recorded[path] = value
        if path not in perturbations:
            return output
        value = value + perturbations[path]
        return (value, *output[1:]) if type(output) is tuple else value

    return hook
