"""cuDNN's LSTM by `jax.experimental.rnn`, for `LSTM` on an NVIDIA GPU. Off unless switched on.

Tested is how weights, states and results are handed over, against JAX's own reference on the CPU; the kernel
itself has not been run.
"""

import logging
import warnings
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from jaxarch.nn.rnn import LSTM

_log = logging.getLogger(__name__)
_told: set[tuple[str, ...]] = set()
_on = False


def cudnn_lstm(on: bool = True) -> None:
    """Let `LSTM` use cuDNN where it fits; what is compiled already stays as it is.

    It fits on a CUDA GPU, in float32 (where cuDNN may use TF32, as JAX's products do: see
    jax_default_matmul_precision), without `lengths`, without dropout between layers. What is used, and why
    not cuDNN, is logged.
    """
    global _on
    _on = on


def serves(layer: "LSTM", x: Array, lengths: Array | None) -> bool:
    """Whether cuDNN computes this call."""
    if not _on:
        return False
    hindrances = {
        "no CUDA GPU": not _has_cuda(),
        "not float32": any(v.dtype != jnp.float32 for v in (x, layer._leaf("weight_hh", 0, ""))),
        "lengths are given": lengths is not None,
        "dropout between layers": layer.dropout > 0 and not layer.drop.deterministic,
    }
    found = tuple(what for what, there in hindrances.items() if there)
    if found not in _told:
        _told.add(found)
        if found:
            _log.warning("LSTM: not by cuDNN, but by XLA: %s", "; ".join(found))
        else:
            _log.info("LSTM: by cuDNN")
    return not found


def lstm(
    layer: "LSTM", x: Float[Array, "b t i"], h: Float[Array, "l b h"], c: Float[Array, "l b h"]
) -> tuple[Float[Array, "b t o"], Float[Array, "l b h"], Float[Array, "l b h"]]:
    """The layer's outputs and final states by cuDNN; x is batch-first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental import rnn
    lengths = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
    sizes = layer.input_size, layer.hidden_size, layer.num_layers
    return rnn.lstm(x, h, c, pack(layer), lengths, *sizes, 0.0, layer.bidirectional)


def pack(layer: "LSTM") -> Float[Array, " p"]:
    """The layer's weights as cuDNN takes them: the matrices of all layers and directions, then the biases."""
    leaves = [
        [layer._leaf(f"{kind}_{part}", k, suffix) for part in ("ih", "hh")]
        for kind in (("weight", "bias") if layer.bias else ("weight",))
        for k in range(layer.num_layers)
        for suffix in layer.suffixes
    ]
    flat = [leaf.reshape(-1) for pair in leaves for leaf in pair]
    if not layer.bias:
        rows = 2 * 4 * layer.hidden_size * layer.num_layers * len(layer.suffixes)
        flat.append(jnp.zeros(rows, flat[0].dtype))
    return jnp.concatenate(flat)


def _has_cuda() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version.lower()
