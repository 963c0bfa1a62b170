"""Compiles alrao_rl/fast/kernels.c into the package; where there is no compiler the package works too."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import setuptools  # noqa: F401  # provides distutils, which knows how to call the compilers of all platforms
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Makes wheels of this platform, with the library, or pure ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a failure is reported and leaves the slower way."""
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location("kernels", Path(self.root, "alrao_rl/fast/kernels.py"))
        assert spec is not None
        assert spec.loader is not None
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        target: Path = kernels.library_path()
        try:
            _compile(kernels.SOURCE, target)
            for other in {*target.parent.glob(f"_kernels-*{target.suffix}")} - {target}:
                other.unlink()
        except Exception as error:
            self.app.display_warning(f"alrao-rl without its compiled loops, and slower: {error}")
            return
        name = target.relative_to(self.root).as_posix()
        build_data["artifacts"].append(name)
        build_data["pure_python"] = False
        # It is called through ctypes: of the platform, but of no Python's.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _compile(source: Path, target: Path) -> None:
    from distutils.ccompiler import new_compiler
    from distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    windows = compiler.compiler_type == "msvc"
    flags = ["/O2", "/fp:precise"] if windows else ["-O3", "-std=c99", "-ffp-contract=off"]
    # Nobody asks for errno or the exceptions of floating point, which keep a loop from being one of vectors.
    flags += [] if windows else ["-fno-math-errno", "-fno-trapping-math"]
    with tempfile.TemporaryDirectory() as folder:
        objects = compiler.compile([os.path.relpath(source)], output_dir=folder, extra_postargs=flags)
        built = Path(folder, target.name)
        compiler.link_shared_object(objects, str(built), libraries=[] if windows else ["m"])
        # Not over a library that a running process has loaded, and whole after a power cut.
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".new", delete=False) as new:
            new.write(built.read_bytes())
            new.flush()
            os.fsync(new.fileno())
        Path(new.name).chmod(0o755)
        Path(new.name).replace(target)
