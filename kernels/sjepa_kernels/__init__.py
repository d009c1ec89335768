# SPDX-License-Identifier: Apache-2.0
"""Fused operations for joint-embedding predictive training: Triton, C++ and plain PyTorch."""

from sjepa_kernels._dispatch import use
from sjepa_kernels._version import __version__ as __version__
from sjepa_kernels.attention.op import attention, self_attention
from sjepa_kernels.augment.op import augment_clips
from sjepa_kernels.augment.reference import clip_uniforms, crop_resize
from sjepa_kernels.augment.settings import Augmentation, SkeletonTables
from sjepa_kernels.blocks.fused_mlp import fused_mlp
from sjepa_kernels.blocks.gelu_mlp import gelu_mlp
from sjepa_kernels.blocks.modules import FusedMlp, MaskTokens, ResidualLayerNorm
from sjepa_kernels.blocks.residual_norm import residual_layer_norm
from sjepa_kernels.ema import EmaPlan, ema_update_
from sjepa_kernels.losses.center import update_center_
from sjepa_kernels.losses.centered_ce import centered_softmax_cross_entropy
from sjepa_kernels.losses.crop_pairs_ce import centered_crop_cross_entropy
from sjepa_kernels.losses.koleo import koleo
from sjepa_kernels.losses.modules import (
    CenteredCropCrossEntropy,
    CenteredCrossEntropy,
    SigReg,
    VicReg,
    VisReg,
)
from sjepa_kernels.losses.sigreg import sigreg
from sjepa_kernels.losses.sinkhorn import sinkhorn_center
from sjepa_kernels.losses.soft_ce import soft_cross_entropy
from sjepa_kernels.losses.vicreg import vicreg
from sjepa_kernels.losses.visreg import visreg
from sjepa_kernels.masks.blocks import BlockMask, block_mask, block_size
from sjepa_kernels.masks.shared import TokenMask
from sjepa_kernels.masks.tokens import motion_aware_mask, random_mask
from sjepa_kernels.masks.tubes import tube_mask
from sjepa_kernels.optim.adamw import adamw_ema_
from sjepa_kernels.optim.optimizer import FusedAdamWEma
from sjepa_kernels.philox import philox4x32, uniform
from sjepa_kernels.targets import ContextualizedTargets, accumulate_normalized_
from sjepa_kernels.tokens.pack import pack_tokens
from sjepa_kernels.tokens.positions import add_positions
from sjepa_kernels.tokens.scatter import scatter_mask_tokens

__all__ = [
    "Augmentation",
    "BlockMask",
    "CenteredCropCrossEntropy",
    "CenteredCrossEntropy",
    "ContextualizedTargets",
    "EmaPlan",
    "FusedAdamWEma",
    "FusedMlp",
    "MaskTokens",
    "ResidualLayerNorm",
    "SigReg",
    "SkeletonTables",
    "TokenMask",
    "VicReg",
    "VisReg",
    "accumulate_normalized_",
    "adamw_ema_",
    "add_positions",
    "attention",
    "augment_clips",
    "block_mask",
    "block_size",
    "centered_crop_cross_entropy",
    "centered_softmax_cross_entropy",
    "clip_uniforms",
    "crop_resize",
    "ema_update_",
    "fused_mlp",
    "gelu_mlp",
    "koleo",
    "motion_aware_mask",
    "pack_tokens",
    "philox4x32",
    "random_mask",
    "residual_layer_norm",
    "scatter_mask_tokens",
    "self_attention",
    "sigreg",
    "sinkhorn_center",
    "soft_cross_entropy",
    "tube_mask",
    "uniform",
    "update_center_",
    "use",
    "vicreg",
    "visreg",
]
