"""The torch module of a pair, run as the reference."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxarch.arrays import as_numpy
from jaxarch.parity.compare import Arrays, is_float, leaves
from jaxarch.parity.masks import Masks, torch_masks
from jaxarch.parity.pair import Pair
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

if TYPE_CHECKING:
    import torch


class TorchSide(Side):
    """torch's side; after each method the module has its first weights and buffers again."""

    def __init__(self, pair: Pair, masks: Masks):
        self.pair, self.masks = pair, masks

    def draw_like_outputs(self, salt: int) -> Arrays:
        """Random arrays of the shapes of the floating outputs: cotangents, or targets; others for another salt."""
        import torch

        with self._restored(), self._masked(), torch.no_grad():
            outputs = leaves(self.pair.torch(**self.pair.torch_inputs()))
        rng = np.random.default_rng((self.pair.seed, salt))
        return {k: rng.normal(size=tuple(v.shape)) for k, v in outputs.items() if is_float(v)}

    def vjp(self, cotangents: Arrays) -> Passed:
        """Outputs, and the vector-Jacobian product with the cotangents for every parameter and floating input."""
        import torch

        inputs = self.pair.torch_inputs()
        parameters = dict(self.pair.torch.named_parameters())
        floats = {k: v for k, v in inputs.items() if v.requires_grad}
        variables = [*parameters.values(), *floats.values()]
        with self._restored():
            with self._masked():
                outputs = leaves(self.pair.torch(**inputs))
                roots, seeds = _roots(outputs, cotangents)
                grads = torch.autograd.grad(roots, variables, seeds, allow_unused=True)
            buffers = _copied(dict(self.pair.torch.named_buffers()))
        arrays = [
            as_numpy(torch.zeros_like(v) if g is None else g) for v, g in zip(variables, grads, strict=True)
        ]
        return Passed(
            {k: as_numpy(v) for k, v in outputs.items()},
            dict(zip(parameters, arrays, strict=False)),
            dict(zip(floats, arrays[len(parameters) :], strict=True)),
            buffers,
        )

    def train(self, targets: Arrays, exact_zeros: set[str]) -> Trained:
        """Clipped AdamW steps on the mean squared error of the outputs."""
        import torch

        parameters = dict(self.pair.torch.named_parameters())
        optimizer = _adamw(parameters)
        with self._restored():
            for step in range(STEPS):
                for group in optimizer.param_groups:
                    group["lr"] = LEARNING_RATE * _schedule(step)
                optimizer.zero_grad()
                with self._masked():
                    # New tensors: the first layer may overwrite its input.
                    inputs = {k: v.detach() for k, v in self.pair.torch_inputs().items()}
                    outputs = leaves(self.pair.torch(**inputs))
                    losses = [(outputs[k] - torch.from_numpy(t)).square().mean() for k, t in targets.items()]
                    torch.stack(losses).sum().backward()
                for key, parameter in parameters.items():
                    if parameter.grad is None or key in exact_zeros:
                        parameter.grad = torch.zeros_like(parameter)
                torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
                optimizer.step()
            moments = {k: optimizer.state[p] for k, p in parameters.items()}
            return Trained(
                _copied(parameters),
                _copied({k: v["exp_avg"] for k, v in moments.items()}),
                _copied({k: v["exp_avg_sq"] for k, v in moments.items()}),
                _copied(dict(self.pair.torch.named_buffers())),
            )

    def record(self, cotangents: Arrays) -> Recorded:
        """What each module's first call returns, and the gradient with respect to it, in order of the calls' ends."""
        import torch

        recorded: dict[str, torch.Tensor] = {}
        module = self.pair.torch
        handles = [m.register_forward_hook(_recorder(recorded, path)) for path, m in module.named_modules()]
        try:
            with self._restored(), self._masked():
                roots, seeds = _roots(leaves(module(**self.pair.torch_inputs())), cotangents)
                torch.autograd.backward(roots, seeds)
        finally:
            for handle in handles:
                handle.remove()
            module.zero_grad()
        gradients = {k: as_numpy(v.grad) for k, v in recorded.items() if v.grad is not None}
        return Recorded({k: as_numpy(v) for k, v in recorded.items()}, gradients)

    def _masked(self) -> contextlib.AbstractContextManager[None]:
        return torch_masks(self.pair, self.masks, draw=False)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """After the context the module has its first weights and buffers."""
        try:
            yield
        finally:
            self.pair.torch.load_state_dict(self.pair.weights)


def _roots(
    outputs: dict[str, "torch.Tensor"], cotangents: Arrays
) -> tuple[list["torch.Tensor"], list["torch.Tensor"]]:
    """The outputs that have a gradient and a cotangent, and these cotangents."""
    import torch

    differentiable = {k: v for k, v in outputs.items() if k in cotangents and v.requires_grad}
    return list(differentiable.values()), [torch.from_numpy(cotangents[k]) for k in differentiable]


def _recorder(recorded: dict[str, "torch.Tensor"], path: str) -> Callable[[Any, Any, Any], None]:
    """A forward hook that keeps the output of the module's first call, and has its gradient kept."""
    import torch

    def hook(module: Any, arguments: Any, output: Any) -> None:
        value = first_of(output)
        if torch.is_tensor(value) and path not in recorded:
            if value.requires_grad:
                value.retain_grad()
            recorded[path] = value

    return hook


def _adamw(parameters: dict[str, "torch.nn.Parameter"]) -> "torch.optim.AdamW":
    """AdamW that decays matrices and not vectors, as training's does."""
    import torch

    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=LEARNING_RATE)


def _schedule(step: int) -> float:
    """What `create_schedule("cosine", ...)` multiplies the learning rate with, written for torch's loop."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS + 1 - WARMUP)))


def _copied(tensors: dict[str, Any]) -> Arrays:
    return {k: as_numpy(v).copy() for k, v in tensors.items()}
