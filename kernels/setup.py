# SPDX-License-Identifier: Apache-2.0
"""sjepa-kernels: its package and its optional C++ library. Metadata is in pyproject.toml.

`kernels/` is a plain folder that holds the import package `sjepa_kernels`; it never gets an
`__init__.py`, because the top-level name `kernels` belongs to another distribution.
torch is not imported here, so that the package builds in isolation and in seconds.
"""

import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

# An sdist has a copy of what it needs of the repository's csrc/.
sys.path.extend(["csrc", "../csrc"])
from build_library import COMMANDS, CSRC, PARSER, library, sources_of_ops


class WithSources(sdist):
    """Lays the C++ beside the package, where no repository is around it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        unneeded = shutil.ignore_patterns("__pycache__", *PARSER)
        shutil.copytree(CSRC, Path(base_dir, "csrc"), ignore=unneeded)


setup(
    # Not {"": "."}: an editable install would put the whole folder on the path.
    package_dir={"sjepa_kernels": "sjepa_kernels"},
    packages=find_packages(include=["sjepa_kernels", "sjepa_kernels.*"]),
    package_data={"sjepa_kernels": ["py.typed", "attention/*.json"]},
    include_package_data=False,
    ext_modules=[library("sjepa_kernels._csrc", sources_of_ops())],
    cmdclass={**COMMANDS, "sdist": WithSources},
)
