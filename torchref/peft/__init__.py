"""Adapters that are put on a model from outside: LoRA and P-tuning."""

from torchref.peft.lora import LoRALayer, LoRALinear, apply_lora, lora_layers, remove_lora
from torchref.peft.prompt import P_TuningLayer, PTuningLayer

__all__ = [
    "LoRALayer",
    "LoRALinear",
    "PTuningLayer",
    "P_TuningLayer",
    "apply_lora",
    "lora_layers",
    "remove_lora",
]
