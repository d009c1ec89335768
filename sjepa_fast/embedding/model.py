# SPDX-License-Identifier: Apache-2.0
"""The model that a user holds: NumPy clips in, NumPy features out.

Shapes: N clips, M bodies, T frames, V joints, S segments, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sjepa_fast.build import feature_bytes
from sjepa_fast.config.schema import Pool, RuntimeConfig, TrainConfig
from sjepa_fast.data.clips import ResidentClips, pack_clips
from sjepa_fast.embedding.arrays import (
    Clips,
    Named,
    checked_clip,
    chosen_layout,
    named_clips,
    windows,
)
from sjepa_fast.embedding.content import Content, fitting_encoder
from sjepa_fast.embedding.hub import push_folder
from sjepa_fast.embedding.portable import write_portable
from sjepa_fast.embedding.saved import write_model
from sjepa_fast.errors import InputError, nearest
from sjepa_fast.evaluation.features import encode_tokens, pool_tokens
from sjepa_fast.models.encoder import SkeletonTransformer
from sjepa_fast.runtime.device import check_fits, pick_device, settled_dtype
from sjepa_fast.skeletons import SkeletonLayout

Features = NDArray[np.float32]
# Larger ones leave the caches: 256 clips at a time took 1.4 times the processor time.
BATCH = 64


class Model:
    """A trained encoder, ready to embed clips; `sjepa_fast.load` returns one.

    Clips are arrays (T, V, 3) or (M, T, V, 3) of any number of frames, in metres with y up. They
    are normalised, cropped and resized as the run's own evaluation does, so features equal those
    that `sjepa_fast.evaluate` scores. A clip of fewer bodies than the model takes is padded with
    absent ones, as the papers do.

    Clips of another skeleton use the positions of the same body parts (`sjepa_fast/joint_map.py`);
    their pooled features have as many joints as the clips.

    Args:
        content: What the encoder is: configuration, joints, weights, where they come from.
        device: auto, cpu, cuda or cuda:0.
        dtype: Compute precision, float32 or bfloat16; auto: bfloat16 on a GPU that has it, else
            that of the training.
    """

    def __init__(self, content: Content, *, device: str = "auto", dtype: str = "auto") -> None:
        if dtype not in ("auto", "float32", "bfloat16"):
            raise InputError("dtype", dtype, "use auto, float32 or bfloat16")
        self.content = content
        self.device = pick_device(RuntimeConfig(device=device), 0)
        settled = settled_dtype(dtype, self.device)
        recorded = torch.bfloat16 if content.dtype == "bfloat16" else torch.float32
        self.dtype = recorded if settled is None else settled[0]
        self._encoders: dict[tuple[str, ...], SkeletonTransformer] = {}
        self.encoder_for(content.layout)

    def __repr__(self) -> str:
        model = self.content.config.model
        return (
            f"Model({self.content.origin}: {self.layout.name}, width {model.width}, "
            f"{model.depth} blocks, {self.config.data.frames} frames, {self.device})"
        )

    @property
    def config(self) -> TrainConfig:
        """The configuration of the run."""
        return self.content.config

    @property
    def layout(self) -> SkeletonLayout:
        """The joints that the encoder was trained on."""
        return self.content.layout

    def encoder_for(self, layout: SkeletonLayout) -> SkeletonTransformer:
        """Return the network for the joints of a layout, frozen; layouts share their weights."""
        if layout.joints not in self._encoders:
            encoder = fitting_encoder(self.content, layout).to(self.device)
            self._encoders[layout.joints] = encoder
        return self._encoders[layout.joints]

    def embed(
        self,
        clips: Clips,
        pool: Pool = "mean",
        layout: str | SkeletonLayout | None = None,
        *,
        bodies: int | None = None,
        batch_size: int = BATCH,
    ) -> Features:
        """Return one row of features for each clip, (N, features), float32.

        >>> import numpy as np, sjepa_fast
        >>> model = sjepa_fast.load("tiny")
        >>> clip = np.random.default_rng(0).normal(size=(50, 25, 3))
        >>> model.embed([clip, clip[:30]], layout="ntu25").shape
        (2, 64)

        Args:
            clips: One clip, or an iterable of them, such as a list or a generator.
            pool: Pooling of the tokens, as `sjepa_fast.evaluate` has it. mean: over segments and
                joints; joint: over segments; pyramid: that of the whole time, its halves and its
                quarters; full: none.
            layout: Name of the clips' layout, or the layout; default: the model's own.
            bodies: Persons per clip; default: the run's.
            batch_size: Clips that are encoded at a time. Another number changes the last bits.

        Returns:
            Features of width D for mean, V*D for joint, 7*V*D for pyramid, S*V*D for full.

        Raises:
            InputError: A clip or an argument cannot be used; a ValueError that says what to do.
        """
        named = named_clips(clips)
        return self.embed_named(named, pool, layout, bodies=bodies, batch_size=batch_size)

    def embed_named(
        self,
        clips: Named,
        pool: Pool = "mean",
        layout: str | SkeletonLayout | None = None,
        *,
        bodies: int | None = None,
        batch_size: int = BATCH,
    ) -> Features:
        """Do what `embed` does for pairs of name and clip; messages call a clip by its name."""
        _check_pool(pool)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError("batch_size", batch_size, "give a whole number of clips, at least 1")
        skeleton = chosen_layout(layout, self.layout)
        encoder, config = self.encoder_for(skeleton), self._config(bodies)
        parts: list[Features] = []
        for packed in self._batches(clips, skeleton, config, batch_size):
            ids = torch.arange(len(packed.labels_N), device=self.device)
            tokens = encode_tokens(encoder, packed, ids, config, self.dtype)
            parts.append(pool_tokens(tokens, pool, skeleton.num_joints).cpu().numpy())
        if not parts:
            raise InputError("clips", "none", "give at least one clip")
        return np.concatenate(parts)

    def embed_windows(
        self,
        stream: ArrayLike,
        window: int,
        stride: int,
        pool: Pool = "mean",
        layout: str | SkeletonLayout | None = None,
        *,
        bodies: int | None = None,
        batch_size: int = BATCH,
    ) -> Features:
        """Embed a long recording, (T, V, 3) or (M, T, V, 3), window by window.

        Each window is normalised as a clip of its own.

        >>> import numpy as np, sjepa_fast
        >>> stream = np.random.default_rng(0).normal(size=(300, 22, 3))
        >>> sjepa_fast.load("tiny").embed_windows(stream, window=60, stride=30).shape
        (9, 64)

        Args:
            stream: The recording.
            window: Frames of a window.
            stride: Frames from the begin of one window to that of the next.
            pool: As in `embed`.
            layout: As in `embed`.
            bodies: As in `embed`.
            batch_size: As in `embed`.

        Returns:
            Row i has the features of the frames from i * stride to i * stride + window; frames
            behind the last whole window are in no row.

        Raises:
            InputError: As in `embed`, or the recording is shorter than a window.
        """
        cut = windows(stream, window, stride, chosen_layout(layout, self.layout))
        names = (f"frames {i * stride} to {i * stride + window}" for i in range(len(cut)))
        named = zip(names, cut, strict=True)
        return self.embed_named(named, pool, layout, bodies=bodies, batch_size=batch_size)

    def tokens(self, clip: ArrayLike, layout: str | SkeletonLayout | None = None) -> Features:
        """Return the features of one clip's tokens: (M, S, V, D) float32, of the bodies it has.

        >>> import numpy as np, sjepa_fast
        >>> clip = np.random.default_rng(0).normal(size=(50, 22, 3))
        >>> sjepa_fast.load("tiny").tokens(clip).shape
        (1, 8, 22, 64)

        Segment s is of the frames s * l to (s + 1) * l of the clip as the network sees it, resized
        to `config.data.frames`, with l = `config.model.segment_length`. Raises InputError as
        `embed`.
        """
        skeleton = chosen_layout(layout, self.layout)
        array = checked_clip("the clip", clip, skeleton)
        config, encoder = self._config(len(array)), self.encoder_for(skeleton)
        packed = pack_clips([array], skeleton, config.data, self.device)
        ids = torch.zeros(1, dtype=torch.int64, device=self.device)
        found = encode_tokens(encoder, packed, ids, config, self.dtype)[0]
        shape = (len(array), -1, skeleton.num_joints, config.model.width)
        return found.reshape(shape).cpu().numpy()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `config.json` and a model card; `sjepa_fast.load` reads them.

        The folder appears when it is whole. Raises InputError if it exists and is not empty, or
        cannot be written.
        """
        write_model(self.content, Path(folder))

    def export(
        self,
        file: str | Path,
        pool: Pool = "mean",
        layout: str | SkeletonLayout | None = None,
        *,
        bodies: int | None = None,
    ) -> float:
        """Write the model as one file that needs no `sjepa_fast`: raw clips in, features out.

        >>> import sjepa_fast
        >>> largest_difference = sjepa_fast.load("tiny").export("tiny.onnx")  # doctest: +SKIP

        Normalisation, crop and resizing are inside, but no check of the input. The input is `clips`
        (N, bodies, T, V, 3) in float32, with N and T free and absent bodies zero; the outputs are
        `features`, as `embed` returns them, and `tokens` (N, bodies, S, V, D). It computes in
        float32. The file says all this, in JSON under the name `sjepa_fast`.

        Args:
            file: A `.pt2` file, which `torch.export.load` reads, or an `.onnx` file, which needs
                the extra `export`; an existing one is replaced.
            pool: As in `embed`.
            layout: As in `embed`.
            bodies: As in `embed`.

        Returns:
            The largest difference of its features from those of `embed` in float32, on clips of
            noise, as a share of the largest feature.

        Raises:
            InputError: An argument cannot be used, a package is missing, or the file cannot be
                written.
            RunStopped: The file's features are not the model's; then none is written.
        """
        _check_pool(pool)
        skeleton, config = chosen_layout(layout, self.layout), self._config(bodies)
        exact = Model(self.content, device="cpu", dtype="float32")
        return write_portable(
            self.content,
            Path(file),
            lambda clips: exact.embed(clips, pool, skeleton, bodies=bodies),
            layout=skeleton,
            pool=pool,
            bodies=config.data.bodies,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload a model of sjepa_fast",
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face Hub, and return its address.

        Raises InputError if huggingface_hub is not installed, with the command that installs it, or
        the Hub refuses.
        """
        return push_folder(
            lambda folder: write_model(self.content, folder),
            repo_id,
            private=private,
            token=token,
            message=commit_message,
        )

    def _config(self, bodies: int | None) -> TrainConfig:
        if bodies is None:
            return self.config
        if isinstance(bodies, bool) or not isinstance(bodies, int) or bodies < 1:
            raise InputError("bodies", bodies, "give a whole number of persons, at least 1")
        data = dataclasses.replace(self.config.data, bodies=bodies)
        return dataclasses.replace(self.config, data=data)

    def _batches(
        self, clips: Named, layout: SkeletonLayout, config: TrainConfig, size: int
    ) -> Iterator[ResidentClips]:
        most = config.data.bodies
        left = iter(clips)
        while chunk := list(islice(left, size)):
            arrays: list[NDArray[Any]] = []
            for name, values in chunk:
                array = checked_clip(name, values, layout)
                if len(array) > most:
                    fix = f"give several clips as a list, or pass bodies={len(array)}"
                    value = f"{name} has {len(array)} bodies, the model takes {most}"
                    raise InputError("bodies", value, fix)
                arrays.append(array)
            needed = feature_bytes(config, layout, len(arrays) * most)
            check_fits("batch_size", needed, self.device, "encode fewer clips at a time")
            yield pack_clips(arrays, layout, config.data, self.device)


def _check_pool(pool: str) -> None:
    if pool not in get_args(Pool):
        raise InputError("pool", pool, nearest(str(pool), list(get_args(Pool))))
