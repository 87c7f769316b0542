"""Types of NumPy arrays by what they hold; a name's suffix (`codes_NK`) tells the shape."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.float16]
"""As vectors and codes are stored."""
Singles = npt.NDArray[np.float32]
"""As nets compute."""
Floats = npt.NDArray[np.float64]
"""As metrics are computed."""
AnyFloats = npt.NDArray[np.floating]
