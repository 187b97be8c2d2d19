"""Printed classes of PyTorch guides held against both packages: their weights load strictly and give their numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import torchref.models
import torchref.nn
from jaxarch import models, nn
from jaxarch.arrays import as_numpy
from jaxarch.convert import load_state_dict
from jaxarch.parity.compare import BOUND, compare

# From torch's axes to ours, by the number of axes of an image; other values keep theirs.
IMAGE = (0, 2, 3, 1)


def leaves(value: Any) -> dict[str, np.ndarray]:
    """The arrays of a nest of tuples and dictionaries, by position or key."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif isinstance(value, (tuple, list)):
        items = enumerate(value)
    else:
        return {"": np.asarray(as_numpy(value) if isinstance(value, torch.Tensor) else value)}
    return {f"{k}.{path}": leaf for k, part in items for path, leaf in leaves(part).items()}


def channels_last(value: Any) -> Any:
    """The tensors of a call as JAX arrays, images (4 axes of floats) with the channels last."""
    if isinstance(value, tuple):
        return tuple(map(channels_last, value))
    if not isinstance(value, torch.Tensor):
        return value
    array = value.numpy()
    is_image = array.ndim == 4 and array.dtype == np.float64  # a mask is float32
    return jnp.asarray(array.transpose(IMAGE) if is_image else array)


def floats(*shape: int) -> torch.Tensor:
    """Normal numbers in double precision, the same for the same shape."""
    return torch.tensor(np.random.default_rng(shape).normal(size=shape))


def both(name: str, *args: Any, room: str = "models", **kwargs: Any) -> tuple[torch.nn.Module, nnx.Module]:
    """A class of both packages, torchref's and ours, built with the same arguments."""
    theirs, ours = (torchref.models, models) if room == "models" else (torchref.nn, nn)
    return getattr(theirs, name)(*args, **kwargs), getattr(ours, name)(*args, **kwargs, rngs=nnx.Rngs(0))


class Steps(torch.nn.Module):
    """Modules under printed names, and what the printed class does with them."""

    def __init__(self, call: Callable[..., Any], **parts: torch.nn.Module | None):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def forward(self, *args: Any) -> Any:
        """call(self, *args)."""
        return self.call(self, *args)


def agree(
    printed: torch.nn.Module,
    reference: torch.nn.Module,
    model: nnx.Module,
    inputs: Sequence[Any],
    *,
    printed_inputs: Sequence[Any] | None = None,
    part: Callable[[Any], Any] = lambda outputs: outputs,
) -> None:
    """Assert that the printed class's weights load strictly into both and give its outputs, in train and eval mode.

    In train mode the draws of the printed class and of the reference are the same by the seed; the statistics that
    they update are compared too. JAX's train mode is compared with the reference's by the parity cases. The printed
    class is called with `printed_inputs`, where its call differs.
    """
    for module in (printed, reference):
        module.double()
    reference.load_state_dict(printed.state_dict(), strict=True)
    load_state_dict(model, printed.state_dict())
    outputs = []
    own = inputs if printed_inputs is None else printed_inputs
    for module, arguments in ((printed.train(), own), (reference.train(), inputs)):
        torch.manual_seed(5)
        outputs.append({**leaves(part(module(*arguments))), **leaves(dict(module.state_dict()))})
    assert compare(*outputs).worst < BOUND
    load_state_dict(model, printed.state_dict())
    model.eval()
    with torch.no_grad():
        expected, actual = leaves(part(printed.eval()(*own))), leaves(part(reference.eval()(*inputs)))
    assert compare(expected, actual).worst < BOUND
    ours = leaves(part(model(*map(channels_last, inputs))))  # type: ignore[operator]
    last = {k: v.transpose(IMAGE) if v.ndim == 4 else v for k, v in expected.items()}
    assert compare(last, ours).worst < BOUND
