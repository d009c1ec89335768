# SPDX-License-Identifier: Apache-2.0
"""`python -m sjepa_fast.convert mamp FILE.pth OUT`: makes a run folder from a MAMP checkpoint.

Reads MAMP's PyTorch pre-training checkpoints. From checkpoints of its fine-tuning or linear
evaluation, and of other code with the same names, it takes the encoder only. `sjepa_fast.evaluate`
scores the folder like any run.

Shapes: S segments, V joints, l frames per segment, C coordinates, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from sjepa_fast import cli
from sjepa_fast.config import schema
from sjepa_fast.config.files import to_yaml
from sjepa_fast.config.validation import validate
from sjepa_fast.errors import InputError
from sjepa_fast.models.predictor import Predictor
from sjepa_fast.names import say
from sjepa_fast.objectives.mamp import MAMP
from sjepa_fast.runtime.checkpoint import Contents, write_checkpoint
from sjepa_fast.runtime.files import new_folder, write_json, write_text
from sjepa_fast.runtime.foreign import Foreign, Stored
from sjepa_fast.skeletons import NTU25

# Encoder and predictor parts outside the blocks: our names to MAMP's.
_ENCODER = {
    "embed.proj.weight": "joints_embed.proj.weight",
    "embed.proj.bias": "joints_embed.proj.bias",
    "embed.temporal": "temp_embed",
    "embed.spatial": "pos_embed",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_PREDICTOR = {
    "mask_token": "mask_token",
    "proj_in.weight": "decoder_embed.weight",
    "proj_in.bias": "decoder_embed.bias",
    "temporal": "decoder_temp_embed",
    "spatial": "decoder_pos_embed",
    "norm.weight": "decoder_norm.weight",
    "norm.bias": "decoder_norm.bias",
    "proj_out.weight": "decoder_pred.weight",
    "proj_out.bias": "decoder_pred.bias",
}
# Layers of a block: our names to MAMP's.
_LAYERS = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class ConvertConfig:
    """Turn a foreign checkpoint into a run folder."""

    kind: Annotated[Literal["mamp"], tyro.conf.Positional]
    """mamp: MAMP's transformer (.pth)."""
    file: Annotated[Path, tyro.conf.Positional]
    """Checkpoint to read; nothing in it is executed."""
    out: Annotated[Path, tyro.conf.Positional]
    """Run folder to make."""
    heads: int = 8
    """Attention heads, which the weights do not show; MAMP has 8."""
    split: str = "xsub"
    """Split on which the checkpoint was trained."""


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict, bare or under the key `model`, without running what the file holds.

    Returns its tensors by name, without the prefix of DistributedDataParallel. Raises InputError if
    the file cannot be read, would run code, or holds no state dict.
    """
    with Foreign(file) as opened:
        loaded = opened.content
        state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
        if not isinstance(state, dict):
            raise InputError("file", f"{file} holds no state dict", "save model.state_dict()")
        tensors = {}
        for key, value in state.items():
            if isinstance(value, Stored):
                name = str(key).removeprefix("module.")
                tensors[name] = opened.tensor(value)
    return tensors


def _sizes(state: dict[str, Tensor], heads: int) -> tuple[schema.ModelConfig, int, int]:
    """Return the model's sizes, frames and joints, read from the weights' shapes."""
    needed = ("joints_embed.proj.weight", "temp_embed", "pos_embed", "blocks.0.norm1.weight")
    for name in needed:
        if name not in state:
            raise InputError("file", f"has no {name}", "use a checkpoint of MAMP's transformer")
    for name in needed[:3]:
        if state[name].ndim != 4:
            raise InputError(name, tuple(state[name].shape), "expected 4 axes, as MAMP has")
    kernel, temporal, spatial = (state[name].shape for name in needed[:3])
    width, coords, length, patch = kernel
    if coords != 3 or patch != 1:
        raise InputError("joints_embed.proj.weight", tuple(kernel), "expected (D, 3, l, 1)")
    if width % heads:
        raise InputError("heads", f"{heads} does not divide the width {width}", "give the model's")
    model = schema.ModelConfig(
        segment_length=length,
        width=width,
        depth=_depth(state, "blocks"),
        heads=heads,
        predictor_depth=max(1, _depth(state, "decoder_blocks")),
    )
    return model, temporal[1] * length, spatial[2]


def _depth(state: dict[str, Tensor], blocks: str) -> int:
    numbers = (re.match(rf"{blocks}\.(\d+)\.", name) for name in state)
    return len({number[1] for number in numbers if number})


def _names(parts: dict[str, str], blocks: str, depth: int) -> dict[str, str]:
    """Map our names of a network's tensors to MAMP's."""
    names = dict(parts)
    for i in range(depth):
        for ours, theirs in _LAYERS.items():
            for end in ("weight", "bias"):
                names[f"blocks.{i}.{ours}.{end}"] = f"{blocks}.{i}.{theirs}.{end}"
    return names


def encoder_weights(state: dict[str, Tensor], model: schema.ModelConfig) -> dict[str, Tensor]:
    """Rename and reshape MAMP's encoder weights into the state dict of our `SkeletonTransformer`.

    MAMP embeds by a convolution, whose weight (D, C, l, 1) numbers a tubelet coordinate first; our
    linear layer numbers it frame first (method section 2). Its position tables are (1, S, 1, D)
    and (1, 1, V, D), ours (S, D) and (V, D). Raises InputError if a tensor is missing, or not
    finite.
    """
    names = _names(_ENCODER, "blocks", model.depth)
    missing = [theirs for theirs in names.values() if theirs not in state]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError("file", f"has no {missing[0]}{more}", "use a whole checkpoint of MAMP")
    weights = {ours: state[theirs].float() for ours, theirs in names.items()}
    for ours, weight in weights.items():
        if not weight.isfinite().all():
            fix = "use a checkpoint from before the training broke down"
            raise InputError(names[ours], "holds NaN or an infinity", fix)
    kernel = weights["embed.proj.weight"]
    weights["embed.proj.weight"] = kernel.squeeze(3).transpose(1, 2).flatten(1)
    for table in ("embed.temporal", "embed.spatial"):
        weights[table] = weights[table].flatten(0, 2)
    return weights


def predictor_weights(state: dict[str, Tensor], predictor: Predictor) -> dict[str, Tensor] | None:
    """Rename and reshape MAMP's decoder weights into our predictor's state dict.

    MAMP's decoder numbers a token's outputs frame first, as we do. Returns None where the
    checkpoint has no whole decoder of the encoder's width, all of whose weights are finite.
    """
    names = _names(_PREDICTOR, "decoder_blocks", len(predictor.blocks))
    weights = {}
    for ours, empty in predictor.state_dict().items():
        found = state.get(names[ours])
        if found is None or found.numel() != empty.numel() or found.shape[-1] != empty.shape[-1]:
            return None
        weights[ours] = found.float().reshape(empty.shape)
        if not weights[ours].isfinite().all():
            return None
    return weights


def convert(request: ConvertConfig) -> int:
    """Convert, print which tensors were and were not used, write the run folder, and return 0.

    Raises InputError if the folder exists or the checkpoint does not fit.
    """
    if request.heads < 1:
        raise InputError("heads", request.heads, "give the number of attention heads")
    if request.out.exists():
        raise InputError("out", f"{request.out} exists", "choose a new folder")
    state = read_state(request.file)
    sizes, frames, joints = _sizes(state, request.heads)
    if joints != NTU25.num_joints:
        raise InputError("pos_embed", f"{joints} joints", "expected the 25 joints of Kinect v2")
    encoder = encoder_weights(state, sizes)
    config = schema.TrainConfig(
        run=request.out,
        data=schema.DataConfig(split=request.split, frames=frames, eval_crop=0.95),
        model=sizes,
        mask=schema.MaskConfig(mamp_count=True),
        objective=schema.ObjectiveConfig(kind="mamp", target_norm="patch"),
    )
    validate(config)
    torch.manual_seed(config.seed)
    model = MAMP(config, NTU25)
    for name, empty in model.view_encoder.state_dict().items():
        if encoder[name].shape != empty.shape:
            found, fix = tuple(encoder[name].shape), f"expected {tuple(empty.shape)}"
            raise InputError(name, found, f"{fix} beside the checkpoint's other tensors")
    model.view_encoder.load_state_dict(encoder)
    predictor = predictor_weights(state, model.predictor)
    taken = set(_names(_ENCODER, "blocks", sizes.depth).values())
    if predictor is not None:
        model.predictor.load_state_dict(predictor)
        taken |= set(_names(_PREDICTOR, "decoder_blocks", sizes.predictor_depth).values())
    _write(request, config, model)
    say(
        f"taken over: the encoder, {sizes.depth} blocks of width {sizes.width} with {sizes.heads} "
        f"heads, for {frames} frames in segments of {sizes.segment_length}"
        + ("" if predictor is None else f"; the decoder, {sizes.predictor_depth} blocks")
    )
    left = sorted(set(state) - taken)
    if left:
        groups = sorted({name.split(".")[0] for name in left})
        say(f"not taken over: {len(left)} tensors ({', '.join(groups)})")
    if predictor is None:
        say("not taken over: a decoder; the predictor is untrained")
    say(f"wrote {request.out}; score it: python -m sjepa_fast.evaluate linear {request.out}")
    return 0


def _write(request: ConvertConfig, config: schema.TrainConfig, model: MAMP) -> None:
    origin = f"converted from {request.file.name} ({request.kind}); its clips are not known"
    with new_folder(request.out) as folder:
        write_text(folder / "config.yaml", to_yaml(config))
        trained_on = {"store": origin, "fingerprint": None, "split": request.split}
        write_json(folder / "data.json", trained_on | {"layout": NTU25.to_dict()})
        write_text(folder / "train_ids.txt", "")
        write_checkpoint(folder, Contents(0, model.state_dict(), None, []), keep=1)


def main(argv: list[str] | None = None) -> None:
    """Console entry: exit with 0, 1 or 2 (usage)."""
    cli.run_main(lambda: convert(cli.parse(ConvertConfig, argv, prog="sjepa_fast.convert")))


if __name__ == "__main__":
    main()
