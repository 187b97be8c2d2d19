"""A torch module and an nnx module with the same weights, in float64, and the inputs to compare them on."""

import copy
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import catalog, nn, state
from jaxarch.arrays import as_numpy
from jaxarch.convert import layout
from jaxarch.convert.state_dict import from_torch
from jaxarch.errors import DataError, UsageError, require_torch, unknown
from jaxarch.spec import KINDS, Page


class Pair:
    """Two modules to compare. The modules given are copied and not changed.

    Args:
        torch_module, nnx_module: modules whose attribute paths agree; the weights are torch's.
        inputs: argument name -> array in torch's axis order; the call must have these names in both.
        kinds: argument name -> a kind of `jaxarch.spec.KINDS`; "image", "signal" and "video"
            move the channel axis. By default floats are "features", integers "tokens", booleans a "mask".
        outputs: the kind of the outputs.
        seed: of the random cotangents, targets and dropout masks.

    Raises:
        UsageError: float64 is off; an unknown kind.
        ConversionError: the weights do not correspond.
    """

    def __init__(
        self,
        torch_module: Any,
        nnx_module: nnx.Module,
        inputs: Mapping[str, np.ndarray],
        *,
        kinds: Mapping[str, str] | None = None,
        outputs: str = "features",
        seed: int = 0,
    ):
        require_torch("parity")
        if not jax.config.read("jax_enable_x64"):
            raise UsageError('parity computes in float64: jax.config.update("jax_enable_x64", True) first')
        self.inputs = {k: np.asarray(v) for k, v in inputs.items()}
        self.kinds = {k: (kinds or {}).get(k) or _kind_of(v) for k, v in self.inputs.items()}
        for kind in (*self.kinds.values(), outputs):
            if kind not in KINDS:
                raise unknown("input kind", kind, KINDS)
        self.outputs, self.seed, self.training = outputs, seed, False
        self.torch = copy.deepcopy(torch_module).double()
        self.weights = copy.deepcopy(self.torch.state_dict())
        self.model = nnx.clone(nnx_module)
        self.rows = layout(self.model)
        leaves = state.flat(nnx.state(self.model, nnx.Not(nnx.RngState)))
        if abstract := [k for k, v in leaves.items() if isinstance(v, jax.ShapeDtypeStruct)]:
            raise UsageError(f"{abstract[0]} is abstract: build the nnx module outside nnx.eval_shape")
        like = {k: jax.ShapeDtypeStruct(v.shape, _wide(v.dtype)) for k, v in leaves.items()}
        values = from_torch(self.rows, self.known_weights(), like)
        state.update(self.model, {k: jnp.asarray(v) for k, v in values.items()})
        nn.label_dropouts(self.model)

    @classmethod
    def from_catalog(cls, name: str, variant: str, seed: int = 0) -> "Pair":
        """The pair of an architecture's variant, with random weights, statistics and inputs.

        Raises:
            UsageError: unknown name or variant, or no torch.
        """
        torch = require_torch("parity")
        entry = catalog.page(name)
        torch.manual_seed(seed)
        theirs = catalog.create_model(name, variant, package="torchref").double()
        randomize(theirs, seed)
        arguments = catalog.arguments(name, variant)
        kinds = {k: v.kind for k, v in entry.inputs.items()}
        inputs = draw_inputs(entry, arguments, seed, variant=variant)
        ours = unweighted(lambda: catalog.create_model(name, variant, rngs=seed))
        return cls(theirs, ours, inputs, kinds=kinds, outputs=entry.outputs, seed=seed)

    def known_weights(self) -> dict[str, np.ndarray]:
        """torch's weights as numpy; of keys that share memory (tied weights) those that our model has."""
        ours = {r.torch for r in self.rows}
        owners: dict[int, list[str]] = {}
        tensors = self.torch.state_dict(keep_vars=True)
        for key, value in tensors.items():
            owners.setdefault(id(value), []).append(key)
        extra = {k for keys in owners.values() if len(keys) > 1 and ours & set(keys) for k in keys} - ours
        return {k: as_numpy(v) for k, v in tensors.items() if k not in extra}

    def reset(self, train: bool) -> None:
        """Both modules in train or eval mode; torch with its first weights and buffers."""
        self.training = train
        self.torch.load_state_dict(self.weights)
        self.torch.train(train)
        self.model.train() if train else self.model.eval()

    def torch_inputs(self) -> dict[str, Any]:
        """The inputs as torch tensors; floating ones ask for a gradient."""
        import torch

        tensors = {k: torch.from_numpy(np.array(v)) for k, v in self.inputs.items()}
        return {k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}

    def jax_inputs(self) -> dict[str, jax.Array]:
        """The inputs in JAX's axis order."""
        return {k: jnp.asarray(to_jax(v, self.kinds[k])) for k, v in self.inputs.items()}


def unweighted(build: Callable[[], nnx.Module]) -> nnx.Module:
    """The model of `build` with zeros for every weight that a state_dict holds.

    Initialisers are traced and thrown away instead of run one by one, which takes longer than the proof.
    """
    model = nnx.eval_shape(build)
    held = {r.path for r in layout(model)}

    def others() -> state.Flat:
        return {k: v for k, v in state.flat(nnx.state(build())).items() if k not in held}

    leaves = state.flat(nnx.state(model))
    zeros = {k: jnp.asarray(np.zeros(v.shape, v.dtype)) for k, v in leaves.items() if k in held}
    state.update(model, zeros | jax.jit(others)())
    return model


def to_jax(value: np.ndarray, kind: str) -> np.ndarray:
    """An array of torch's axis order in JAX's."""
    axis = KINDS[kind][1]
    return np.moveaxis(value, axis, -1) if axis and value.ndim > 2 else value


def to_torch(value: Any, kind: str) -> np.ndarray:
    """An array of JAX's axis order in torch's."""
    value, axis = np.asarray(value), KINDS[kind][1]
    return np.moveaxis(value, -1, axis) if axis and value.ndim > 2 else value


def draw_inputs(
    entry: Page, arguments: Mapping[str, Any], seed: int, *, variant: str = ""
) -> dict[str, np.ndarray]:
    """Random inputs of a page in torch's axis order, the same for the same seed.

    Lengths are unsorted and hold 1 and the highest; masks have the prefixes of such lengths, labels are
    partly -100. Edges hold a self loop, parallel edges and none at the last node; one graph of a batch is
    empty.

    Raises:
        DataError: a shape or bound names no constructor argument.
    """
    rng = np.random.default_rng((seed, zlib.crc32(entry.name.encode())))

    def size(value: int | str) -> int:
        if isinstance(value, int):
            return value
        if not isinstance(arguments.get(value), int):
            raise DataError(f"configs/{entry.name}.toml: {value!r} is no integer argument of {entry.cls}")
        return arguments[value]

    def lengths(count: int, high: int) -> np.ndarray:
        values = rng.integers(1, high + 1, count)
        values[rng.permutation(count)[:2]] = (high, 1)[:count]
        return values

    def edges(count: int, nodes: int) -> np.ndarray:
        values = rng.integers(0, max(nodes - 1, 1), (2, count))
        values[1, :1], values[:, 1:3] = values[0, :1], values[:, 1:2]
        return values

    def sizes(graphs: int, nodes: int) -> np.ndarray:
        parts = rng.multinomial(nodes, np.full(max(graphs - 1, 1), 1 / max(graphs - 1, 1)))
        return np.insert(parts, graphs // 2, 0) if graphs > 1 else parts

    drawn: dict[str, np.ndarray] = {}
    for key, spec in entry.inputs_of(variant).items():
        shape = tuple(size(s) for s in spec.shape)
        match spec.kind:
            case "tokens":
                drawn[key] = rng.integers(0, size(spec.high), shape)
            case "labels":
                drawn[key] = np.where(rng.random(shape) < 0.2, -100, rng.integers(0, size(spec.high), shape))
            case "lengths":
                drawn[key] = lengths(shape[0], size(spec.high))
            case "edges":
                drawn[key] = edges(shape[-1], size(spec.high))
            case "sizes":
                drawn[key] = sizes(shape[0], size(spec.high))
            case "mask":
                drawn[key] = np.arange(shape[-1]) < lengths(shape[0], shape[-1])[:, None]
            case "time":
                drawn[key] = rng.random(shape)
            case _:
                drawn[key] = rng.normal(size=shape)
    return drawn


def randomize(module: Any, seed: int) -> None:
    """Move weights and statistics off their special first values (zeros, ones), in place."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        for key, buffer in module.named_buffers():
            if key.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
            elif key.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype)


def _kind_of(value: np.ndarray) -> str:
    return {"f": "features", "b": "mask"}.get(value.dtype.kind, "tokens")


def _wide(dtype) -> Any:
    return jnp.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype
