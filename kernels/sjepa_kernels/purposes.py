"""What random numbers are for: the last Philox counter, which keeps the draws of a clip apart.

Every purpose is here, so that no two uses can share numbers. A clip's further masks take the
numbers behind the first one's.
"""

# Frames of the training crop: `augment_clips`.
CROP = 0
# Geometry of the view: `augment_clips`.
VIEW = 1
# Mask r of a clip: MASK + r.
MASK = 2
# Which masked tokens of mask r are predicted: PREDICT + r.
PREDICT = 1 << 16
