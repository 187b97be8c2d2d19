"""Adapters added to any model: LoRA and P-tuning."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.peft.lora import (
    Frozen,
    LoRALayer,
    LoRALinear,
    apply_lora,
    load_adapter,
    lora_layers,
    remove_lora,
    save_adapter,
)
from jaxarch.peft.prompt import P_TuningLayer, PromptEmbedding, PTuningLayer, apply_prompt, remove_prompt

__all__ = [
    "Frozen",
    "LoRALayer",
    "LoRALinear",
    "PTuningLayer",
    "P_TuningLayer",
    "PromptEmbedding",
    "apply_lora",
    "apply_prompt",
    "load_adapter",
    "lora_layers",
    "remove_lora",
    "remove_prompt",
    "save_adapter",
]
