"""Move a run between PyTorch and JAX in mid-schedule, in both directions, and draw the three curves.

    python scripts/handover.py --out docs/handover.svg

Everything goes through `jaxarch convert` and its files, in float64; the largest difference is printed.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from jaxarch import catalog, state
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.commands.convert import convert
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.html import curves
from jaxarch.train import fit
from jaxarch.train.plan import Run
from jaxarch.train.recipe import schedule_of
from torchref.losses import cross_entropy
from torchref.train import train_steps

MODEL, VARIANT = "mlp", "small"


def in_torch(run: Run, folder: Path | None, start: int, end: int, out: Path | None = None) -> list[float]:
    """Train in torch from a folder, or from the run's initial state, and save to `out`; returns the losses."""
    model = catalog.create_model(MODEL, VARIANT, package="torchref").double()
    if folder is None:
        initial = run.init()
        model_layout = layout(state.merge(run.graph, initial.params, initial.rest))
        weights = to_torch(model_layout, {**initial.params, **initial.rest})
    else:
        weights = read_tensors(folder / "model.safetensors")
    model.load_state_dict({k: as_tensor(v) for k, v in weights.items()})
    recipe, schedule = run.recipe, schedule_of(run.recipe)
    batches = [run.source.batch(recipe.seed, i, recipe.batch_size) for i in range(start, end)]
    losses, optimizer = train_steps(
        model,
        [{k: torch.from_numpy(v) for k, v in b.items()} for b in batches],
        lambda m, b: cross_entropy(m(b["x"].double()), b["label"].long()),
        learning_rate=lambda i: float(schedule(i)),
        optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay or 0.0,
        max_grad_norm=recipe.max_grad_norm or 0.0,
        optimizer_state=torch.load(folder / "optimizer.pt", weights_only=True) if folder else None,
        start_step=start,
    )
    if out is not None:
        write_tensors(out / "model.safetensors", {k: as_numpy(v) for k, v in model.state_dict().items()})
        torch.save(optimizer.state_dict(), out / "optimizer.pt")
    return losses


def main() -> None:
    """Train one run three ways, print the largest differences and draw the losses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/handover.svg"), metavar="SVG")
    parser.add_argument("--steps", type=int, default=160, metavar="N")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    end, middle = args.steps, args.steps // 2
    train = functools.partial(fit, MODEL, variant=VARIANT, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = train(out=work / "jax", stop_at=middle).run
        print(convert(str(work / "jax"), str(work / "jax_to_torch")))
        alone = [row["loss"] for row in train(out=work / "jax", resume=True, stop_at=end).history]
        to_torch_curve = alone[:middle] + in_torch(run, work / "jax_to_torch", middle, end)
        first_half = in_torch(run, None, 0, middle, work / "torch")
        print(convert(str(work / "torch"), str(work / "torch_to_jax"), model=MODEL, variant=VARIANT))
        second_half = train(out=work / "torch_to_jax", resume=True, stop_at=end).history
        to_jaxarch_curve = first_half + [row["loss"] for row in second_half]
    steps = [float(i) for i in range(1, end + 1)]
    lines = {
        "jaxarch alone": (steps, alone),
        f"jaxarch to step {middle}, then torch": (steps, to_torch_curve),
        f"torch to step {middle}, then jaxarch": (steps, to_jaxarch_curve),
    }
    for label, (_, losses) in lines.items():
        error = np.max(np.abs(np.array(losses) / np.array(alone) - 1))
        print(f"{label}: last loss {losses[-1]:.12f}, largest relative difference {error:.1e}")
    args.out.write_text(curves(lines, xlabel="step", ylabel="loss"))
    print(args.out)


if __name__ == "__main__":
    main()
