"""Everything a run is made of, built before its first step and without computing anything."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxarch import catalog, data, state
from jaxarch.parallel import batch_sharding, make_mesh, parse_mesh, shardings
from jaxarch.spec import Recipe
from jaxarch.state import make_rngs
from jaxarch.train import finetune, step, tasks
from jaxarch.train.recipe import optimizers_of, recipe_of


@dataclass(frozen=True)
class Run:
    """Everything a run is made of, built before its first step."""

    name: str
    variant: str
    overrides: dict[str, Any]
    recipe: Recipe
    mesh: jax.sharding.Mesh
    task: tasks.Task
    source: data.Source
    optimizers: Mapping[str, Any]
    sample: Mapping[str, Any]
    graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    abstract: step.TrainState
    init: Any

    def place(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A batch on the devices, its rows over data and fsdp, its numbers as wide as JAX's own."""
        sharding = batch_sharding(self.mesh, len(next(iter(batch.values()))))
        return {k: jax.device_put(v.astype(data.working_dtype(v.dtype)), sharding) for k, v in batch.items()}

    def training_batch(self, step: int) -> dict[str, jax.Array]:
        """The batch of a training step, on the devices."""
        return self.place(self.source.batch(self.recipe.seed, step, self.recipe.batch_size))

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        recipe = dataclasses.asdict(self.recipe)
        mesh = dict(self.mesh.shape)
        return {
            "name": self.name,
            "variant": self.variant,
            "overrides": self.overrides,
            "recipe": recipe,
            "mesh": mesh,
            "classes": self.source.classes,
            "sample": {k: [v.shape, str(v.dtype)] for k, v in self.sample.items()},
        }


def prepare(
    name: str,
    *,
    variant: str | None,
    settings: Mapping[str, str],
    mesh: str | None,
    out: Path,
    recipe: str | None = None,
) -> Run:
    """Check everything that can be checked before the first step, and compile nothing yet.

    Raises:
        UsageError: a name, setting, mesh or sharding that does not fit.
        DataError: the data is missing or does not fit the model.
    """
    made, variant, overrides = recipe_of(name, variant, settings, recipe)
    devices = make_mesh(parse_mesh(mesh or f"data={jax.device_count()}"))
    batch_sharding(devices, made.batch_size)
    arguments = catalog.arguments(name, variant, overrides)
    source = data.load(made.data, out=out, arguments=arguments, options=made.options, seed=made.seed)
    task = tasks.task(made.task, label_smoothing=made.label_smoothing or 0.0, **made.task_options)
    optimizers = optimizers_of(made, task)
    sample = source.batch(made.seed, 0, made.batch_size)

    def build(weights: state.Flat) -> nnx.Module:
        rngs = make_rngs(made.seed)
        model = catalog.create_model(name, variant, rngs=rngs, **overrides)
        state.update(model, weights)
        finetune.adapt(model, made.adapters, rngs)
        return task.wrap(model, sample, source.classes, rngs)

    model = nnx.eval_shape(lambda: build({}))
    model.train()
    graph = state.split(model).graph
    model.eval()
    eval_graph = state.split(model).graph

    def create(weights: state.Flat) -> step.TrainState:
        return step.create_state(lambda: build(weights), task, optimizers, average=made.ema > 0)

    abstract = jax.eval_shape(create, {})
    placed = placement(abstract, devices, catalog.page(name).sharding)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    born = jax.jit(create, out_shardings=placed)

    def init() -> step.TrainState:
        # Read when a run begins: a run that goes on needs no folder.
        if not made.init:
            return born({})
        bare = nnx.eval_shape(lambda: catalog.create_model(name, variant, **overrides))
        return born(finetune.starting_weights(made.init, bare, name, arguments))

    return Run(
        name=name,
        variant=variant,
        overrides=overrides,
        recipe=made,
        mesh=devices,
        task=task,
        source=source,
        optimizers=optimizers,
        sample=sample,
        graph=graph,
        eval_graph=eval_graph,
        abstract=abstract,
        init=init,
    )


def placement(abstract: step.TrainState, mesh: jax.sharding.Mesh, exceptions: Mapping[str, Any]) -> Any:
    """A sharding for each leaf: parameters by their path, moments as their parameter, the rest everywhere."""
    by_path = shardings(abstract.params, mesh, exceptions)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def moment(path, leaf):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        return by_path.get(keys[-1], everywhere) if keys else everywhere

    return step.TrainState(
        step=everywhere,
        params=by_path,
        rest=dict.fromkeys(abstract.rest, everywhere),
        opt_state=jax.tree_util.tree_map_with_path(moment, abstract.opt_state),
        average={k: by_path[k] for k in abstract.average},
    )
