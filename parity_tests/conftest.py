"""Every test runs on the CPU, in float64, without implicit promotion, on eight virtual devices, and with the
shape annotations of layers and models checked.

`equations/` holds over the catalog and names no architecture, `witnesses/` compares with an outside truth (torch,
PyTorch Geometric, torchvision, Hugging Face, papers), and `rooms/` has one file for a room or command of jaxarch.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The suite compiles far more than it computes, so LLVM optimises only where parity asks for it; eight devices on
# two cores must wait for each other.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    )
)

import jax
import pytest
import torch
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
torch.set_num_threads(1)

_hook = install_import_hook(["jaxarch.nn", "jaxarch.models"], "beartype.beartype")
_hook.__enter__()


def pytest_configure(config):
    from jaxarch.parity import jax_side

    # The least that fuses as training does: from here on the gradients are lost that `test_maxima.py` shows.
    jax_side.COMPILER_OPTIONS = {"xla_backend_optimization_level": 1}


@pytest.fixture
def first_devices(monkeypatch):
    """A smaller mesh takes the first devices: a step for one compiles in half the time."""
    from jaxarch.parallel import mesh
    from jaxarch.train import plan

    monkeypatch.setattr(
        plan, "make_mesh", lambda axes: mesh.make_mesh(axes, jax.devices()[: mesh.size(axes)])
    )


def pytest_generate_tests(metafunc):
    """`case` runs over the parity cases of the catalog, `name` over its architectures."""
    from jaxarch import catalog, parity

    own = {n for m in metafunc.definition.iter_markers("parametrize") for n in str(m.args[0]).split(",")}
    if "case" in metafunc.fixturenames and "case" not in own:
        found = parity.cases(catalog.list_models())
        metafunc.parametrize("case", found, ids=[f"{c.name}-{c.variant}" for c in found])
    if "name" in metafunc.fixturenames and "name" not in own:
        metafunc.parametrize("name", catalog.list_models())
