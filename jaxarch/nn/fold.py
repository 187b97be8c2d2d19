"""Images as patches and back, channels last; the batch is optional."""

from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.conv import Size, per_axis
from jaxarch.nn.kernels.windows import positions, span, window_slices
from jaxarch.nn.module import Module
from jaxarch.nn.unbatched import unbatched


class _Patches(Module):
    """The base class of what cuts windows out of an image or puts them back."""

    def _set(self, kernel_size: Size, dilation: Size, padding: Size, stride: Size) -> None:
        self.kernel_size = per_axis(kernel_size, 2, "kernel_size")
        self.dilation = per_axis(dilation, 2, "dilation")
        self.padding = per_axis(padding, 2, "padding")
        self.stride = per_axis(stride, 2, "stride")

    def _positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """How many windows there are along each axis of an image of this size."""
        counts = []
        for n, k, s, p, d in zip(
            size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        ):
            if n + 2 * p < span(k, d):
                raise DataError(f"an axis of {n} with padding {p} is smaller than the window of {span(k, d)}")
            counts.append(positions(n + 2 * p, k, s, d))
        return tuple(counts)


class Unfold(_Patches):
    """torch.nn.Unfold: every window as a row. (B, H, W, C) -> (B, L, C * K), K pixels in each of L windows.

    A row is in torch's order, the channel before the pixel in the window.

    Raises:
        DataError: in the call, another number of axes, or an image smaller than the window.
    """

    def __init__(self, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1):
        self._set(kernel_size, dilation, padding, stride)

    @unbatched(3)
    def __call__(self, input: Float[Array, "*b h w c"]) -> Float[Array, "*b l k"]:
        self._positions(input.shape[1:3])
        x = jnp.pad(input, ((0, 0), *((p, p) for p in self.padding), (0, 0)))
        patches = jnp.stack(window_slices(x, self.kernel_size, self.stride, self.dilation), -1)
        return patches.reshape(len(x), -1, patches.shape[-2] * patches.shape[-1])


class Fold(_Patches):
    """torch.nn.Fold: windows summed where they overlap. (B, L, C * K) -> (B, *output_size, C), as `Unfold` cuts them.

    Raises:
        DataError: in the call, another number of axes, or rows that are not the windows of an image of output_size.
    """

    def __init__(
        self,
        output_size: Size,
        kernel_size: Size,
        dilation: Size = 1,
        padding: Size = 0,
        stride: Size = 1,
    ):
        self.output_size = per_axis(output_size, 2, "output_size")
        self._set(kernel_size, dilation, padding, stride)

    @unbatched(2)
    def __call__(self, input: Float[Array, "*b l k"]) -> Float[Array, "*b h w c"]:
        (rows, columns), (k, l) = self._positions(self.output_size), self.kernel_size
        if input.shape[1] != rows * columns or input.shape[2] % (k * l):
            raise DataError(
                f"x of shape {input.shape} must be (B, {rows * columns}, a multiple of {k * l}) "
                f"for an image of {self.output_size}"
            )
        x = input.reshape(len(input), rows, columns, -1, k, l)
        height, width = (n + 2 * p for n, p in zip(self.output_size, self.padding, strict=True))
        total = jnp.zeros((len(input), height, width, x.shape[3]), input.dtype)
        for i in range(k):
            for j in range(l):
                ends = [
                    (offset * d, n - offset * d - (count - 1) * s - 1, s - 1)
                    for offset, d, n, count, s in zip(
                        (i, j), self.dilation, (height, width), (rows, columns), self.stride, strict=True
                    )
                ]
                spread = ((0, 0, 0), *ends, (0, 0, 0))
                total = total + lax.pad(x[..., i, j], jnp.zeros((), input.dtype), spread)
        (top, left), (h, w) = self.padding, self.output_size
        return total[:, top : top + h, left : left + w]
