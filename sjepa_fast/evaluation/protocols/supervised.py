# SPDX-License-Identifier: Apache-2.0
"""Training from scratch on labels alone: a run without pre-training (method 6.2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from sjepa_fast.config.files import read_config
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig
from sjepa_fast.config.validation import validate
from sjepa_fast.data.facts import facts_of
from sjepa_fast.data.store import Store, open_store
from sjepa_fast.errors import InputError
from sjepa_fast.evaluation.labelled import labelled_parts
from sjepa_fast.evaluation.outcome import Outcome
from sjepa_fast.evaluation.protocols.finetune import FinetuneRequest, check_classes, over_labels
from sjepa_fast.evaluation.request import Encoder
from sjepa_fast.evaluation.subject import Subject
from sjepa_fast.run_folder import describe_run


@dataclass(frozen=True)
class SupervisedRequest(FinetuneRequest):
    """Train an encoder from scratch on a store's labels, without a run to begin from."""

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/supervised")
    """Run folder, which is made."""
    encoder: Encoder = "random"
    """random; it is here so that results of all protocols state it."""
    preset: str = "sjepa-nucla"
    """Preset that has the encoder's sizes and how clips are cut and normalised; its objective is
    not used."""

    def configuration(self) -> TrainConfig:
        """Return the configuration of the run folder.

        Split and persons are the preset's where the store has them, else the persons of the store.
        Raises InputError if the store, the split or a part's labels are missing.
        """
        if self.encoder != "random":
            fix = "leave it random, or use finetune with a run"
            raise InputError("encoder", self.encoder, fix)
        if self.data.root is None:
            raise InputError("data.root", "not given", "add --data.root STORE")
        store = open_store(self.data.root)
        base = preset(self.preset, partial(facts_of, self.data.root, self.data.split))
        data = dataclasses.replace(
            base.data,
            root=self.data.root,
            synthetic=False,
            split=self.data.split or base.data.split,
            bodies=self.data.bodies or store.max_bodies,
            eval_crop=self.data.eval_crop or base.data.eval_crop,
        )
        labelled_parts(store, data.split)
        config = dataclasses.replace(base, run=self.run, data=data)
        validate(config)
        return config

    def begin(self) -> None:
        """Make the run folder, or check that it is the one that this request would make."""
        config = self.configuration()
        assert config.data.root is not None
        store: Store = open_store(config.data.root)
        written = config.run / "config.yaml"
        if written.is_file():
            before = dataclasses.replace(read_config(written), run=config.run)
            if before != config:
                value = f"{config.run} holds a run of other settings"
                raise InputError("run", value, "name another folder")
        try:
            config.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fix = "choose a writable folder"
            raise InputError("run", f"{config.run}: {error.strerror}", fix) from error
        describe_run(config, store)
        # No clip was used for pre-training.
        (config.run / "train_ids.txt").touch()


def run_supervised(subject: Subject, request: SupervisedRequest) -> Outcome:
    """Train a fresh encoder and head on all labels of the training part, once for each seed."""
    check_classes(subject)
    return over_labels(subject, request, "supervised", lambda _: subject.train_ids)
