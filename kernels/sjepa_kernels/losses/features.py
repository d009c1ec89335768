# SPDX-License-Identifier: Apache-2.0
"""What the regularizers of features take: samples, of one view or of several.

Shapes: V views, N samples, D features.
"""

from torch import Tensor

from sjepa_kernels._checks import bad_value, check_float

# Rows of the kernels, of features and of directions, stay in registers.
_WIDEST = 4096


def as_views(features: Tensor, least: int = 1) -> Tensor:
    """Check features of at least so many samples, and return them as (V, N, D)."""
    if features.ndim not in (2, 3):
        raise bad_value("features", tuple(features.shape), "expected (N, D) or (V, N, D)")
    check_float("features", features)
    if features.numel() == 0:
        raise bad_value("features", tuple(features.shape), "a mean over nothing; pass samples")
    if features.shape[-2] < least:
        raise bad_value("features", tuple(features.shape), f"pass at least {least} samples")
    return features if features.ndim == 3 else features[None]


def check_width(features: Tensor, impl: str) -> None:
    """Raise ValueError for features too wide for the kernels of a chosen implementation."""
    width = features.shape[-1]
    if impl == "triton" and width > _WIDEST:
        raise bad_value("features", f"width {width}", f'up to {_WIDEST}, or impl="torch"')
