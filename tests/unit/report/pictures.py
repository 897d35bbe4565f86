"""What is in a picture."""

import io

import numpy as np


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3), from 0 to 1."""
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))[..., :3]
