"""Whether a graph gives here what it gave where it was exported. Must not know any task."""

from __future__ import annotations

from typing import Any

import numpy as np
from aimass_serving.errors import BadBundle
from numpy.typing import NDArray


def check_golden(
    bundle: str, name: str, got: NDArray[Any], expected: NDArray[Any], *, tolerance: float
) -> None:
    """Raise `BadBundle` when what was recorded does not come out: another shape, or numbers too far off."""
    difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
    if not difference <= tolerance:  # NaN is not
        detail = f"golden {name} differ by {difference:.3g}, expected at most {tolerance:.3g}"
        raise BadBundle(bundle, detail=detail)
