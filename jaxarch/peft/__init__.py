"""Adapters that are put on a model from outside: LoRA and P-tuning."""

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
from jaxarch.peft.prompt import P_TuningLayer, PTuningLayer

__all__ = [
    "Frozen",
    "LoRALayer",
    "LoRALinear",
    "PTuningLayer",
    "P_TuningLayer",
    "apply_lora",
    "load_adapter",
    "lora_layers",
    "remove_lora",
    "save_adapter",
]
