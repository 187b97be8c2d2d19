"""Every comparison of a pair, and the result."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from flax import nnx

from jaxarch.arrays import as_tensor
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import UsageError, unknown
from jaxarch.parity.compare import Arrays, Errors, compare, largest, structural_zeros
from jaxarch.parity.divergence import first_divergence
from jaxarch.parity.jax_side import JaxSide, Optimizer
from jaxarch.parity.masks import check_dropouts, draw_masks, jax_masks
from jaxarch.parity.pair import Pair
from jaxarch.parity.sides import Passed, Trained
from jaxarch.parity.torch_side import TorchSide

if TYPE_CHECKING:
    import torch

MODES = ("eval", "train")


@dataclass(frozen=True)
class CaseResult:
    """The result of a comparison. `weights` and `roundtrip` count tensors that differ in any bit; `outputs`,
    `gradients` and `training` are the largest relative errors, each the smallest bound that would pass."""

    name: str
    variant: str
    weights: float = 0.0
    roundtrip: float = 0.0
    outputs: float = math.inf
    gradients: float = math.inf
    training: float = math.inf
    seconds: float = 0.0
    ok: bool = False
    structural_zeros: tuple[str, ...] = ()
    detail: str = ""

    @property
    def minimum_bound(self) -> float:
        """The smallest bound under which the case would pass."""
        return max(self.outputs, self.gradients, self.training)


def check(
    torch_module: "torch.nn.Module",
    nnx_module: nnx.Module,
    inputs: Mapping[str, np.ndarray],
    *,
    kinds: Mapping[str, str] | None = None,
    outputs: str = "features",
    modes: Sequence[str] = MODES,
    seed: int = 0,
) -> CaseResult:
    """Compare any torch module with any nnx module; the arguments are `Pair`'s, `modes` of "eval", "train".

    Raises:
        UsageError, ConversionError: the two cannot be compared at all.
    """
    pair = Pair(torch_module, nnx_module, inputs, kinds=kinds, outputs=outputs, seed=seed)
    return check_pair(pair, type(torch_module).__name__, "", modes)


def check_pair(pair: Pair, name: str, variant: str, modes: Sequence[str] = MODES) -> CaseResult:
    """Every comparison of one pair.

    Raises:
        UsageError: an unknown mode or none, nothing that a gradient could be compared of, or a dropout whose masks
            cannot be injected.
        ConversionError: an output's shape differs.
    """
    if not modes:
        raise UsageError(f"no mode to compare in: give modes of {', '.join(MODES)}")
    for mode in modes:
        if mode not in MODES:
            raise unknown("mode", mode, MODES)
    start = time.monotonic()
    weights, roundtrip = _differing_weights(pair), _differing_after_roundtrip(pair)
    comparison, optimizer = _Comparison(), Optimizer()
    for mode in modes:
        _compare_in_mode(comparison, pair, mode, optimizer)
    failures = comparison.failures()
    failures += [f"{weights} weights differ"] if weights else []
    failures += [f"{roundtrip} keys differ"] if roundtrip else []
    return CaseResult(
        name,
        variant,
        weights,
        roundtrip,
        comparison.outputs.worst,
        comparison.gradients.worst,
        comparison.training.worst,
        time.monotonic() - start,
        not failures,
        tuple(sorted(comparison.structural_zeros)),
        "; ".join(failures),
    )


@dataclass
class _Comparison:
    """The errors in the modes so far, and the first module that diverged in one."""

    outputs: Errors = field(default_factory=Errors)
    gradients: Errors = field(default_factory=Errors)
    training: Errors = field(default_factory=Errors)
    structural_zeros: set[str] = field(default_factory=set)
    divergence: str = ""

    def add_pass(self, mode: str, expected: Passed, actual: Passed, zeros: set[str]) -> None:
        self.structural_zeros |= zeros
        self.outputs.add(f"{mode}: ", compare(expected.outputs, actual.outputs))
        self.outputs.add(f"{mode}, after: ", _compare_buffers(expected.buffers, actual.buffers))
        scale = largest(expected.parameters)
        parameters = compare(expected.parameters, actual.parameters, zeros=zeros, scale=scale)
        self.gradients.add(f"{mode}: ", parameters)
        self.gradients.add(f"{mode}, input ", compare(expected.inputs, actual.inputs))

    def add_training(self, mode: str, expected: Trained, actual: Trained) -> None:
        for moment in ("parameters", "exp_avg", "exp_avg_sq"):
            errors = compare(getattr(expected, moment), getattr(actual, moment))
            self.training.add(f"{mode}, {moment} ", errors)
        self.training.add(f"{mode}, buffer ", _compare_buffers(expected.buffers, actual.buffers))

    def failures(self) -> list[str]:
        """The worst tensor of each comparison that failed, and the first divergence."""
        lines = []
        for errors in (self.outputs, self.gradients, self.training):
            for key in errors.failed()[:1]:
                reason = f" ({errors.reasons[key]})" if key in errors.reasons else ""
                lines.append(f"{key} {errors.by_name[key]:.1e}{reason}")
        return lines + ([f"first divergence: {self.divergence}"] if self.divergence else [])


def _compare_in_mode(comparison: _Comparison, pair: Pair, mode: str, optimizer: Optimizer) -> None:
    pair.reset(train=mode == "train")
    if pair.training:
        check_dropouts(pair)
    masks = draw_masks(pair) if pair.training else {}
    torch_side, jax_side = TorchSide(pair, masks), JaxSide(pair, jax_masks(pair, masks), optimizer)
    cotangents = torch_side.draw_like_outputs(1)
    _require_gradients(pair, cotangents)
    expected, actual = torch_side.vjp(cotangents), jax_side.vjp(cotangents)
    zeros = structural_zeros(expected.parameters, actual.parameters)
    comparison.add_pass(mode, expected, actual, zeros)
    if expected.parameters:
        targets = torch_side.draw_like_outputs(2)
        comparison.add_training(mode, torch_side.train(targets, zeros), jax_side.train(targets, zeros))
    if not comparison.divergence and (comparison.outputs.failed() or comparison.gradients.failed()):
        comparison.divergence = first_divergence(
            pair.torch, torch_side.record(cotangents), jax_side.record(cotangents)
        )


def _require_gradients(pair: Pair, cotangents: Arrays) -> None:
    """Refuse a pair of which no gradient can be compared."""
    name = type(pair.torch).__name__
    if not cotangents:
        raise UsageError(f"{name} returns no floating array: there is no gradient to compare")
    floats = any(np.issubdtype(v.dtype, np.floating) for v in pair.inputs.values())
    if not floats and not any(True for _ in pair.torch.parameters()):
        raise UsageError(
            f"{name} has neither parameters nor floating inputs: there is no gradient to compare"
        )


def _differing_weights(pair: Pair) -> int:
    """How many tensors of the nnx module differ in any bit from torch's."""
    actual = to_state_dict(pair.model)
    return sum(actual[k].tobytes() != v.tobytes() for k, v in pair.known_weights().items() if k in actual)


def _differing_after_roundtrip(pair: Pair) -> int:
    """How many tensors differ in any bit after torch -> jax -> torch -> jax."""
    first = to_state_dict(pair.model)
    tensors = {**pair.torch.state_dict(), **{k: as_tensor(v) for k, v in first.items()}}
    pair.torch.load_state_dict(tensors, strict=True)
    again = nnx.clone(pair.model)
    load_state_dict(again, pair.known_weights())
    pair.torch.load_state_dict(pair.weights)
    second = to_state_dict(again)
    return sum(second[k].tobytes() != v.tobytes() for k, v in first.items())


def _compare_buffers(expected: Arrays, actual: Arrays) -> Errors:
    """Of the buffers that the nnx module has; Flax's batch norm counts no batches, torch may hold unsaved ones."""
    return compare({k: v for k, v in expected.items() if k in actual}, actual)
