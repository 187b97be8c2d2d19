"""The same model in PyTorch and in Flax NNX, and the proof that it is the same.

Importing this package imports no torch; what needs torch imports it when called.
"""

from jaxarch.catalog import MODEL_CONFIGS, ModelFactory, create_model, list_models

__all__ = ["MODEL_CONFIGS", "ModelFactory", "create_model", "list_models"]
__version__ = "0.1.0"
