# SPDX-License-Identifier: Apache-2.0
"""A model as one file for other runtimes: raw clips in, features out, without this library.

Shapes: N clips, M bodies, T frames, V joints, 3 coordinates (metres, y up), S segments, D width,
R rows (all bodies' frames packed).
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sjepa_fast._version import __version__
from sjepa_fast.config.schema import Pool, TrainConfig
from sjepa_fast.data.clips import ResidentClips
from sjepa_fast.embedding.content import Content, fitting_encoder
from sjepa_fast.embedding.normalizing import normalize_batch
from sjepa_fast.errors import InputError, RunStopped
from sjepa_fast.evaluation.features import encode_tokens, pool_tokens
from sjepa_fast.extras import require
from sjepa_fast.runtime.files import new_file
from sjepa_fast.skeletons import SkeletonLayout
from sjepa_kernels import use

if TYPE_CHECKING:
    # Takes as long to import as the rest of a command.
    from torch.export import ExportedProgram

# Name of the description in a file, and what comes in and out.
METADATA = "sjepa_fast"
INPUT, OUTPUTS = "clips", ("features", "tokens")
# Largest difference from `Model.embed`, as a share of the largest feature, with which a file is
# written. Seen is 1e-6.
MOST_APART = 1e-4
# Shapes of the clips by which a file is checked: how many, and how long.
CHECKED = ((1, 50), (3, 7))

Arrays = Sequence[NDArray[np.float32]]
Runner = Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


class Embedding(nn.Module):
    """What `Model.embed` does to clips that are packed in one array.

    Args:
        content: The encoder with its configuration.
        layout: Joints of the clips.
        pool: Pooling of the tokens.
        bodies: M, persons per clip; absent ones are zero.
    """

    def __init__(self, content: Content, layout: SkeletonLayout, pool: Pool, bodies: int) -> None:
        super().__init__()
        data = dataclasses.replace(content.config.data, bodies=bodies)
        self.config: TrainConfig = dataclasses.replace(content.config, data=data)
        self.layout, self.pool = layout, pool
        self.encoder = fitting_encoder(content, layout)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled features (N, features) and tokens (N, M, S, V, D) of clips (N, M, T, V, 3).

        All clips have T frames; bodies that are all zero are absent.
        """
        count, bodies, frames, joints, _ = clips.shape
        x = normalize_batch(clips, self.layout, self.config.data)
        ids = torch.arange(count, device=x.device)
        packed = ResidentClips(
            joints_RVC=x.flatten(0, 2),
            offsets_N=ids * (bodies * frames),
            frames_N=torch.full_like(ids, frames),
            bodies_N=torch.full_like(ids, bodies),
            labels_N=ids,
            layout=self.layout,
            max_bodies=bodies,
        )
        tokens = encode_tokens(self.encoder, packed, ids, self.config, torch.float32)
        return pool_tokens(tokens, self.pool, joints), tokens.unflatten(2, (-1, joints))


class Format(NamedTuple):
    """A kind of file: what it needs beside PyTorch, and how it is made and run."""

    packages: tuple[str, ...]
    make: Callable[[ExportedProgram, str], bytes]
    open: Callable[[bytes], Runner]


def describe(content: Content, embedding: Embedding) -> dict[str, Any]:
    """Say what a file takes and gives, and where it comes from, in plain values."""
    data, length = embedding.config.data, embedding.config.model.segment_length
    segments, joints = data.frames // length, embedding.layout.num_joints
    width = embedding.config.model.width
    inside = ["center", "align_spine", "align_yaw", "normalize_size", "eval_crop", "stream"]
    return {
        "library_name": "sjepa_fast",
        "version": __version__,
        "model": content.origin,
        "objective": content.config.objective.kind,
        "encoder": content.encoder,
        "step": content.step,
        "trained_on": content.trained_on,
        "layout": embedding.layout.to_dict(),
        "input": {
            "name": INPUT,
            "shape": ["clips", data.bodies, "frames", joints, 3],
            "dtype": "float32",
            "unit": "metre, y up",
            "absent_bodies": "zero",
        },
        "inside": {key: getattr(data, key) for key in inside}
        | {"resized_to_frames": data.frames, "sampling": data.sampling, "whiten": data.whiten},
        "outputs": {
            "features": {"pool": embedding.pool, "averaged_over_bodies": data.bodies},
            "tokens": {"shape": ["clips", data.bodies, segments, joints, width]},
        },
        "segment_length": length,
    }


def write_portable(
    content: Content,
    path: Path,
    embed: Callable[[Arrays], NDArray[np.float32]],
    *,
    layout: SkeletonLayout,
    pool: Pool,
    bodies: int,
) -> float:
    """Write a model as a file of `FORMATS`, once its features are those of the library.

    Args:
        content: The encoder with its configuration.
        path: File to write, with the ending of a format; an existing one is replaced.
        embed: What `Model.embed` returns for clips, on a CPU in float32.
        layout: Joints of the clips.
        pool: Pooling of the first output.
        bodies: Persons per clip.

    Returns:
        The largest difference from `embed` on clips of noise, as a share of the largest feature.

    Raises:
        InputError: The ending is unknown, a package is missing, or the file cannot be written.
        RunStopped: The features differ; then nothing is written.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise InputError("out", path, f"name a .{' or .'.join(FORMATS)} file")
    form = FORMATS[kind]
    require("format", kind, *form.packages)
    try:
        # Made before the work: a folder that cannot be written is found at once.
        with new_file(path) as temporary:
            embedding = Embedding(content, layout, pool, bodies)
            whole = form.make(trace(embedding), json.dumps(describe(content, embedding)))
            apart = _apart(form.open(whole), embed, bodies, layout.num_joints)
            if not apart <= MOST_APART:
                reason = f"features of {kind} are {apart:.1e} from the library's"
                raise RunStopped(f"{path}: {reason}; nothing was written")
            temporary.write_bytes(whole)
    except OSError as error:
        value = f"{path} cannot be written ({error.strerror or error})"
        raise InputError("out", value, "name a file in a folder that can be written") from error
    return apart


def trace(embedding: Embedding) -> ExportedProgram:
    """Trace a model for any number of clips and frames, with PyTorch's own operations alone."""
    import torch.export

    bodies, joints = embedding.config.data.bodies, embedding.layout.num_joints
    example = torch.ones(2, bodies, 24, joints, 3)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    with use("torch"), torch.no_grad(), _silent():
        program = torch.export.export(embedding, (example,), dynamic_shapes={INPUT: sizes})
        # Regions without gradient or autocast become one graph.
        whole: ExportedProgram = program.run_decompositions({})
    # It holds names of files on this machine.
    for node in whole.graph.nodes:
        node.meta.pop("stack_trace", None)
    return whole


def _apart(
    run: Runner, embed: Callable[[Arrays], NDArray[np.float32]], bodies: int, joints: int
) -> float:
    """Compare a file's features with the library's, which has each clip by itself."""
    worst = 0.0
    for count, frames in CHECKED:
        draw = np.random.default_rng(count)
        clips = draw.normal(scale=0.4, size=(count, bodies, frames, joints, 3)).astype(np.float32)
        clips[0, 1:] = 0
        expected = embed(list(clips))
        difference = np.abs(run(clips)[0] - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference)) if np.isfinite(difference) else np.inf
    return worst


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back what the exporters say of themselves; their errors still come."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _make_pt2(program: ExportedProgram, text: str) -> bytes:
    import torch.export

    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{METADATA}.json": text})
    return file.getvalue()


def _open_pt2(content: bytes) -> Runner:
    import torch.export

    module = torch.export.load(io.BytesIO(content)).module()

    def run(clips: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(clips))]

    return run


def _make_onnx(program: ExportedProgram, text: str) -> bytes:
    import torch.onnx

    with _silent():
        made = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    for node in made.model.graph.all_nodes():
        # Names of modules and of this machine's files.
        node.metadata_props.clear()
    made.model.metadata_props[METADATA] = text
    whole: bytes = made.model_proto.SerializeToString()
    return whole


def _open_onnx(content: bytes) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(clips: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(list(OUTPUTS), {INPUT: clips})
        return found

    return run


FORMATS = {
    "pt2": Format((), _make_pt2, _open_pt2),
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), _make_onnx, _open_onnx),
}
