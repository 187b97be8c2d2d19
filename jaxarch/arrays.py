"""Conversion between arrays of numpy and JAX and tensors of torch, bit for bit."""

from typing import Any

import ml_dtypes
import numpy as np


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor or an array as numpy; bfloat16, which `.numpy()` does not know, by its bits."""
    if type(value).__module__.split(".")[0] == "torch":
        import torch

        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    return np.asarray(value)


def as_tensor(value: np.ndarray) -> Any:
    """A numpy array as a torch tensor of the same bits, on the CPU."""
    import torch

    value = np.array(value, order="C")  # torch must own writable memory
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)
