"""A torch module and an nnx module with the same weights, in float64, and the inputs to compare them on."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import nn, state
from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import from_torch
from jaxarch.errors import UsageError, require_torch, unknown
from jaxarch.spec import KINDS

if TYPE_CHECKING:
    import torch


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
        torch_module: "torch.nn.Module",
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
        self.kinds = {k: (kinds or {}).get(k) or _default_kind(v) for k, v in self.inputs.items()}
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
        like = {k: jax.ShapeDtypeStruct(v.shape, _float64(v.dtype)) for k, v in leaves.items()}
        values = from_torch(self.rows, self.known_weights(), like)
        state.update(self.model, {k: jnp.asarray(v) for k, v in values.items()})
        nn.label_dropouts(self.model)

    def known_weights(self) -> dict[str, np.ndarray]:
        """torch's weights as numpy; of keys that share memory (tied weights) those that the nnx module has."""
        known = {r.torch for r in self.rows}
        keys_of: dict[int, list[str]] = {}
        tensors = self.torch.state_dict(keep_vars=True)
        for key, value in tensors.items():
            keys_of.setdefault(id(value), []).append(key)
        extra = {k for keys in keys_of.values() if len(keys) > 1 and known & set(keys) for k in keys} - known
        return {k: as_numpy(v) for k, v in tensors.items() if k not in extra}

    def reset(self, train: bool) -> None:
        """Both modules in train or eval mode; torch with its first weights and buffers."""
        self.training = train
        self.torch.load_state_dict(self.weights)
        self.torch.train(train)
        self.model.train() if train else self.model.eval()

    def torch_inputs(self) -> dict[str, "torch.Tensor"]:
        """The inputs as torch tensors; floating ones ask for a gradient."""
        import torch

        tensors = {k: torch.from_numpy(np.array(v)) for k, v in self.inputs.items()}
        return {k: v.double().requires_grad_() if v.is_floating_point() else v for k, v in tensors.items()}

    def jax_inputs(self) -> dict[str, jax.Array]:
        """The inputs in JAX's axis order."""
        return {k: jnp.asarray(channels_last(v, self.kinds[k])) for k, v in self.inputs.items()}


def channels_last(value: np.ndarray, kind: str) -> np.ndarray:
    """An array in torch's axis order, of a kind of `jaxarch.spec.KINDS`, in JAX's."""
    axis = KINDS[kind][1]
    return np.moveaxis(value, axis, -1) if axis and value.ndim > 2 else value


def channels_first(value: np.ndarray | jax.Array, kind: str) -> np.ndarray:
    """An array in JAX's axis order, of a kind of `jaxarch.spec.KINDS`, in torch's."""
    value, axis = np.asarray(value), KINDS[kind][1]
    return np.moveaxis(value, -1, axis) if axis and value.ndim > 2 else value


def _default_kind(value: np.ndarray) -> str:
    return {"f": "features", "b": "mask"}.get(value.dtype.kind, "tokens")


def _float64(dtype: np.dtype) -> np.dtype:
    """float64 for a floating dtype, any other as it is."""
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype
