"""Builds the compiled kernels, one shared library per level of instructions; everything else is in pyproject.toml.

Each is optional: where it cannot be compiled, the package installs without it and runs on the reference.
"""

import copy
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = [
    "src/parhelion/native/level.cpp",
    *(f"src/parhelion/ops/{op}/cpu.cpp" for op in ("halo", "axial", "content")),
]
HEADERS = [str(path) for path in Path("src/parhelion").rglob("*.h")]
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
]
LEVELS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS["avx2"] = ["-mavx2", "-mfma"]
    LEVELS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
    LEVELS["avx512_bf16"] = [*LEVELS["avx512"], "-mavx512bf16"]


class BuildLibraries(build_ext):
    """Builds shared libraries that Python does not import, so that they fit every version of it."""

    def finalize_options(self):
        """Build the levels side by side."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def get_ext_filename(self, name):
        """Where a library goes, without Python's suffix."""
        return str(Path(*name.split("."))) + ".so"

    def get_export_symbols(self, extension):
        """No module's initialiser."""
        return []

    def build_extension(self, extension):
        """Compile in a folder of its own: the levels share their sources, and are built side by side."""
        own = copy.copy(self)
        own.build_temp = str(Path(self.build_temp, extension.name))
        super(BuildLibraries, own).build_extension(extension)


class AnyPython(bdist_wheel):
    """A wheel for one platform and every Python 3."""

    def get_tag(self):
        """The tag without Python's version and ABI."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPython},
    ext_modules=[
        Extension(
            f"parhelion.native.kernels_{level}",
            sources=SOURCES,
            depends=HEADERS,
            include_dirs=["src/parhelion/native"],
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for level, flags in LEVELS.items()
    ],
)
