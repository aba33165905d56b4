"""The handwritten digits that scikit-learn embeds: data without files."""

import numpy as np
from numpy.typing import NDArray

from fedsparse.data.subset import held_out
from fedsparse.errors import DataError

__all__ = ["read_digits"]

_TEST_SHARE = 0.2


def read_digits(generator: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
    """1,797 pictures `(n, 1, 8, 8)` uint8 of 10 classes as x, y, x_test, y_test; a fifth of each class is the test set.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the embedded digits come with scikit-learn: pip install 'fedsparse[data]'") from error
    digits = load_digits()
    x = (digits.images * (255 / 16)).round().astype(np.uint8)[:, None]  # 16 levels of ink
    y = digits.target.astype(np.int64)
    held = held_out(y, _TEST_SHARE, generator)
    return x[~held], y[~held], x[held], y[held]
