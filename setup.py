# SPDX-License-Identifier: Apache-2.0
"""sjepa-fast: its package and its optional C++ library. Metadata is in pyproject.toml.

`kernels/` is a distribution of its own, sjepa-kernels, with a setup.py beside its package.
torch is not imported here, so that the package builds in isolation and in seconds.
"""

import sys

from setuptools import find_packages, setup

sys.path.append("csrc")
from build_library import COMMANDS, PARSER, library

setup(
    # Not {"": "."}: an editable install would put the whole folder on the path.
    package_dir={"sjepa_fast": "sjepa_fast"},
    packages=find_packages(include=["sjepa_fast", "sjepa_fast.*"]),
    package_data={
        "sjepa_fast": ["py.typed"],
        "sjepa_fast.embedding": ["tiny/*"],
        "sjepa_fast.reporting": ["page/*"],
    },
    include_package_data=False,
    ext_modules=[library("sjepa_fast.data.readers._skeleton_text", PARSER)],
    cmdclass=COMMANDS,
)
