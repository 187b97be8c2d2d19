"""Time a training step of a recurrent layer here against torch, in one process.

    python scripts/bench_rnn.py [--batch 32 --steps 128 --width 256 --hidden 256 --layers 2 --repeat 7]

A step is the loss, its gradient for every parameter, and SGD. The two take turns, so that a busy machine
slows both; medians and their ratio are printed, as JSON with --json.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxarch import nn, state
from jaxarch.convert import load_state_dict
from torchref import nn as reference


def ours(layer: nnx.Module, x: np.ndarray):
    """A step of jaxarch as a function of nothing; returns the loss."""
    graph, params, rest = state.split(layer)

    def loss(params, x):
        return (state.merge(graph, params, rest)(x)[0] ** 2).mean()

    def step(params, x):
        value, gradients = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), value

    jitted, kept, x = jax.jit(step, donate_argnums=0), {"params": params}, jnp.asarray(x)

    def run():
        kept["params"], value = jitted(kept["params"], x)
        return float(jax.block_until_ready((kept["params"], value))[1])

    return run


def theirs(layer: torch.nn.Module, x: np.ndarray, compiled: bool):
    """The same step of torch."""
    optimizer, x = torch.optim.SGD(layer.parameters(), 0.1), torch.tensor(x)
    call = torch.compile(layer) if compiled else layer

    def run():
        optimizer.zero_grad()
        loss = (call(x)[0] ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in {
        "batch": 32,
        "steps": 128,
        "width": 256,
        "hidden": 256,
        "layers": 2,
        "repeat": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(args.batch, args.steps, args.width)).astype(np.float32)
    results = {}
    for kind in ("LSTM", "GRU"):
        shape = {"num_layers": args.layers, "bidirectional": True}
        layer = getattr(nn, kind)(args.width, args.hidden, **shape, rngs=nnx.Rngs(0))
        runs = {}
        for name in ("eager", "compiled") if args.compile else ("eager",):
            torch.manual_seed(0)
            twin = getattr(reference, kind)(args.width, args.hidden, **shape)
            load_state_dict(layer, twin.state_dict())
            runs[name] = theirs(twin, x, name == "compiled")
        runs = {"jaxarch": ours(layer, x), **runs}
        losses = {name: [run(), run()][-1] for name, run in runs.items()}
        if max(losses.values()) - min(losses.values()) > 1e-4 * max(losses.values()):
            raise SystemExit(f"the second losses differ: {losses}")
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.repeat):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {name: medians["jaxarch"] / value for name, value in medians.items() if name != "jaxarch"}
        results[kind] = {"seconds": medians, "ratio": ratios}
        if not args.json:
            times = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in medians.items())
            print(
                f"{kind}: {times}; " + ", ".join(f"{r:.2f} x torch {n}" for n, r in ratios.items()),
                flush=True,
            )
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
