"""Optimizers and schedules of recipes: each by its name, with options that are checked in one line."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jaxarch import catalog, optim
from jaxarch.convert import to_state_dict
from jaxarch.errors import UsageError
from jaxarch.state import merge, split
from jaxarch.train import fit, tasks
from jaxarch.train.plan import prepare
from jaxarch.train.recipe import optimizer_options, optimizers_of, recipe_of
from torchref import losses as torch_losses

OTHER = "{'optimizer': 'adamw'}"
# What an optimizer does not have must be switched off, and Muon takes matrices only.
NEEDED = {
    "lbfgs": {"train.max_grad_norm": "0", "train.weight_decay": "0"},
    "rprop": {"train.weight_decay": "0"},
    "sparseadam": {"train.weight_decay": "0"},
    "muon": {"train.optimizer_options.groups": f"{{'*.bias': {OTHER}, '*.[15].weight': {OTHER}}}"},
}


def optimizer_of(**settings):
    settings = {f"train.{k}": v for k, v in settings.items()}
    recipe, _ = recipe_of("mlp", "tiny", settings)
    return recipe, optimizers_of(recipe, tasks.task(recipe.task))["model"]


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_every_optimizer_by_its_name(kind):
    needed = {k.removeprefix("train."): v for k, v in NEEDED.get(kind, {}).items()}
    _, rule = optimizer_of(optimizer=kind, **needed)
    params = nnx.eval_shape(lambda: split(catalog.create_model("mlp", "tiny")).params)
    opt_state = jax.eval_shape(rule.init, params)
    assert jax.tree.leaves(opt_state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": "-0.1"}, "learning_rate must not be negative"),
        ({"optimizer_options.betas": "5"}, "betas must be two numbers in [0, 1)"),
        ({"optimizer_options.betas": "[0.9, 1.0]"}, "betas must be two numbers in [0, 1)"),
        ({"optimizer_options.eps": "small"}, "eps must not be negative, but a number"),
        ({"optimizer_options.amsgrad": "1"}, "amsgrad must be True or False, not 1"),
        ({"optimizer_options.momentum": "0.9"}, "unknown option of adamw 'momentum'"),
        ({"optimizer": "sgdd"}, "unknown optimizer 'sgdd'"),
        ({"optimizer": "adafactor", "optimizer_options.d": "0.5"}, "d must be a number of at least 1"),
        ({"optimizer": "rprop"}, "rprop has no weight decay"),
        ({"optimizer": "lbfgs", "weight_decay": "0"}, "set max_grad_norm to 0"),
        ({"schedule": "steps"}, "unknown schedule 'steps'"),
        ({"schedule": "step", "schedule_options.step_size": "0"}, "step_size 0 must be at least 1"),
        ({"schedule": "step", "schedule_options.step_size": "often"}, "step_size must be an integer, not 'often'"),
        ({"schedule": "exponential", "schedule_options.gamma": "[1]"}, "gamma must be a number"),
        ({"schedule": "onecycle", "warmup_steps": "0", "schedule_options.cycle_momentum": "true",
          "optimizer": "adagrad"}, "adagrad has no momentum"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(settings, message):
    with pytest.raises(UsageError) as caught:
        optimizer_of(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schedule_cycles_the_momentum():
    cycled = {"schedule": "onecycle", "schedule_options.cycle_momentum": "true", "warmup_steps": "0"}
    recipe, _ = optimizer_of(**cycled, **{"optimizer_options.betas": "[0.8, 0.99]"})
    momentum, second = optimizer_options(recipe)["betas"]
    assert (float(momentum(0)), second) == (pytest.approx(0.95), 0.99)
    recipe, _ = optimizer_of(**cycled, optimizer="sgd")
    assert float(optimizer_options(recipe)["momentum"](0)) == pytest.approx(0.95)
    recipe, _ = optimizer_of(schedule="onecycle", warmup_steps="0")
    assert optimizer_options(recipe) == {}


def test_lbfgs_trains_as_torch_does(tmp_path):
    """Three steps of a recipe with L-BFGS and its line search: the losses of torch's closure on the same batches."""
    settings = {
        "train.optimizer": "lbfgs",
        "train.optimizer_options.line_search_fn": "strong_wolfe",
        "train.optimizer_options.max_iter": "4",
        "train.schedule": "constant",
        "train.learning_rate": "0.5",
        "train.warmup_steps": "0",
        "train.batch_size": "16",
        "train.steps": "3",
        "train.accumulate": "2",
        **NEEDED["lbfgs"],
    }
    run = prepare("mlp", variant="small", settings=settings, mesh=None, out=tmp_path / "x")
    start = run.init()
    model = catalog.create_model("mlp", "small", package="torchref").double()
    tensors = to_state_dict(merge(run.graph, start.params, start.rest))
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    losses = []
    for i in range(3):
        batch = {k: torch.from_numpy(v) for k, v in run.source.batch(run.recipe.seed, i, 16).items()}

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = torch_losses.cross_entropy(model(batch["x"].double()), batch["label"].long())
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    found = fit("mlp", variant="small", settings=settings, out=tmp_path / "run", progress=False)
    np.testing.assert_allclose([row["loss"] for row in found.history], losses, rtol=1e-10)
