# SPDX-License-Identifier: Apache-2.0
"""Purposes of random numbers: the last Philox counter, which keeps the draws of a clip apart.

All purposes are listed here, so that no two uses share random numbers. Further masks of a clip have
the numbers after that of its first.
"""

# Frames of the training crop: `augment_clips`.
CROP = 0
# Geometry of the view: `augment_clips`.
VIEW = 1
# Mask r of a clip: MASK + r.
MASK = 2
# Which masked tokens of mask r are predicted: PREDICT + r.
PREDICT = 1 << 16
# Random directions of `sigreg` and `visreg`; the clip's place is the direction's.
DIRECTION = 1 << 17
# Size of a step's blocks: `block_size`.
BLOCK_SIZE = DIRECTION + 1
# Which joints of the view are missing: `augment_clips`.
MISSING = DIRECTION + 2
