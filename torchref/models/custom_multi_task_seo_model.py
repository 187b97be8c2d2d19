"""One encoder, several heads, each with its pooling and loss.

Vaswani et al. 2017, arXiv:1706.03762; learned weights of the losses: Kendall et al. 2018, arXiv:1705.07115.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref import nn

CustomModelConfig = nn.CustomModelConfig
LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")
TASK_KEYS = ("num_classes", "pooling_strategy", "use_attention_pooling", "loss_type", "loss_weight")


class CustomMultiTaskSEOModel(nn.Module):
    """ids (B, T), attention_mask (B, T) -> {task: (B, num_classes)}.

    A task has `num_classes` and may have `pooling_strategy` (the config's), `use_attention_pooling` (False; True
    pools by attention, whatever the strategy), `loss_type` ("cross_entropy") and `loss_weight` (1). The config's
    own num_classes serves tasks that name none. With `uncertainty_weighting` the weights are learned.
    Unknown keys and names are ValueErrors; other errors: `nn.TextEncoder`.
    """

    def __init__(
        self,
        config: CustomModelConfig,
        task_configs: Mapping[str, Mapping[str, Any]],
        uncertainty_weighting: bool = False,
    ):
        super().__init__()
        self.config = config
        self.tasks = tuple(task_configs)
        self.loss_types, self.loss_weights, classes, strategies = read_tasks(config, task_configs)
        self.encoder = config.encoder()
        self.poolings: Any = nn.ModuleDict(
            {
                task: nn.Pooling(strategy, config.hidden_size)
                for task, strategy in zip(self.tasks, strategies, strict=True)
            }
        )
        self.dropout = nn.Dropout(config.dropout_rate)
        self.heads: Any = nn.ModuleDict(
            {
                task: nn.Linear(config.hidden_size, count)
                for task, count in zip(self.tasks, classes, strict=True)
            }
        )
        for task in self.tasks:
            nn.initialized(self.heads[task], config.initialization_method)
        self.log_vars = torch.nn.Parameter(torch.zeros(len(self.tasks))) if uncertainty_weighting else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.encoder(input_ids, attention_mask)
        return {
            task: self.heads[task](self.dropout(self.poolings[task](x, attention_mask)))
            for task in self.tasks
        }

    def compute_multi_task_loss(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of `task_losses`.

        Learned weights: exp(-s) loss + s / 2 per task, exp(-s) / 2 with mse, where s is the log of the variance.
        """
        terms = []
        for task, loss in self.task_losses(outputs, targets).items():
            i = self.tasks.index(task)
            term = self.loss_weights[i] * loss
            if self.log_vars is not None:
                s = self.log_vars[i].to(term.dtype)
                term = (0.5 if self.loss_types[i] == "mse" else 1.0) * torch.exp(-s) * term + 0.5 * s
            terms.append(term)
        return torch.stack(terms).sum()

    def task_losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean loss of every task that has targets.

        Targets are (B,) classes for cross_entropy, those of -100 ignored, (B, num_classes) for the others; a (B,)
        target serves num_classes 1. Targets of no task and none at all are ValueErrors.
        """
        for task in targets:
            if task not in self.tasks:
                raise ValueError(f"unknown task {task!r}: known: {', '.join(self.tasks)}")
        if not targets:
            raise ValueError(f"no targets: give those of {', '.join(self.tasks)}")
        kinds = dict(zip(self.tasks, self.loss_types, strict=True))
        return {t: task_loss(outputs[t], targets[t], kinds[t]) for t in self.tasks if t in targets}


def task_loss(output: Tensor, target: Tensor, kind: str) -> Tensor:
    """The mean loss of one task: output (B, C), target (B,) or (B, C)."""
    if kind == "cross_entropy":
        total = F.cross_entropy(output, target, reduction="sum")
        return total / (target != -100).sum().clamp(min=1)
    if target.ndim == 1 and output.shape[-1] == 1:
        target = target[:, None]
    if target.shape != output.shape:
        raise ValueError(f"a {kind} target has shape {tuple(target.shape)}, not {tuple(output.shape)}")
    target = target.to(output.dtype)
    if kind == "mse":
        return ((output - target) ** 2).mean()
    return F.binary_cross_entropy_with_logits(output, target)


def read_tasks(config: CustomModelConfig, task_configs: Mapping[str, Mapping[str, Any]]) -> tuple[tuple, ...]:
    """Of every task: loss type, loss weight, number of classes, pooling."""
    if not task_configs:
        raise ValueError("task_configs is empty: give at least one task")
    rows = []
    for task, settings in task_configs.items():
        for key in settings:
            if key not in TASK_KEYS:
                raise ValueError(f"unknown key of task {task} {key!r}: known: {', '.join(TASK_KEYS)}")
        kind = settings.get("loss_type", "cross_entropy")
        if kind not in LOSSES:
            raise ValueError(f"unknown loss_type of task {task} {kind!r}: known: {', '.join(LOSSES)}")
        strategy = settings.get("pooling_strategy")
        if settings.get("use_attention_pooling", False):
            strategy = "attention"
        classes = settings.get("num_classes", config.num_classes)
        rows.append((kind, settings.get("loss_weight", 1.0), classes, strategy or config.pooling_strategy))
    return tuple(zip(*rows, strict=True))


def create_multi_task_model(
    config: CustomModelConfig | str, task_configs: Mapping[str, Mapping[str, Any]], **settings: Any
) -> CustomMultiTaskSEOModel:
    """The model of these tasks, of a config or of a model_name and CustomModelConfig's settings.

    `settings` may have `uncertainty_weighting`.
    """
    learned = settings.pop("uncertainty_weighting", False)
    return CustomMultiTaskSEOModel(nn.text_config(config, **settings), task_configs, learned)
