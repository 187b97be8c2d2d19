"""One encoder under heads for classification, regression and tagging.

Vaswani et al. 2017, arXiv:1706.03762; Shaw et al. 2018, arXiv:1803.02155.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchref import nn

TASK_TYPES = ("classification", "regression", "sequence")
TASK_KEYS = ("num_classes", "type")


class MultiTaskModel(nn.Module):
    """ids (B, T), task_name -> that task's output; without a name {task: output} of one encoding.

    mask (B, T) is True where a token is real. "classification" (the default) and "regression" give (B,
    num_classes) from the mean of the real tokens, "sequence" (B, T, num_classes). `task_configs` is {name:
    {"num_classes", "type"}}; regression has one class if it names none. Unknown names are ValueErrors; other
    errors: `nn.TextEncoder`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int = 2048,
        max_len: int = 5000,
        dropout: float = 0.1,
        activation: str | nn.Function = "gelu",
        use_relative_pos: bool = True,
        *,
        task_configs: Mapping[str, Mapping[str, Any]],
    ):
        super().__init__()
        rows = {task: read_task(task, settings) for task, settings in task_configs.items()}
        if not rows:
            raise ValueError("task_configs is empty: give at least one task")
        self.tasks, self.types = tuple(rows), tuple(kind for kind, _ in rows.values())
        self.encoder = nn.TextEncoder(
            vocab_size, d_model, n_layers, n_heads, d_ff, max_len, dropout, activation, use_relative_pos
        )
        self.pooling = nn.Pooling("mean", d_model)
        self.dropout = nn.Dropout(dropout)
        self.heads: Any = nn.ModuleDict(
            {task: nn.Linear(d_model, count) for task, (_, count) in rows.items()}
        )
        for task in self.tasks:
            nn.initialized(self.heads[task], "xavier")

    def forward(
        self, input_ids: Tensor, task_name: str | None = None, mask: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        if task_name is not None and task_name not in self.tasks:
            raise ValueError(f"unknown task {task_name!r}: known: {', '.join(self.tasks)}")
        x = self.encoder(input_ids, mask)
        if task_name is not None:
            return self._head(task_name, x, mask)
        return {task: self._head(task, x, mask) for task in self.tasks}

    def _head(self, task: str, x: Tensor, mask: Tensor | None) -> Tensor:
        kind = self.types[self.tasks.index(task)]
        return self.heads[task](self.dropout(x if kind == "sequence" else self.pooling(x, mask)))


def read_task(task: str, settings: Mapping[str, Any]) -> tuple[str, int]:
    """The type and the number of classes of a task."""
    for key in settings:
        if key not in TASK_KEYS:
            raise ValueError(f"unknown key of task {task} {key!r}: known: {', '.join(TASK_KEYS)}")
    kind = settings.get("type", "classification")
    if kind not in TASK_TYPES:
        raise ValueError(f"unknown type of task {task} {kind!r}: known: {', '.join(TASK_TYPES)}")
    if kind != "regression" and "num_classes" not in settings:
        raise ValueError(f"task {task} lacks num_classes")
    return kind, settings.get("num_classes", 1)
