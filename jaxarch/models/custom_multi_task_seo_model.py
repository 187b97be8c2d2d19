"""One encoder, several heads, each with its pooling and loss.

Vaswani et al. 2017, arXiv:1706.03762; learned weights of the losses: Kendall et al. 2018, arXiv:1705.07115.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import DataError, UsageError, unknown

CustomModelConfig = nn.CustomModelConfig
LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")
TASK_KEYS = ("num_classes", "pooling_strategy", "use_attention_pooling", "loss_type", "loss_weight")


class CustomMultiTaskSEOModel(nn.Module):
    """ids (B, T), attention_mask (B, T) -> {task: (B, num_classes)}.

    A task has `num_classes` and may have `pooling_strategy` (the config's), `use_attention_pooling` (False; True
    pools by attention, whatever the strategy), `loss_type` ("cross_entropy") and `loss_weight` (1). The config's
    own num_classes serves tasks that name none. With `uncertainty_weighting` the weights are learned.

    Raises:
        UsageError: unknown keys and names.
        DataError: as `nn.TextEncoder`.
    """

    def __init__(
        self,
        config: CustomModelConfig,
        task_configs: Mapping[str, Mapping[str, Any]],
        uncertainty_weighting: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.tasks = tuple(task_configs)
        self.loss_types, self.loss_weights, classes, strategies = read_tasks(config, task_configs)
        self.encoder = config.encoder(rngs=rngs)
        self.poolings: Any = nn.ModuleDict(
            {
                task: nn.Pooling(strategy, config.hidden_size, rngs=rngs)
                for task, strategy in zip(self.tasks, strategies, strict=True)
            }
        )
        self.dropout = nn.Dropout(config.dropout_rate, rngs=rngs)
        self.heads: Any = nn.ModuleDict(
            {
                task: nn.Linear(config.hidden_size, count, rngs=rngs)
                for task, count in zip(self.tasks, classes, strict=True)
            }
        )
        for task in self.tasks:
            nn.initialized(self.heads[task], config.initialization_method, rngs=rngs)
        zeros = jnp.zeros(len(self.tasks), jnp.result_type(float))
        self.log_vars = nnx.Param(zeros) if uncertainty_weighting else nnx.data(None)

    def __call__(
        self, input_ids: Int[Array, "b t"], attention_mask: Array | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        x = self.encoder(input_ids, attention_mask)
        return {
            task: self.heads[task](self.dropout(self.poolings[task](x, attention_mask)))
            for task in self.tasks
        }

    def compute_multi_task_loss(
        self, outputs: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> Float[Array, ""]:
        """The weighted sum of `task_losses`.

        Learned weights: exp(-s) loss + s / 2 per task, exp(-s) / 2 with mse, where s is the log of the variance.
        """
        terms = []
        for task, loss in self.task_losses(outputs, targets).items():
            i = self.tasks.index(task)
            term = self.loss_weights[i] * loss
            if self.log_vars is not None:
                s = self.log_vars[...][i].astype(term.dtype)
                term = (0.5 if self.loss_types[i] == "mse" else 1.0) * jnp.exp(-s) * term + 0.5 * s
            terms.append(term)
        return jnp.stack(terms).sum()

    def task_losses(
        self, outputs: Mapping[str, Array], targets: Mapping[str, Array]
    ) -> dict[str, Float[Array, ""]]:
        """The mean loss of every task that has targets.

        Targets are (B,) classes for cross_entropy, those of -100 ignored, (B, num_classes) for the others; a (B,)
        target serves num_classes 1.

        Raises:
            UsageError: targets of an unknown task, or none at all.
            DataError: a target of another shape than the output.
        """
        for task in targets:
            if task not in self.tasks:
                raise unknown("task", task, self.tasks)
        if not targets:
            raise UsageError(f"no targets: give those of {', '.join(self.tasks)}")
        kinds = dict(zip(self.tasks, self.loss_types, strict=True))
        return {t: task_loss(outputs[t], targets[t], kinds[t]) for t in self.tasks if t in targets}


def task_loss(output: Float[Array, "b c"], target: Array, kind: str) -> Float[Array, ""]:
    """The mean loss of one task: output (B, C), target (B,) or (B, C)."""
    if kind == "cross_entropy":
        valid = target != -100
        target = jnp.where(valid, target, 0)
        nn.check_ids(target, output.shape[-1], "target")
        log_p = jnp.take_along_axis(jax.nn.log_softmax(output), target[:, None], -1)[:, 0]
        return -jnp.where(valid, log_p, 0).sum() / jnp.maximum(valid.sum(), 1).astype(output.dtype)
    if target.ndim == 1 and output.shape[-1] == 1:
        target = target[:, None]
    if target.shape != output.shape:
        raise DataError(f"a {kind} target has shape {target.shape}, not {output.shape}")
    target = target.astype(output.dtype)
    if kind == "mse":
        return ((output - target) ** 2).mean()
    return (jax.nn.softplus(output) - target * output).mean()


def read_tasks(config: CustomModelConfig, task_configs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple, ...]:
    """Of every task: loss type, loss weight, number of classes, pooling."""
    if not task_configs:
        raise UsageError("task_configs is empty: give at least one task")
    rows = []
    for task, settings in task_configs.items():
        for key in settings:
            if key not in TASK_KEYS:
                raise unknown(f"key of task {task}", key, TASK_KEYS)
        kind = settings.get("loss_type", "cross_entropy")
        if kind not in LOSSES:
            raise unknown(f"loss_type of task {task}", kind, LOSSES)
        strategy = settings.get("pooling_strategy")
        if settings.get("use_attention_pooling", False):
            strategy = "attention"
        classes = settings.get("num_classes", config.num_classes)
        rows.append((kind, settings.get("loss_weight", 1.0), classes, strategy or config.pooling_strategy))
    return tuple(zip(*rows, strict=True))


def create_multi_task_model(
    config: CustomModelConfig | str,
    task_configs: Mapping[str, Mapping[str, Any]],
    *,
    rngs: nnx.Rngs,
    **settings: Any,
) -> CustomMultiTaskSEOModel:
    """The model of these tasks, of a config or of a model_name and CustomModelConfig's settings.

    `settings` may have `uncertainty_weighting`.
    """
    learned = settings.pop("uncertainty_weighting", False)
    return CustomMultiTaskSEOModel(nn.text_config(config, **settings), task_configs, learned, rngs=rngs)
