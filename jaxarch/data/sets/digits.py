"""scikit-learn's handwritten digits."""

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.sets.cifar10 import shifted
from jaxarch.data.source import Batch
from jaxarch.errors import UsageError, require


def load(*, flatten: bool = False, upscale: int = 1, signed: bool = False, shift: int = 0) -> ArraySource:
    """scikit-learn's 1,797 digits of 8 by 8, scaled to [0, 1]; a fifth of each class is for testing.

    `upscale` repeats each pixel that many times along both axes, for models that halve the image often;
    `signed` pixels are in [-1, 1], as generators with a tanh give them. Training images are moved by up to
    `shift` pixels, of the upscaled image, along both axes.

    Raises:
        UsageError: a shift below 0, or of flat digits; scikit-learn is not installed.
    """
    if shift < 0 or (shift and flatten):
        raise UsageError(f"shift {shift} must be at least 0, and 0 for flat digits")
    require("sklearn", "recipes", "data digits")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    if not flatten:
        x = x.reshape(-1, 8, 8, 1).repeat(upscale, 1).repeat(upscale, 2)
    if signed:
        x = 2 * x - 1
    parts = train_test_split(x, labels.astype(np.int32), test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = parts
    train, test = {"x": train_x, "label": train_y}, {"x": test_x, "label": test_y}
    black = np.array(-1 if signed else 0, np.float32)

    def augment(batch: Batch, rng: np.random.Generator) -> Batch:
        return {**batch, "x": shifted(batch["x"], shift, black, rng)}

    return ArraySource(train=train, test=test, classes=10, unit="images", augment=augment if shift else None)
