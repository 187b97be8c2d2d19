"""PyTorch's own samples of its modules, each run in torch and in JAX: `torch.testing._internal.common_modules`."""

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch.nn.modules.lazy import LazyModuleMixin
from torch.testing._internal.common_modules import module_db

from comparison import arrays
from jaxarch import nn, state
from jaxarch.arrays import as_numpy
from jaxarch.convert import load_state_dict
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.parity.compare import BOUND, Arrays, compare, is_float, largest, leaves, structural_zeros
from no_meaning import NO_MEANING
from torch_axes import AXES, SAME, Axes

MODES = ("eval", "train")
INFOS = {info.name.removeprefix("nn."): info for info in module_db}
# Inputs of which torch has no derivative, by their path in the call.
CONSTANT = {"SoftMarginLoss": ("0.1",)}
# Arguments of torch's constructors that say where and how wide arrays are: JAX's defaults are global.
PLACEMENT = ("device", "dtype")


class Sample(NamedTuple):
    """Arguments of a constructor and of a call: torch's."""

    module: str
    number: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Any, ...]
    named_inputs: dict[str, Any]

    def options(self) -> set[str]:
        """`name=value` of each argument that the constructor and the call have by name, but for arrays."""
        cls = getattr(torch.nn, self.module)
        given = inspect.signature(cls).bind_partial(*self.args, **self.kwargs).arguments
        named = {**given, **given.get("kwargs", {}), **self.named_inputs}
        return {f"{k}={v!r}" for k, v in named.items() if not isinstance(v, torch.Tensor | torch.nn.Module)}

    def __str__(self) -> str:
        shapes = [tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in self.inputs]
        return f"{self.number}: {', '.join(sorted(self.options()))} on {shapes} {sorted(self.named_inputs)}"


class Result(NamedTuple):
    """What one module did with one sample, in torch's names and axes: every output, the products of inputs and
    parameters with a fixed cotangent, buffers after the call."""

    outputs: Arrays
    inputs: Arrays
    parameters: Arrays
    buffers: Arrays


@contextlib.contextmanager
def _recorded_arguments() -> Iterator[None]:
    """Let the one module that samples hand over already built remember its arguments."""
    cls = torch.nn.TransformerEncoderLayer

    def build(*args: Any, **kwargs: Any) -> Any:
        layer = cls(*args, **kwargs)
        vars(layer)["built_with"] = args, kwargs
        return layer

    with mock.patch.object(torch.nn, cls.__name__, build):
        yield


def samples(module: str, mode: str) -> list[Sample]:
    """Every sample of a module in float64, always the same."""
    torch.manual_seed(0)
    info = INFOS[module]
    with _recorded_arguments():
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=mode == "train"
        )
        return [_sample(module, i, s) for i, s in enumerate(inputs)]


def reasons(sample: Sample) -> list[str]:
    """Why a sample cannot hold here; nothing where it must."""
    keys = [sample.module, *((sample.module, option) for option in sorted(sample.options()))]
    return [NO_MEANING[k] for k in keys if k in NO_MEANING]


def error_samples(module: str) -> list[tuple[Sample, Any]]:
    """Every sample that torch refuses: in the constructor or in the call, as its second part says."""
    info = INFOS[module]
    if info.module_error_inputs_func is None:
        return []
    torch.manual_seed(0)
    inputs = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
    )
    return [(_sample(module, i, e.module_error_input), e.error_on) for i, e in enumerate(inputs)]


def _sample(module: str, number: int, source: Any) -> Sample:
    built, called = source.constructor_input, source.forward_input
    args, kwargs = (called.args, called.kwargs) if called else ((), {})
    return Sample(module, number, built.args, built.kwargs, args, kwargs)


def build_torch(sample: Sample, mode: str) -> torch.nn.Module:
    """torch's module in float64, its weights always the same."""
    torch.manual_seed(sample.number)
    return getattr(torch.nn, sample.module)(*sample.args, **sample.kwargs).double().train(mode == "train")


def build_jax(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Our class of the same name with the same arguments; random keys only where it asks for them."""
    cls = getattr(nn, name)
    args, kwargs = _for_jax((args, kwargs), SAME)
    kwargs = {k: v for k, v in kwargs.items() if k not in PLACEMENT}
    rngs = inspect.signature(cls.__init__).parameters.get("rngs")
    if rngs is not None and rngs.default is inspect.Parameter.empty:
        kwargs["rngs"] = nnx.Rngs(0)
    return cls(*args, **kwargs)


def _for_jax(arguments: Any, axes: Axes) -> Any:
    """Arguments of a constructor or a call for JAX."""
    return jax.tree.map(lambda v: _argument(v, axes), arguments, is_leaf=_is_none)


def _argument(value: Any, axes: Axes) -> Any:
    if isinstance(value, torch.Tensor):
        return jnp.asarray(axes.to_jax(as_numpy(value)))
    if isinstance(value, torch.nn.Module):
        return build_jax(type(value).__name__, *vars(value)["built_with"])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return getattr(nn, type(value).__name__)(**dataclasses.asdict(value))
    if callable(value) and not isinstance(value, type):
        return getattr(getattr(nn, "functional", nn), value.__name__, None) or nn.get_activation(
            value.__name__
        )
    return value


def _is_none(value: Any) -> bool:
    return value is None


def in_torch(sample: Sample, theirs: torch.nn.Module) -> tuple[Result, Arrays]:
    """torch's result, and the cotangents by output."""
    given = jax.tree.map(_fresh, (sample.inputs, sample.named_inputs), is_leaf=_is_none)
    for path in CONSTANT.get(sample.module, ()):
        leaves(given)[path].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch advises its users is not compared
        outputs = leaves(theirs(*given[0], **given[1]))
    rng = np.random.default_rng(1)
    cotangents = {k: rng.normal(size=v.shape) for k, v in outputs.items() if is_float(v)}
    inputs = {k: v for k, v in leaves(given).items() if isinstance(v, torch.Tensor) and v.requires_grad}
    parameters = dict(theirs.named_parameters())
    variables = [*inputs.values(), *parameters.values()]
    roots = [k for k in cotangents if outputs[k].requires_grad]
    grads = torch.autograd.grad(
        [outputs[k] for k in roots],
        variables,
        [torch.from_numpy(np.asarray(cotangents[k])) for k in roots],
        allow_unused=True,
    )
    products = [
        as_numpy(torch.zeros_like(v) if g is None else g) for v, g in zip(variables, grads, strict=True)
    ]
    by_input = dict(zip(inputs, products, strict=False))
    by_parameter = dict(zip(parameters, products[len(inputs) :], strict=True))
    buffers = {k: as_numpy(v) for k, v in theirs.state_dict().items() if k not in parameters}
    return Result(arrays(outputs), by_input, by_parameter, buffers), cotangents


def _fresh(value: Any) -> Any:
    """A copy of a tensor that takes a gradient if it can."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.is_floating_point())


def in_jax(sample: Sample, ours: Any, cotangents: Arrays) -> Result:
    """JAX's result, operation by operation: the shapes of samples repeat, their compilations would not."""
    axes = AXES.get(sample.module, SAME)
    given = jax.tree.map(lambda v: _argument(v, axes), (sample.inputs, sample.named_inputs), is_leaf=_is_none)
    tree: Any
    values, tree = jax.tree.flatten(given)
    floats = [i for i, v in enumerate(values) if isinstance(v, jax.Array) and is_float(v)]
    graph, params, rest = state.split(ours)
    last = axes.of_outputs()

    def forward(params: Any, given: list[Any]) -> Any:
        model = state.merge(graph, params, rest)
        replaced = dict(zip(floats, given, strict=True))
        args, kwargs = tree.unflatten([replaced.get(i, v) for i, v in enumerate(values)])
        outputs = leaves(model(*args, **kwargs))  # type: ignore[operator]
        return {k: v for k, v in outputs.items() if k in cotangents}, (outputs, state.rest_of(model))

    _, pullback, (outputs, new_rest) = jax.vjp(forward, params, [values[i] for i in floats], has_aux=True)
    d_params, d_inputs = pullback({k: jnp.asarray(last.to_jax(v)) for k, v in cotangents.items()})
    by_index = dict(zip(floats, d_inputs, strict=True))
    inputs = leaves(tree.unflatten([by_index.get(i) for i in range(len(values))]))
    inputs = {k: v for k, v in inputs.items() if k not in CONSTANT.get(sample.module, ())}
    rows = layout(ours)
    return Result(
        {k: last.to_torch(v) for k, v in arrays(outputs).items()},
        {k: axes.to_torch(v) for k, v in arrays(inputs).items()},
        to_torch(rows, d_params),
        to_torch([r for r in rows if not r.trainable], new_rest),
    )


def compared(sample: Sample, mode: str) -> str:
    """The difference between torch and JAX on one sample, in one line; nothing where they agree."""
    try:
        theirs = build_torch(sample, mode)
        ours = build_jax(sample.module, sample.args, sample.kwargs)
        ours.train() if mode == "train" else ours.eval()
        if isinstance(theirs, LazyModuleMixin):
            theirs(*sample.inputs, **sample.named_inputs)
            call(sample, ours)
        load_state_dict(ours, theirs.state_dict())
        expected, cotangents = in_torch(sample, theirs)
        return difference(expected, in_jax(sample, ours, cotangents))
    except Exception as error:  # the sample's result, not the end of the run
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def difference(expected: Result, actual: Result) -> str:
    """The worst tensor beyond the bound; gradients that are rounding are measured against the largest."""
    products = {**expected.parameters, **expected.inputs}
    zeros = structural_zeros(products, {**actual.parameters, **actual.inputs})
    for part in Result._fields:
        theirs, ours = (_finite(getattr(r, part), getattr(expected, part)) for r in (expected, actual))
        errors = compare(theirs, ours, zeros=zeros, scale=largest(products))
        for key in errors.failed():
            reason = errors.reasons.get(key, f"{errors.by_name[key]:.1e} beyond {BOUND:.0e}")
            return f"{part} {key!r}: {reason}"
    return ""


def _finite(tensors: Arrays, expected: Arrays) -> Arrays:
    """Tensors with zeros where they and the expected ones are NaN or infinite alike."""

    def replaced(value: np.ndarray, other: np.ndarray) -> np.ndarray:
        if value.shape != other.shape or not is_float(value):
            return value
        same = (np.isnan(value) & np.isnan(other)) | (np.isinf(value) & (value == other))
        return np.where(same, 0.0, value)

    return {k: replaced(v, expected[k]) if k in expected else v for k, v in tensors.items()}


def call(sample: Sample, ours: Any = None) -> Any:
    """Our output for a sample, of a new module if none is given."""
    ours = build_jax(sample.module, sample.args, sample.kwargs) if ours is None else ours
    inputs, named = _for_jax((sample.inputs, sample.named_inputs), AXES.get(sample.module, SAME))
    return ours(*inputs, **named)
