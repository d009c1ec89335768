"""The report as one archive, to bring it back from a machine that is only lent."""

from __future__ import annotations

import tarfile
from pathlib import Path

from sjepa_fast.runtime.files import new_file

# What is read first comes first: an archive that is cut off still has it.
FIRST = ("report.json", "report.md")


def write_bundle(folder: Path, target: Path) -> None:
    """Pack a report's folder as `target`, a .tgz file, which is replaced as a whole.

    Figures and page come first, then pictures and profiles. Hidden files are being written at the
    moment and stay out.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    names = [name for name in names if not name.rpartition("/")[2].startswith(".")]
    first = [name for name in FIRST if name in names]
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_file(target) as temporary, tarfile.open(temporary, "w:gz") as archive:
        for name in [*first, *(name for name in names if name not in first)]:
            archive.add(folder / name, arcname=name)
