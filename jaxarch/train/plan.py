"""Everything a run is made of, built before its first step and without computing anything."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxarch import catalog, data
from jaxarch.parallel import batch_sharding, make_mesh, parse_mesh
from jaxarch.parallel import shardings as param_shardings
from jaxarch.parallel.rules import Axes
from jaxarch.spec import Recipe
from jaxarch.state import Flat, make_rngs, split, update
from jaxarch.train import finetune, tasks
from jaxarch.train.recipe import optimizers_of, recipe_of
from jaxarch.train.step import TrainState, create_state


@dataclass(frozen=True)
class Run:
    """Everything a run is made of, built before its first step.

    Attributes:
        overrides: arguments of the model that are not the variant's.
        optimizers: the optimizer of each update of the task.
        sample: the batch of step 0.
        graph, eval_graph: the structure of the model in training and in evaluation mode.
        abstract: shape, dtype and sharding of every array of the state.
        init: makes the state before the first step.
    """

    name: str
    overrides: dict[str, Any]
    recipe: Recipe
    mesh: Mesh
    task: tasks.Task
    source: data.Source
    optimizers: Mapping[str, optax.GradientTransformation]
    sample: Mapping[str, Any]
    graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    abstract: TrainState
    init: Callable[[], TrainState]

    @property
    def variant(self) -> str:
        """The variant of the model."""
        return self.recipe.variant

    def place(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A batch on the devices, in JAX's default dtypes, its rows sharded over data and fsdp."""
        sharding = batch_sharding(self.mesh, len(next(iter(batch.values()))))
        return {k: jax.device_put(v.astype(data.working_dtype(v.dtype)), sharding) for k, v in batch.items()}

    def training_batch(self, step: int) -> dict[str, jax.Array]:
        """The batch of a training step, on the devices."""
        return self.place(self.source.batch(self.recipe.seed, step, self.recipe.batch_size))

    def about(self) -> dict[str, Any]:
        """The description of the run in its checkpoints."""
        return {
            "name": self.name,
            "variant": self.variant,
            "overrides": self.overrides,
            "recipe": dataclasses.asdict(self.recipe),
            "mesh": dict(self.mesh.shape),
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

    Args:
        settings: see `recipe.recipe_of`.
        mesh: see `parallel.parse_mesh`; all devices on the axis `data` if None.
        out: the folder of the run, where data sets keep a tokenizer.
        recipe: the name of one of the page's recipes; its first if None.

    Raises:
        UsageError: a name, setting, mesh or sharding that does not fit.
        DataError: the data is missing or does not fit the model.
    """
    filled, overrides = recipe_of(name, variant, settings, recipe)
    device_mesh = make_mesh(parse_mesh(mesh or f"data={jax.device_count()}"))
    batch_sharding(device_mesh, filled.batch_size)
    arguments = catalog.arguments(name, filled.variant, overrides)
    source = data.load(filled.data, out=out, arguments=arguments, options=filled.options)
    task = tasks.task(filled.task, label_smoothing=filled.label_smoothing or 0.0, **filled.task_options)
    sample = source.batch(filled.seed, 0, filled.batch_size)

    def build(weights: Flat) -> nnx.Module:
        rngs = make_rngs(filled.seed)
        model = catalog.create_model(name, filled.variant, rngs=rngs, **overrides)
        update(model, weights)
        finetune.adapt(model, filled.adapters, rngs)
        return task.wrap(model, sample, source.classes, rngs)

    def create(weights: Flat) -> TrainState:
        return create_state(lambda: build(weights), task, optimizers, ema=filled.ema > 0)

    model = nnx.eval_shape(lambda: build({}))
    optimizers = optimizers_of(filled, task, model)
    model.train()
    graph = split(model).graph
    model.eval()
    eval_graph = split(model).graph

    abstract = jax.eval_shape(create, {})
    shardings = placement(abstract, device_mesh, catalog.page(name).sharding)
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
    create_sharded = jax.jit(create, out_shardings=shardings)

    def init() -> TrainState:
        # The weights are read when a run begins: a resumed run needs no folder.
        if not filled.init:
            return create_sharded({})
        bare = nnx.eval_shape(lambda: catalog.create_model(name, filled.variant, **overrides))
        return create_sharded(
            finetune.starting_weights(
                filled.init, bare, name, arguments, weight_shardings(bare, device_mesh, name)
            )
        )

    return Run(
        name=name,
        overrides=overrides,
        recipe=filled,
        mesh=device_mesh,
        task=task,
        source=source,
        optimizers=optimizers,
        sample=sample,
        graph=graph,
        eval_graph=eval_graph,
        abstract=abstract,
        init=init,
    )


def weight_shardings(model: nnx.Module, mesh: Mesh, name: str) -> dict[str, NamedSharding]:
    """The sharding of each parameter and buffer of an architecture by its path, before adapters and wrappers."""
    _, params, rest = split(model)
    replicated = NamedSharding(mesh, PartitionSpec())
    return {
        **dict.fromkeys(rest, replicated),
        **param_shardings(params, mesh, catalog.page(name).sharding),
    }


def placement(abstract: TrainState, mesh: Mesh, exceptions: Mapping[str, Axes]) -> TrainState:
    """The sharding of each leaf of a state: parameters by their path, moments as their parameter, others replicated."""
    by_path = param_shardings(abstract.params, mesh, exceptions)
    replicated = NamedSharding(mesh, PartitionSpec())

    def of_moment(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        paths = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey)]
        is_moment = bool(paths) and paths[-1] in by_path and leaf.shape == abstract.params[paths[-1]].shape
        return by_path[paths[-1]] if is_moment else replicated

    return TrainState(
        step=replicated,
        params=by_path,
        rest=dict.fromkeys(abstract.rest, replicated),
        opt_state=jax.tree_util.tree_map_with_path(of_moment, abstract.opt_state),
        ema_params={k: by_path[k] for k in abstract.ema_params},
    )
