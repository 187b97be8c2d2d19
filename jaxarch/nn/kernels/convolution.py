"""The convolution of `Conv1d` and `Conv2d` as a bilinear primitive.

An output, an image's gradient and a kernel's gradient are each bilinear in the other two, so three primitives
are closed under differentiation of every order and mode. All lower to `jax.lax.conv_general_dilated` and its
transposes, except in programs of one CPU: there `convolution_cpu` is many times faster than XLA's loops.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.kernels import convolution_cpu
from jaxarch.nn.kernels.convolution_cpu import Rule
from jaxarch.nn.kernels.switches import is_enabled
from jaxarch.nn.kernels.windows import Axes, Window, positions

DIMENSIONS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def convolve(
    x: Float[Array, "b *space i"],
    kernel: Float[Array, "*window j o"],
    stride: Axes,
    padding: tuple[tuple[int, int], ...],
    dilation: Axes | None = None,
    groups: int = 1,
) -> Float[Array, "b *positions o"]:
    """Cross-correlation of a signal or image with a kernel of i / groups channels, as torch's convolutions.

    Raises:
        DataError: image and kernel of two dtypes.
    """
    if x.dtype != kernel.dtype:
        raise DataError(f"x is {x.dtype}, the kernel {kernel.dtype}: cast one to the other's dtype")
    window = Window(
        tuple(stride),
        tuple((before, after) for before, after in padding),
        dilation or (1,) * len(stride),
        groups,
    )
    counts = (
        positions(n + sum(pads), k, s, d)
        for n, k, s, pads, d in zip(x.shape[1:-1], kernel.shape, *window[:3], strict=False)
    )
    static: dict[str, Any] = {"window": window, "shape": (len(x), *counts, kernel.shape[-1])}
    # Within shard_map only JAX's own convolution knows which devices its gradients are summed over; volumes have
    # no kernel of their own.
    if x.ndim > 4 or not is_enabled("convolution") or jax.sharding.get_abstract_mesh().manual_axes:
        return plain_output(x, kernel, **static)
    return _output.bind(x, kernel, **static)


def plain_output(
    x: Float[Array, "b *space i"], kernel: Float[Array, "*window j o"], window: Window, shape: Axes
) -> Float[Array, "b *positions o"]:
    """The convolution by XLA."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window.stride,
        window.padding,
        rhs_dilation=window.dilation,
        feature_group_count=window.groups,
        dimension_numbers=DIMENSIONS[x.ndim - 2],
    )


def plain_image_gradient(
    y: Float[Array, "b *positions o"], kernel: Float[Array, "*window j o"], window: Window, shape: Axes
) -> Float[Array, "b *space i"]:
    """The gradient with respect to the image of the given shape, by XLA; y is the output's gradient."""
    forward = partial(plain_output, kernel=kernel, window=window, shape=y.shape)
    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


def plain_kernel_gradient(
    x: Float[Array, "b *space i"], y: Float[Array, "b *positions o"], window: Window, shape: Axes
) -> Float[Array, "*window j o"]:
    """The gradient with respect to the kernel of the given shape, by XLA; y is the output's gradient."""
    forward = partial(plain_output, x, window=window, shape=y.shape)
    return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


@cache
def _compiled(primitive: Primitive, **static: Any) -> Callable[..., Array]:
    return jax.jit(partial(primitive.bind, **static))


def _primitive(name: str, plain: Callable[..., Array], on_cpu: Rule) -> Primitive:
    """A primitive of two arrays; its result has the first one's dtype and the shape of its parameter."""
    primitive = Primitive(name)

    def on_one_cpu(a: Array, b: Array, **static: Any) -> Array:
        result = on_cpu(a, b, **static)
        return plain(a, b, **static) if result is None else result

    def lower_for_cpu(context: Any, *operands: Any, **static: Any) -> Any:
        # The CPU's loops run over the batch, which a partitioner would have to gather first.
        single = getattr(context.module_context.axis_context, "num_devices", None) == 1
        lower = mlir.lower_fun(on_one_cpu if single else plain, multiple_results=False)
        return lower(context, *operands, **static)

    def batched(args: Any, axes: Any, **static: Any) -> tuple[Array, int]:
        return jax.vmap(partial(plain, **static), in_axes=axes)(*args), 0

    primitive.def_impl(lambda *args, **static: _compiled(primitive, **static)(*args))
    primitive.def_abstract_eval(lambda a, b, *, window, shape: a.update(shape=shape))
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, lower_for_cpu, platform="cpu")
    return primitive


_output = _primitive("convolution", plain_output, convolution_cpu.output)
_image = _primitive("convolution_image_gradient", plain_image_gradient, convolution_cpu.image_gradient)
_kernel = _primitive("convolution_kernel_gradient", plain_kernel_gradient, convolution_cpu.kernel_gradient)
PRIMITIVES = (_output, _image, _kernel)

ad.defbilinear(
    _output,
    lambda ct, x, kernel, *, window, shape: _image.bind(ct, kernel, window=window, shape=x.aval.shape),
    lambda ct, x, kernel, *, window, shape: _kernel.bind(x, ct, window=window, shape=kernel.aval.shape),
)
ad.defbilinear(
    _image,
    lambda ct, y, kernel, *, window, shape: _output.bind(ct, kernel, window=window, shape=y.aval.shape),
    lambda ct, y, kernel, *, window, shape: _kernel.bind(ct, y, window=window, shape=kernel.aval.shape),
)
ad.defbilinear(
    _kernel,
    lambda ct, x, y, *, window, shape: _image.bind(y, ct, window=window, shape=x.aval.shape),
    lambda ct, x, y, *, window, shape: _output.bind(x, ct, window=window, shape=y.aval.shape),
)


def flops(primitive: str, shapes: Sequence[Axes], shape: Axes) -> int:
    """FLOPs of one of these primitives by its name, its two operands' shapes and its result's."""
    output, kernel = {
        "convolution": (shape, shapes[1]),
        "convolution_image_gradient": (shapes[0], shapes[1]),
        "convolution_kernel_gradient": (shapes[1], shape),
    }[primitive]
    return 2 * math.prod(output) * math.prod(kernel[:-1])
