"""scikit-learn's digits, moving: Srivastava et al. 2015, arXiv:1502.04681, in small."""

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.sets import digits
from jaxarch.data.source import Batch


def load(*, size: int = 16, frames: int = 10, shown: int = 2, count: int = 2000) -> ArraySource:
    """Videos x (N, frames, size, size, 1) in [0, 1] of `shown` digits that cross the image and bounce off its edges.

    The digits of the test videos are not those of the training videos; a fifth as many videos are for testing.
    """
    source = digits.load()
    rng = np.random.default_rng(0)
    parts = [
        _videos(part["x"], n, size, frames, shown, rng)
        for part, n in ((source.train, count), (source.test, count // 5))
    ]
    return ArraySource(train=parts[0], test=parts[1], classes=0, items=frames - 1, unit="frames")


def _videos(
    images: np.ndarray, count: int, size: int, frames: int, shown: int, rng: np.random.Generator
) -> Batch:
    room = size - images.shape[1]
    chosen = images[rng.integers(0, len(images), (count, shown))]
    start = rng.integers(0, room + 1, (count, shown, 1, 2))
    speed = rng.choice([-2, -1, 1, 2], (count, shown, 1, 2))
    # Bouncing between 0 and `room` is a walk around a circle of 2 * room, folded.
    corners = (start + speed * np.arange(frames)[:, None]) % (2 * room)
    corners = np.minimum(corners, 2 * room - corners)
    videos = np.zeros((count, frames, size, size, 1), np.float32)
    for video, digit_images, paths in zip(videos, chosen, corners, strict=True):
        for image, path in zip(digit_images, paths, strict=True):
            for frame, (top, left) in zip(video, path, strict=True):
                window = frame[top : top + len(image), left : left + len(image)]
                np.maximum(window, image, out=window)
    return {"x": videos}
