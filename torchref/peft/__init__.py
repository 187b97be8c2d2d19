"""Adapters added to any model: LoRA and P-tuning."""

from torchref.peft.lora import LoRALayer, LoRALinear, apply_lora, lora_layers, remove_lora
from torchref.peft.prompt import P_TuningLayer, PromptEmbedding, PTuningLayer, apply_prompt, remove_prompt

__all__ = [
    "LoRALayer",
    "LoRALinear",
    "PTuningLayer",
    "P_TuningLayer",
    "PromptEmbedding",
    "apply_lora",
    "apply_prompt",
    "lora_layers",
    "remove_lora",
    "remove_prompt",
]
