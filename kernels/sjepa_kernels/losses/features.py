"""What the regularizers of features take: samples, of one view or of several.

Shapes: V views, N samples, D features.
"""

from torch import Tensor

from sjepa_kernels._checks import bad_value, check_float


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
