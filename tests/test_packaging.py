"""The two distributions: sdists, wheels and editable installs, alone and beside `kernels`.

A throw-away environment sees the libraries of the running one through a .pth file, so that torch
is not installed again; what is tested comes first on its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.tags import compatible_tags, platform_tags
from packaging.utils import parse_wheel_filename

from sjepa_kernels.native import ABI_VERSION
from tests.test_house import documented_commands

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"sjepa_fast": ROOT / "sjepa_fast", "sjepa_kernels": ROOT / "kernels" / "sjepa_kernels"}
NOT_IN_SOURCES = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "*.egg-info",
    "*.so",
    "__pycache__",
    "build",
    "dist",
    "runs",
    "stores",
    ".*_cache",
)
HAVE_TRITON = find_spec("triton") is not None
# The folder of each distribution's project, by the name of its package.
PROJECTS = {"sjepa_fast": ".", "sjepa_kernels": "kernels"}
LIBRARIES = {
    "sjepa_fast": "sjepa_fast/data/readers/_skeleton_text.so",
    "sjepa_kernels": "sjepa_kernels/_csrc.so",
}
# Without the code that would not run: a CPU runs nothing of Triton's but its import.
USE_KERNELS = """
import importlib.util, sys, torch, sjepa_kernels as k
from sjepa_kernels import _triton, native
x, y = torch.ones(2, 3), torch.zeros(2, 3)
k.ema_update_([x], [y], 0.25)
assert x.unique().tolist() == [0.25]
print(_triton.HAVE_TRITON, native.LIBRARY is not None, importlib.util.find_spec("sjepa_fast"))
"""
USE_HUB = """
import sys
from pathlib import Path
build, libraries = sys.argv[1:]
sys.path.append(libraries)
from kernels import get_local_kernel
from kernels._rust import Digest, Metadata
k = get_local_kernel(Path(build), backend="cpu")
for variant in Path(build).iterdir():
    said = Metadata.read_from_file(variant / "metadata.json").digest
    said.validate(Digest.hash_variant(said.algorithm, variant))
import torch
x, y = torch.ones(2, 3), torch.zeros(2, 3)
k.ema_update_([x], [y], 0.25)
assert x.unique().tolist() == [0.25]
print(k.__name__)
"""
IMPORT_BOTH = """
import sys, sjepa_fast, sjepa_kernels
print(sjepa_fast.__version__, sjepa_fast.__file__, sjepa_kernels.__file__)
"""


def run(
    *command: str | Path, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def copy_sources(target: Path) -> Path:
    """A copy to build in, so that nothing is left in the working tree."""
    shutil.copytree(ROOT, target, ignore=NOT_IN_SOURCES)
    return target


def make_environment(folder: Path, *first: Path) -> Path:
    """A virtual environment that also sees `first` and then the running one; returns its python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    running = Path(pytest.__file__).parents[1]
    # Plain paths, not .pth files of the running environment: its editable install stays out.
    site.joinpath("libraries.pth").write_text("".join(f"{path}\n" for path in [*first, running]))
    return folder / "bin" / "python"


def can_compile(folder: Path) -> bool:
    """Whether the compiler that an extension would be built with is there."""
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        return False
    return run(compiler, probe, "-o", folder / "probe", cwd=folder, check=False).returncode == 0


@pytest.fixture(scope="module")
def compiles(tmp_path_factory: pytest.TempPathFactory) -> bool:
    return can_compile(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Of each package the sdist, and the wheel built from the sdist alone."""
    folder = tmp_path_factory.mktemp("built")
    source = copy_sources(folder / "source")
    build = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check")
    found = {}
    for package, project in PROJECTS.items():
        run(*build, "--sdist", "--outdir", folder, source / project, cwd=folder)
        (sdist,) = folder.glob(f"{package}-*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / package, filter="data")
        (unpacked,) = (folder / package).iterdir()
        run(*build, "--wheel", "--outdir", folder, unpacked, cwd=folder)
        (wheel,) = folder.glob(f"{package}-*.whl")
        found[package] = sdist, wheel
    return found


def files_of(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}


def install(target: Path, *wheels: Path) -> Path:
    """Lay wheels into a folder, without what they require."""
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*command, "--target", target, *wheels, cwd=target.parent)
    return target


@pytest.mark.slow
def test_sdist_has_what_building_and_testing_need(built: dict[str, tuple[Path, Path]]) -> None:
    names = files_of(built["sjepa_fast"][0])
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.*")}
    for folder in ("sjepa_fast", "kernels", "tests", "benchmarks", "examples"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}
    wanted |= {
        "setup.py",
        "pyproject.toml",
        "kernels/pyproject.toml",
        "kernels/LICENSE",
        "sjepa_fast/reporting/three.entry.js",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "sjepa_fast").rglob("page/*")),
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
    }
    for folder in ("docs", "examples"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("*.*")}
    wanted |= {"README.md", "CHANGELOG.md", ".ci/run", ".pre-commit-config.yaml"}
    assert wanted - names == set()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_sdist_of_the_kernels_has_their_sources_alone(built: dict[str, tuple[Path, Path]]) -> None:
    names = files_of(built["sjepa_kernels"][0])
    package = PACKAGES["sjepa_kernels"].parent
    wanted = {f"csrc/{path.name}" for path in (ROOT / "csrc").glob("*.*")}
    wanted |= {path.relative_to(package).as_posix() for path in package.rglob("*/**/*.py")}
    wanted |= {"setup.py", "pyproject.toml", "README.md", "LICENSE"}
    assert wanted - names == {"csrc/skeleton_text.cpp"}
    assert not [name for name in names if "sjepa_fast" in name or name.endswith((".so", ".pyc"))]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_has_one_package_for_every_python(
    built: dict[str, tuple[Path, Path]], package: str, compiles: bool
) -> None:
    folder, wheel = PACKAGES[package], built[package][1]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = next(name for name in names if name.endswith(".dist-info/METADATA"))
        head = archive.read(about).decode()
        licence = archive.read(about.replace("METADATA", "licenses/LICENSE"))
    # three.js is in the one that writes pages.
    stated = {"sjepa_fast": "Apache-2.0 AND MIT", "sjepa_kernels": "Apache-2.0"}[package]
    assert f"\nLicense-Expression: {stated}\n" in head
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {package}
    kinds = ("*.py", "*.json", "*.safetensors", "py.typed")
    wanted = {path.relative_to(folder).as_posix() for kind in kinds for path in folder.rglob(kind)}
    wanted |= {path.relative_to(folder).as_posix() for path in folder.glob("reporting/page/*")}
    assert {f"{package}/{name}" for name in wanted} <= names
    libraries = {name for name in names if name.endswith((".so", ".dylib", ".dll", ".pyd"))}
    assert libraries == ({LIBRARIES[package]} if compiles else set())
    (tag, *more) = parse_wheel_filename(wheel.name)[-1]
    assert not more and (tag.interpreter, tag.abi) == ("py3", "none")
    assert (tag.platform == "any") == (not compiles)
    # pip of another Python on this platform would take it.
    assert {tag} & {*compatible_tags((3, 13), "cp313", platforms=[*platform_tags()])}


@pytest.mark.slow
def test_wheels_run_from_a_neutral_folder(
    built: dict[str, tuple[Path, Path]], tmp_path: Path, compiles: bool
) -> None:
    """Import, the compiled libraries, the console scripts; and no `kernels` of ours anywhere."""
    target = install(tmp_path / "installed", *(wheel for _, wheel in built.values()))
    python = make_environment(tmp_path / "env", target)
    neutral = tmp_path / "neutral"
    neutral.mkdir()
    version, *files = run(python, "-c", IMPORT_BOTH, cwd=neutral).stdout.split()
    assert all(f"-{version}-" in wheel.name for _, wheel in built.values())
    assert [Path(file).parents[1] for file in files] == [target, target]
    look = "from {} import LIBRARY; print(LIBRARY is not None)"
    for module in ("sjepa_kernels.native", "sjepa_fast.data.readers.ntu_text"):
        loaded = run(python, "-c", look.format(module), cwd=neutral).stdout
        assert loaded == f"{compiles}\n", module
    spec = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    assert str(target) not in run(python, "-c", spec, cwd=neutral).stdout
    for words in ([], ["train"], ["prepare"]):
        shown = run(python, target / "bin" / "sjepa", *words, "--help", cwd=neutral).stdout
        assert "usage: sjepa" in shown, words


@pytest.mark.slow
@pytest.mark.parametrize("triton", [True, False], ids=["triton", "torch alone"])
def test_kernels_run_alone(
    built: dict[str, tuple[Path, Path]], tmp_path: Path, compiles: bool, triton: bool
) -> None:
    """With torch beside them, and Triton where there is one; without sjepa-fast."""
    if triton and not HAVE_TRITON:
        pytest.skip("Triton is not installed")
    target = install(tmp_path / "installed", built["sjepa_kernels"][1])
    python = make_environment(tmp_path / "env", target)
    if not triton:
        site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
        site.joinpath("no_triton.pth").write_text("import sys; sys.modules['triton'] = None\n")
    used = run(python, "-c", USE_KERNELS, cwd=tmp_path).stdout
    assert used == f"{triton} {compiles} None\n"


def other_python(folder: Path) -> Path:
    """A Python of another version than the running one, on the path or installed beside it."""
    names = [f"python3.{minor}" for minor in range(9, 20) if minor != sys.version_info.minor]
    beside = Path(sys.base_prefix).parent.glob("*/bin/python3.*")
    found = [shutil.which(name) for name in names] + [p for p in beside if p.name in names]
    for python in filter(None, found):
        if run(python, "-c", "import ctypes", cwd=folder, check=False).returncode == 0:
            return Path(python)
    pytest.skip("no other version of Python is installed")


@pytest.mark.slow
def test_libraries_load_in_another_python(
    built: dict[str, tuple[Path, Path]], tmp_path: Path, compiles: bool
) -> None:
    if not compiles:
        pytest.skip("no C++ compiler")
    python = other_python(tmp_path)
    asked = {"sjepa_fast": "sjepa_skeleton_version", "sjepa_kernels": "sjepa_abi_version"}
    for package, function in asked.items():
        with zipfile.ZipFile(built[package][1]) as archive:
            library = archive.extract(LIBRARIES[package], tmp_path)
        load = f"import ctypes; print(ctypes.CDLL({library!r}).{function}())"
        printed = run(python, "-c", load, cwd=tmp_path).stdout
        assert int(printed) == {"sjepa_fast": 1, "sjepa_kernels": ABI_VERSION}[package]


@pytest.mark.slow
def test_missing_kernels_package_is_said_clearly(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sjepa_fast", tmp_path / "sjepa_fast")
    python = make_environment(tmp_path / "env", tmp_path)
    failed = run(python, "-c", "import sjepa_fast", cwd=tmp_path, check=False)
    assert failed.returncode == 1
    assert "ImportError: sjepa_fast needs its second package, sjepa_kernels" in failed.stderr


@pytest.mark.slow
def test_installs_without_a_compiler(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    wheel = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    built = (source, source / "kernels")
    run(*wheel, "--wheel-dir", tmp_path, *built, cwd=tmp_path, CC="/bin/false", CXX="/bin/false")
    wheels = sorted(tmp_path.glob("*.whl"))
    assert [file.name.split("-", 2)[2] for file in wheels] == ["py3-none-any.whl"] * 2
    for file in wheels:
        with zipfile.ZipFile(file) as archive:
            (about,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
            assert "Root-Is-Purelib: true" in archive.read(about).decode()
    target = install(tmp_path / "installed", *wheels)
    python = make_environment(tmp_path / "env", target)
    run(python, "-c", IMPORT_BOTH, cwd=tmp_path)
    shutil.rmtree(target / "sjepa_fast")
    called = run(python, "-c", USE_KERNELS, cwd=tmp_path)
    assert called.stdout == f"{HAVE_TRITON} False None\n"
    assert called.stderr.count("C++ kernels are not built") == 1


def documented_installs() -> list[list[str]]:
    """What follows `pip install` in the documents, where it installs from a clone."""
    found = [words[2:] for _, words in documented_commands() if words[:2] == ["pip", "install"]]
    return [words for words in found if words[-1].startswith(".")]


@pytest.mark.slow
def test_documented_lines_install_from_a_clone(tmp_path: Path) -> None:
    """pip finds sjepa-kernels, which is on no index, and all else that ours require; a dry run."""
    source = copy_sources(tmp_path / "source")
    python = make_environment(tmp_path / "env")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--dry-run")
    offline = ("--no-index", "--no-build-isolation")
    lines = documented_installs()
    assert ["./kernels"] in lines and ["./kernels", "."] in lines
    for words in lines:
        said = run(*pip, *offline, *words, cwd=source).stdout
        assert "Would install" in said and "sjepa-kernels-" in said, words
        assert ("sjepa-fast-" in said) == ("." in words), words


@pytest.fixture(scope="module")
def hub_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the distribution called `kernels` alone."""
    folder = tmp_path_factory.mktemp("client")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    pinned = ("-c", ROOT / "constraints.txt", "kernels", "setuptools", "wheel")
    fetched = run(*command, *pinned, cwd=folder, check=False)
    if fetched.returncode != 0:
        pytest.skip(f"`kernels` cannot be installed here: {fetched.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
def test_editable_install_beside_the_other_kernels(hub_client: Path, tmp_path: Path) -> None:
    """`pip install -e ... --no-build-isolation` with the distribution called `kernels` installed.

    That distribution hooks into setuptools by its name, so a top-level package `kernels` of ours
    would break the installation, and ours would hide theirs when run from the repository's root.
    """
    source = copy_sources(tmp_path / "source")
    # Without a compiler: what is tested here is how setuptools finds the packages.
    command = (sys.executable, "-m", "pip", "--python", hub_client, "install", "--quiet")
    ours = ("--no-deps", "--no-build-isolation", "-e", source / "kernels", "-e", source)
    run(*command, *ours, cwd=source, CC="/bin/false", CXX="/bin/false")
    site = next(hub_client.parents[1].joinpath("lib").glob("python*")) / "site-packages"
    site.joinpath("zz_libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    for folder in (tmp_path, source):
        files = run(hub_client, "-c", IMPORT_BOTH, cwd=folder).stdout.split()[1:]
        assert [Path(file).is_relative_to(source) for file in files] == [True, True]
        look = "import kernels; print(kernels.__file__)"
        theirs = run(hub_client, "-c", look, cwd=folder).stdout
        assert Path(theirs.strip()).is_relative_to(site), folder


@pytest.mark.slow
def test_the_hub_client_loads_the_kernels(hub_client: Path, tmp_path: Path) -> None:
    """`make hub` writes what the client of Hugging Face's Kernel Hub takes, hashes and all."""
    run(sys.executable, ROOT / "kernels" / "hub.py", tmp_path / "hub", cwd=tmp_path)
    libraries = Path(pytest.__file__).parents[1]
    loaded = run(hub_client, "-c", USE_HUB, tmp_path / "hub" / "build", libraries, cwd=tmp_path)
    assert loaded.stdout.startswith("_sjepa_kernels_cpu_")
