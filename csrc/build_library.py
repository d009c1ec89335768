# SPDX-License-Identifier: Apache-2.0
"""How setuptools builds these sources: plain shared libraries behind a C ABI, loaded with ctypes.

Both distributions build a part of them: `setup.py` at the root the parser of sjepa-fast,
`kernels/setup.py` the ops. No library has a Python symbol in it, so neither its file name nor its
wheel names a version of Python.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

CSRC = Path(__file__).resolve().parent
PARSER = {"skeleton_text.cpp"}


def sources_of_ops() -> set[str]:
    """Return the names of all sources but the parser's."""
    return {path.name for path in CSRC.glob("*.cpp")} - PARSER


def library(name: str, sources: Iterable[str]) -> Extension:
    """Return a library that is left out where it does not compile."""
    # Whole paths: the objects of `../csrc` would land outside the folder of the build.
    return Extension(
        name,
        sources=[str(CSRC / source) for source in sorted(sources)],
        depends=sorted(str(path) for path in CSRC.glob("*.h")),
        language="c++",
        optional=True,
    )


class BuildLibrary(build_ext):
    """Compiles and names a library that is no Python module."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return no symbols: there is no PyInit function to export."""
        return []

    def get_ext_filename(self, fullname: str) -> str:
        """Return the name that `sjepa_kernels.native` looks for."""
        return str(Path(*fullname.split("."))) + (".dll" if os.name == "nt" else ".so")

    def get_source_files(self) -> list[str]:
        """Return nothing: MANIFEST.in and kernels/setup.py say what an sdist has of csrc/."""
        return []

    def build_extension(self, ext: Extension) -> None:
        """Add the compiler's own spelling of the flags, OpenMP only where it links."""
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args += ["/O2", "/std:c++17", "/openmp"]
        else:
            ext.extra_compile_args += ["-O3", "-std=c++17"]
            if self.links_openmp():
                ext.extra_compile_args += ["-fopenmp"]
                ext.extra_link_args += ["-fopenmp"]
        super().build_extension(ext)

    def links_openmp(self) -> bool:
        """Compile and link one OpenMP call with the compiler that will build the library."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
            try:
                objects = self.compiler.compile(
                    [str(probe)], output_dir=folder, extra_postargs=["-fopenmp"]
                )
                self.compiler.link_shared_object(
                    objects, str(Path(folder, "probe.so")), extra_postargs=["-fopenmp"]
                )
            except Exception:  # any compiler failure means the same: build without OpenMP
                return False
        return True


class Wheel(bdist_wheel):
    """A wheel for every Python: of this platform with the library in it, of any without."""

    def run(self) -> None:
        """Build first: only then is it known whether the library compiles."""
        self.run_command("build")
        outputs = self.get_finalized_command("build_ext").get_outputs()
        self.root_is_pure = not any(map(os.path.exists, outputs))
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag of Python, of its ABI and of the platform."""
        return "py3", "none", super().get_tag()[2]


COMMANDS = {"build_ext": BuildLibrary, "bdist_wheel": Wheel}
