"""Where the two packages live, and the optional C++ library. Metadata is in pyproject.toml.

`kernels/` is a plain folder that holds the import package `sjepa_kernels`; it never gets an
`__init__.py`, because the top-level name `kernels` belongs to another distribution.
torch is not imported here, so that the package builds in isolation and in seconds.
"""

import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext


class BuildLibrary(build_ext):
    """Builds csrc/ as a plain shared library behind a C ABI (loaded through ctypes)."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Return no symbols: there is no PyInit function to export."""
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


def tree(package: str, folder: str) -> list[str]:
    """Return the package and its sub-packages."""
    return [package, *(f"{package}.{name}" for name in find_packages(folder))]


sources = sorted(path.as_posix() for path in Path("csrc").glob("*.cpp"))
library = Extension(
    "sjepa_kernels._csrc",
    sources=sources,
    depends=sorted(path.as_posix() for path in Path("csrc").glob("*.h")),
    language="c++",
    optional=True,
)
setup(
    package_dir={"": ".", "sjepa_kernels": "kernels/sjepa_kernels"},
    packages=tree("sjepa_fast", "sjepa_fast") + tree("sjepa_kernels", "kernels/sjepa_kernels"),
    package_data={"sjepa_fast": ["py.typed"], "sjepa_kernels": ["py.typed", "attention/*.json"]},
    include_package_data=False,
    ext_modules=[library] if sources else [],
    cmdclass={"build_ext": BuildLibrary},
)
