"""docs/method.md has every section that code and documents cite, and its numbers are the code's."""

import math
import re
from pathlib import Path

import pytest
import torch

from sjepa_fast.build import OBJECTIVES
from sjepa_fast.config.presets import preset
from sjepa_fast.config.schema import TrainConfig, kept_tokens, replace
from sjepa_fast.data.readers.ntu_splits import NTU60_TRAIN_SUBJECTS, NTU120_TRAIN_SUBJECTS
from sjepa_fast.data.readers.published import PUBLISHED
from sjepa_fast.models.heads import ActionHead
from sjepa_fast.objectives.objective import Objective
from sjepa_fast.runtime.schedule import ema_momentum, learning_rate
from sjepa_fast.skeletons import NTU25
from sjepa_fast.training.flops import block_flops, linear_flops, step_flops

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "method.md").read_text()
FOLDERS = ("sjepa_fast", "kernels", "csrc", "tests", "benchmarks", "examples", "docs")
SUFFIXES = (".py", ".md", ".cpp", ".h", ".yaml", ".sh")
# A section number: not the beginning of another one, nor of "1-based".
NUMBER = r"\d+(?:\.\d+)?(?!\.?\w)(?!-)"
AND = r"(?:,?[\s#]+and[\s#]+|,[\s#]+)"
CITATION = re.compile(
    rf"\bmethods?(?:\.md)?[\s#]+(?:sections?[\s#]+)?({NUMBER}(?:{AND}{NUMBER})*)", re.IGNORECASE
)
JOINTS = 25


def cited(text: str) -> list[str]:
    return [number for found in CITATION.findall(text) for number in re.findall(NUMBER, found)]


def sections() -> dict[str, str]:
    """The text under each numbered heading, its own subsections included."""
    found = list(re.finditer(r"^(##+) (\d+(?:\.\d+)?)\.? \S.*$", TEXT, re.M))
    texts = {}
    for i, heading in enumerate(found):
        later = [other for other in found[i + 1 :] if len(other[1]) <= len(heading[1])]
        texts[heading[2]] = TEXT[heading.end() : later[0].start() if later else len(TEXT)]
    assert len(texts) == len(found), "a number is used twice"
    return texts


def rows(section: str) -> list[list[str]]:
    """Cells of the table rows of a section."""
    lines = [line for line in sections()[section].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]


def files() -> list[Path]:
    """Sources and documents, without this file and its samples."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    found = [*inside, *ROOT.glob("*.md"), *ROOT.glob("*.py")]
    return [p for p in found if p.suffix in SUFFIXES and p.name != Path(__file__).name]


def test_every_cited_section_exists_and_says_something() -> None:
    known = sections()
    unknown: list[tuple[str, str]] = []
    count = 0
    for path in files():
        numbers = cited(path.read_text())
        count += len(numbers)
        unknown += [(str(path.relative_to(ROOT)), n) for n in numbers if n not in known]
    assert unknown == []
    assert count >= 90
    assert {number for number, text in known.items() if len(text.strip()) < 100} == set()


def test_the_search_finds_all_forms_of_a_citation() -> None:
    number = "99.9"
    for text, expected in {
        f"(method {number}).": [number],
        f"Method {number}: a": [number],
        f"methods 3.1, {number} and 4": ["3.1", number, "4"],
        f"method sections 2 and {number}, or": ["2", number],
        f"of the (method\n    # {number})": [number],
        f"method.md {number}, and 3 more": [number],
        "method 1.1, 1-based, and 25 joints": ["1.1"],
        "method 10.2x and method 7-fold": [],
    }.items():
        found = cited(text)
        assert found[: len(expected)] == expected and len(found) <= len(expected) + 1, text
    assert number not in sections()


def test_sections_that_the_document_names_itself_exist() -> None:
    named = re.findall(r"\((?:see )?(\d+\.\d+)\)|\bsection (\d+(?:\.\d+)?)", TEXT)
    numbers = {number for pair in named for number in pair if number}
    assert len(numbers) > 5
    assert numbers <= set(sections())


def test_splits_are_those_of_the_code() -> None:
    found = {
        (name, split): (int(train.replace(",", "")), int(test.replace(",", "")))
        for name, split, train, test, _ in rows("1.2")[2:]
        if train
    }
    names = {"NTU-60": "ntu60", "NTU-120": "ntu120", "PKU-MMD I": "pku1", "PKU-MMD II": "pku2"}
    expected = {
        (title, split): sizes
        for title, name in names.items()
        for split, sizes in PUBLISHED[name].splits.items()
    }
    assert found == expected
    ntu60, more = re.findall(r"^```\n([\d ]+)\n```", sections()["1.2"], re.M)
    subjects = tuple(map(int, ntu60.split()))
    assert subjects == NTU60_TRAIN_SUBJECTS
    assert (*subjects, *map(int, more.split())) == NTU120_TRAIN_SUBJECTS


def test_joints_are_those_of_the_code() -> None:
    bones, mirror = sections()["1.1"].split("A mirror")
    pairs = [(int(a), int(b)) for a, b in re.findall(r"\((\d+),(\d+)\)", bones)]
    assert {child - 1: parent - 1 for child, parent in pairs} == dict(enumerate(NTU25.parents))
    swaps = re.findall(r"\((\d+),(\d+)\)", mirror)
    assert tuple((int(a), int(b)) for a, b in swaps) == NTU25.swaps


def model_of(name: str) -> Objective:
    config = preset(name)
    # Without memory: only shapes count.
    with torch.device("meta"):
        return OBJECTIVES[config.objective.kind](config, NTU25)


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def tokens_of(config: TrainConfig) -> int:
    return config.data.frames // config.model.segment_length * JOINTS


def visible_of(config: TrainConfig) -> int:
    return kept_tokens(config.mask, tokens_of(config), JOINTS)


def rate(config: TrainConfig, epoch: int) -> float:
    optim = config.optim
    return learning_rate(epoch, optim.length, optim.warmup, optim.lr, optim.lr_end)


def computed() -> dict[str, str]:
    sjepa, mamp, tubes = (preset(f"{m}-ntu60-xsub") for m in ("sjepa", "mamp", "skeleton2vec"))
    nets = {m: model_of(f"{m}-ntu60-xsub") for m in ("sjepa", "mamp", "skeleton2vec")}
    per_epoch = PUBLISHED["ntu60"].splits["xsub"][0] // sjepa.optim.batch_size
    steps = per_epoch * sjepa.optim.length
    start, end = sjepa.objective.ema_start, sjepa.objective.ema_end
    moved = {
        f"lambda after {name}": f"{ema_momentum(int(share * steps), steps, start, end):.7f}"
        for name, share in {"a quarter": 0.25, "a half": 0.5, "three quarters": 0.75}.items()
    }
    encoder = size(nets["sjepa"].view_encoder)
    return {
        "tokens per body, S-JEPA": f"{tokens_of(sjepa)}",
        "tokens per body, Skeleton2vec": f"{tokens_of(tubes)}",
        "visible tokens, S-JEPA": f"{visible_of(sjepa)}",
        "visible tokens, MAMP": f"{visible_of(mamp)}",
        "visible tokens, Skeleton2vec": f"{visible_of(tubes)}",
        "parameters of a block": f"{size(nets['sjepa'].view_encoder.blocks[0]):,}",
        "parameters of the S-JEPA encoder": f"{encoder:,}",
        "parameters of the S-JEPA predictor": f"{size(nets['sjepa'].predictor):,}",
        "parameters trained, S-JEPA": f"{size(nets['sjepa']):,}",
        "parameters, MAMP 8 + 3": f"{size(nets['mamp']):,}",
        "parameters of the Skeleton2vec encoder": f"{size(nets['skeleton2vec'].view_encoder):,}",
        "parameters of the Skeleton2vec decoder": f"{size(nets['skeleton2vec'].predictor):,}",
        "parameters of the head with 60 classes": f"{size(ActionHead(256, JOINTS, 60)):,}",
        "steps per epoch, S-JEPA, NTU-60 xsub": f"{per_epoch}",
        "steps, S-JEPA, NTU-60 xsub": f"{steps:,}",
        "steps in which half of a weight is gone at 0.9999": f"{math.log(0.5, start):,.0f}",
        **moved,
        "learning rate at epoch 20, S-JEPA": f"{rate(sjepa, 20):.0e}",
        "learning rate at the end, S-JEPA": f"{rate(sjepa, sjepa.optim.length):.0e}",
        "learning rate at epoch 800, Skeleton2vec": f"{rate(tubes, 800):.0e}",
        "largest entropy of p2, nats": f"{math.log(sjepa.model.width):.3f}",
        "GFLOP of a block on 750 tokens": f"{block_flops(750, sjepa.model.width) / 1e9:.3f}",
        "GFLOP of our step per clip, S-JEPA": f"{step_flops(one_clip(sjepa)).total / 1e9:.2f}",
        # Two float32 numbers in and one out; AdamW: weight, gradient and moments in, all but
        # the gradient out.
        "MB moved by the EMA": f"{encoder * 3 * 4 / 1e6:.0f}",
        "MB moved by AdamW": f"{size(nets['sjepa']) * 7 * 4 / 1e6:.0f}",
    }


def one_clip(config: TrainConfig) -> TrainConfig:
    return replace(config, optim={"batch_size": 1})


def test_numbers_of_section_10_are_computed() -> None:
    assert dict(rows("10")[2:]) == computed()


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("S-JEPA", "sjepa-ntu60-xsub"),
        ("MAMP 8 + 5", "mamp-ntu120-xsub"),
        ("MAMP 8 + 3", "mamp-ntu60-xsub"),
        ("Skeleton2vec", "skeleton2vec-ntu60-xsub"),
    ],
)
def test_flops_are_computed(row: str, name: str) -> None:
    """The papers' codes see 74 or 60 tokens and compute the visible ones to the end."""
    config = replace(one_clip(preset(name)), mask={"mamp_count": True})
    found = step_flops(config, visible_to_the_end=True)
    # The table gives MAMP a head of the full width.
    head = 2 * linear_flops(750, 256, 256 - 12) if row.startswith("MAMP") else 0
    parts = [found.view_encoder, found.predictor + head, found.target_encoder]
    numbers = [f"{part / 1e9:.2f}" if part else "" for part in parts]
    whole = [sum(parts), found.total + 3 * head]
    expected = [row, *numbers, *(f"{part / 1e9:.1f}" for part in whole)]
    assert [line for line in rows("8.3") if line[0] == row] == [expected]
    if head:
        own = re.search(r"12 numbers, makes (\d+\.\d) and (\d+\.\d)", sections()["8.3"])
        assert own and f"{found.total / 1e9:.1f}" == own[1 if row.endswith("5") else 2]


def test_flops_of_whole_runs_follow_from_the_table() -> None:
    per_clip = float(next(line for line in rows("8.3") if line[0] == "S-JEPA")[-1])
    written = re.search(
        r"is ([\d.]+) EFLOP on NTU-60 xsub, ([\d.]+) on xview, ([\d.]+) on NTU-120 xsub\s+"
        r"and ([\d.]+) on xset",
        sections()["8.3"],
    )
    assert written
    keys = [("ntu60", "xsub"), ("ntu60", "xview"), ("ntu120", "xsub"), ("ntu120", "xset")]
    clips = [PUBLISHED[name].splits[split][0] for name, split in keys]
    assert list(written.groups()) == [f"{n * 1200 * per_clip / 1e9:.2f}" for n in clips]


def test_index_names_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    links = set(re.findall(r"\]\(([^)#]+)\)", index))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md", "index.md"} <= links
    site = (ROOT / "docs" / "index.md").read_text()
    listed = set(re.findall(r"^(?:.* <)?([\w/-]+)>?$", site, re.M))
    assert {Path(link).stem for link in links if link.endswith(".md") and "/" not in link} <= listed
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / "docs" / link).exists()] == []
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()
