"""`jaxarch bench lstm`: two bidirectional layers, batch 32, 128 steps, width and hidden size 256."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import nn, reference
from jaxarch.bench import OURS, Contest, jax_step, torch_step
from jaxarch.convert import load_state_dict

SIZE = {"input_size": 256, "hidden_size": 256, "num_layers": 2, "batch_first": True, "bidirectional": True}
BATCH, STEPS = 32, 128


def contests(*, compiled: bool, kind: str = "LSTM") -> Iterator[Contest]:
    """One training step of the layer in torch and here."""
    import torch

    x = np.random.default_rng(0).normal(size=(BATCH, STEPS, SIZE["input_size"])).astype(np.float32)
    torch.manual_seed(0)
    torch_layer = getattr(reference.load("nn", "bench"), kind)
    theirs = torch_layer(**SIZE)
    layer = getattr(nn, kind)(**SIZE, rngs=nnx.Rngs(0))
    load_state_dict(layer, theirs.state_dict())
    weights = theirs.state_dict()
    runs = {OURS: jax_step(layer, {"x": jnp.asarray(x)})}
    for label in ("torch", "torch compiled") if compiled else ("torch",):
        twin = torch_layer(**SIZE)
        twin.load_state_dict(weights)
        runs[label] = torch_step(twin, {"x": torch.tensor(x)}, compiled=label == "torch compiled")
    yield Contest(kind.lower(), runs)
