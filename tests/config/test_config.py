"""Configuration: precedence, strictness, and one-line errors that name the fix."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sjepa_fast.config.files import (
    RENAMED,
    apply_values,
    apply_yaml,
    check_resumable,
    parse_train,
    read_config,
    to_dict,
    to_yaml,
)
from sjepa_fast.config.presets import PRESETS, preset
from sjepa_fast.config.schema import MaskConfig, TrainConfig, replace
from sjepa_fast.config.validation import validate, validate_tokens
from sjepa_fast.errors import InputError


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return file


def test_preset_then_yaml_then_flags(tmp_path: Path) -> None:
    file = write(tmp_path, "mask: {ratio: 0.8, tau: 0.7}\noptim: {lr: 2e-3}\n")
    config = parse_train(["sjepa-nucla", "--config", str(file), "--mask.tau", "0.6"])
    assert config.model.width == 64, "from the preset"
    assert (config.mask.ratio, config.optim.lr) == (0.8, 2e-3), "from the file"
    assert config.mask.tau == 0.6, "from the command line"


def test_no_argument_is_the_demo_and_compile_is_a_plain_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not where `make demo` may have left runs/demo.
    monkeypatch.chdir(tmp_path)
    assert parse_train([]) == preset("sjepa-demo")
    for words, meant in (
        ([], "auto"),
        (["--compile"], "on"),
        (["--compile", "--seed", "3"], "on"),
        (["--compile", "off"], "off"),
        (["--compile=auto"], "auto"),
        (["--no-compile"], "off"),
    ):
        assert parse_train(words).runtime.compile == meant, words
    with pytest.raises(InputError, match="compile: maybe"):
        parse_train(["--compile=maybe"])


@pytest.mark.parametrize(("value", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_switches_in_yaml_may_go_without_quotes(tmp_path: Path, value: str, meant: str) -> None:
    """YAML 1.1 reads on and off, and older runs wrote true and false."""
    file = write(tmp_path, f"runtime: {{compile: {value}, cuda_graph: {value}}}\n")
    runtime = apply_yaml(TrainConfig(), file).runtime
    assert (runtime.compile, runtime.cuda_graph) == (meant, meant)
    old = write(tmp_path, "runtime: {compile: true}\n")
    assert apply_yaml(TrainConfig(), old).runtime.compile == "on"


def test_a_misspelt_choice_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^data\.backend: dsk; nearest: disk$"):
        parse_train(["--data.backend", "dsk"])


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_valid_and_survives_yaml(name: str, tmp_path: Path) -> None:
    config = preset(name)
    validate(config)
    assert apply_yaml(TrainConfig(), write(tmp_path, to_yaml(config))) == config


def test_paper_preset_holds_the_papers_values() -> None:
    config = preset("sjepa-ntu60-xsub")
    assert (config.data.frames, config.model.segment_length, config.data.bodies) == (120, 4, 2)
    assert (config.mask.ratio, config.mask.tau, config.mask.kind) == (0.9, 0.8, "motion_aware")
    objective = config.objective
    assert (objective.temp_student, objective.temp_target) == (0.1, 0.06)
    assert (objective.center_momentum, objective.ema_start, objective.ema_end) == (0.9, 0.9999, 1)
    optim = config.optim
    assert (optim.batch_size, optim.length, optim.warmup, optim.unit) == (256, 1200, 20, "epochs")
    assert (optim.lr, optim.lr_end, optim.weight_decay) == (1e-3, 5e-4, 0.05)
    assert (optim.beta1, optim.beta2, optim.clip_grad) == (0.9, 0.95, 0)
    data = config.data
    assert (data.whiten, data.center, data.align_yaw, data.normalize_size) == (
        0,
        False,
        False,
        False,
    )
    assert (config.eval.recipe, config.eval.knn_scaling) == ("paper", "none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mask: {raito: 0.8}", ["mask.raito", "ratio"]),
        ("maks: {ratio: 0.8}", ["maks", "mask"]),
        ("mask: 3", ["mask", "mapping"]),
        ("mask: {ratio: high}", ["ratio", "high"]),
        ("optim: {length: 2.5}", ["length", "2.5"]),
        ("runtime: {compile: 3}", ["compile", "3"]),
        ("objective: {target_norm: batch}", ["target_norm", "batch"]),
        ("data: {backend: dsk}", ["data.backend", "dsk", "nearest: disk"]),
        ("eval: {linear: lda}", ["eval.recipe", "lda"]),
        ("eval: {linear: [sgd]}", ["eval.recipe", "sgd"]),
        ("eval: {linear: sgd, recipe: small}", ["eval.linear", "no such key"]),
        ("eval: 3", ["eval", "mapping"]),
        ("- 1", ["mapping"]),
        ("a: [", ["YAML"]),
    ],
)
def test_bad_yaml_is_one_line_that_names_key_and_value(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        apply_yaml(TrainConfig(), write(tmp_path, text))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml"):
        apply_yaml(TrainConfig(), tmp_path / "no.yaml")


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError) as error:
        parse_train(["sjepa-nuclaa"])
    nearest, _, known = str(error.value).partition("known: ")
    assert "sjepa-nucla" in nearest and "skeleton2vec-ntu120-xset" not in nearest
    assert all(name in known for name in PRESETS)
    with pytest.raises(InputError) as error:
        parse_train(["x" * 5000])
    long = str(error.value)
    assert len(long) < 2000 and all(name in long for name in PRESETS)


@pytest.mark.parametrize(
    ("section", "values", "argument"),
    [
        ("data", {"frames": 3}, "data.frames"),
        ("data", {"frames": 30}, "model.segment_length"),
        ("data", {"crop_min": 0.0}, "data.crop_min"),
        ("model", {"heads": 3}, "model.heads"),
        ("model", {"width": 0}, "model.width"),
        ("mask", {"ratio": 1.0}, "mask.ratio"),
        ("mask", {"ratio": 0.0}, "mask.ratio"),
        ("mask", {"tau": -1.0}, "mask.tau"),
        ("mask", {"ratio": float("nan")}, "mask.ratio"),
        ("objective", {"ema_start": 1.5}, "objective.ema_start"),
        ("objective", {"temp_target": 0.0}, "objective.temp_target"),
        ("optim", {"warmup": 5000}, "optim.warmup"),
        ("optim", {"batch_size": 0}, "optim.batch_size"),
        ("log", {"every": 0}, "log.every"),
        ("log", {"knn_every": -1}, "log.knn_every"),
        ("data", {"whiten": -3.0}, "data.whiten"),
        ("data", {"crop_min_frames": 0}, "data.crop_min_frames"),
        ("view", {"rotation": float("nan")}, "view.rotation"),
        ("view", {"flip": 1.5}, "view.flip"),
        ("objective", {"center_momentum": 2.0}, "objective.center_momentum"),
        ("optim", {"lr": float("nan")}, "optim.lr"),
        ("optim", {"lr": -1.0}, "optim.lr"),
        ("optim", {"weight_decay": -1.0}, "optim.weight_decay"),
        ("optim", {"beta1": 1.0}, "optim.beta1"),
        ("optim", {"clip_grad": -1.0}, "optim.clip_grad"),
        ("eval", {"knn_clips": 0}, "eval.knn_clips"),
    ],
)
def test_bad_values_are_refused_by_name(
    section: str, values: dict[str, object], argument: str
) -> None:
    with pytest.raises(InputError) as error:
        validate(replace(preset("sjepa-nucla"), **{section: values}))
    assert error.value.argument == argument


def test_a_pyramid_needs_four_segments() -> None:
    config = replace(preset("sjepa-nucla"), eval={"online_pool": "pyramid"})
    validate(replace(config, data={"frames": 16}))
    with pytest.raises(InputError, match=r"^eval\.online_pool: pyramid of 3 segments"):
        validate(replace(config, data={"frames": 12}))


def test_mask_ratio_that_leaves_nothing_visible() -> None:
    config = dataclasses.replace(
        preset("sjepa-nucla"), mask=MaskConfig(ratio=0.999, mamp_count=True)
    )
    validate(config)
    with pytest.raises(InputError, match=r"mask\.ratio"):
        validate_tokens(config, 20)


def test_resume_refuses_what_changes_weights_and_admits_the_rest() -> None:
    config = preset("sjepa-nucla")
    check_resumable(replace(config, log={"every": 7}, checkpoint={"keep": 9}), config)
    with pytest.raises(InputError, match=r"mask\.ratio"):
        check_resumable(replace(config, mask={"ratio": 0.8}), config)


def test_resume_without_preset_takes_the_runs_own_configuration(tmp_path: Path) -> None:
    config = replace(preset("sjepa-nucla"), mask={"ratio": 0.77})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    resumed = parse_train(["--run", str(tmp_path), "--resume", "auto", "--log.every", "3"])
    assert resumed.mask.ratio == 0.77 and resumed.log.every == 3


def test_yaml_is_plain() -> None:
    tree = yaml.safe_load(to_yaml(preset("sjepa-demo")))
    assert tree["data"]["root"] is None and tree["runtime"]["compile"] == "auto"


def test_help_lists_presets_and_print_config_is_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_train(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS) and "--mask.ratio" in shown
    with pytest.raises(SystemExit) as stop:
        parse_train(["sjepa-nucla", "--mask.ratio", "0.8", "--print-config"])
    assert stop.value.code == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["mask"]["ratio"] == 0.8 and tree["model"]["width"] == 64


def test_a_presets_own_folder_is_numbered_and_a_named_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_train([]).run == Path("runs/demo")
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert parse_train([]).run == Path("runs/demo-2")
    assert parse_train(["--run", "runs/demo"]).run == Path("runs/demo")


def old_config(config: TrainConfig, file: Path) -> None:
    """Write a configuration as versions before the renames did."""
    text = to_yaml(config)
    for now, before in (
        ("recipe: small", "linear: logistic"),
        ("recipe: paper", "linear: sgd"),
        ("backend: disk", "backend: stream"),
    ):
        text = text.replace(now, before)
    assert "recipe" not in text and "disk" not in text
    file.write_text(text)


@pytest.mark.parametrize("name", ["sjepa-nucla", "sjepa-ntu60-xsub"])
def test_a_run_of_an_older_version_is_read_and_resumed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(preset(name), data={"backend": "disk"})
    old_config(config, tmp_path / "config.yaml")
    before = read_config(tmp_path / "config.yaml")
    assert before == config and capsys.readouterr() == ("", ""), "as its own files, without a word"
    resumed = parse_train(["--run", str(tmp_path), "--resume", "auto"])
    check_resumable(resumed, before)
    for arguments in ([name], ["--config", str(tmp_path / "config.yaml")]):
        check_resumable(parse_train(arguments), before)
    said = capsys.readouterr().err.splitlines()
    old, new = ("logistic", "small") if name == "sjepa-nucla" else ("sgd", "paper")
    note = f"note: eval.linear {old} is now eval.recipe {new} (in {tmp_path / 'config.yaml'})"
    assert note in said and any("data.backend stream is now data.backend disk" in s for s in said)


@pytest.mark.parametrize(
    ("arguments", "now"),
    [
        (["--eval.linear", "logistic"], "--eval.recipe small"),
        (["--eval.linear=sgd"], "--eval.recipe paper"),
        (["--mask.tau", "0.5", "--eval.linear"], "--eval.recipe"),
    ],
)
def test_a_flag_of_an_older_version_names_the_new_one(arguments: list[str], now: str) -> None:
    with pytest.raises(InputError, match=rf"^--eval\.linear: .*; it is now {now}"):
        parse_train(arguments)


@pytest.mark.parametrize("arguments", [["--data.backend", "stream"], ["--data.backend=stream"]])
def test_an_old_value_is_taken_with_a_note(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_train([*arguments, "--log.every", "7"]).data.backend == "disk"
    said = capsys.readouterr().err
    assert said.startswith("note: --data.backend stream is now --data.backend disk")
    assert parse_train(["--data.backend", "disk"]).data.backend == "disk"
    assert capsys.readouterr().err == ""


def test_every_rename_leads_to_what_there_is() -> None:
    for (section, old), new in RENAMED.items():
        assert new.key == old or old not in to_dict(TrainConfig())[section]
        for value in new.values.values():
            validate(apply_values(TrainConfig(), {section: {new.key: value}}, "the table"))


def test_a_run_that_was_not_compiled_by_an_older_version_is_resumed() -> None:
    def compiled(choice: Any) -> TrainConfig:
        return replace(TrainConfig(), runtime={"compile": choice})

    check_resumable(compiled("auto"), compiled("off"))
    for now, before in (("auto", "on"), ("on", "off")):
        with pytest.raises(InputError, match=r"runtime\.compile"):
            check_resumable(compiled(now), compiled(before))


def test_our_attention_needs_narrow_heads() -> None:
    chosen = replace(TrainConfig(), runtime={"attention": "triton"})
    validate(chosen)
    with pytest.raises(InputError, match=r"runtime\.attention: triton with heads of 64"):
        validate(replace(chosen, model={"heads": 4}))
