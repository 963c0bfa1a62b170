"""The compiled loops of ``kernels.c``, made when the package is built (``hatch_build.py``).

``library`` is None where that was not possible: then operations on tensors serve, several times as slow for small
networks. A library of another version of the source is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")

# Checked by no compiler: each line has to agree with the function of this name in kernels.c.
_INT, _DOUBLE, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[object, ...]] = {
    "gather": (ctypes.c_float, _INT, _POINTER, _POINTER, _POINTER),
    "clip_rows": (None, _INT, _INT, _POINTER, ctypes.c_float),
    "rmsprop": (ctypes.c_float, _INT, *[_POINTER] * 7, _DOUBLE, _DOUBLE, ctypes.c_int, ctypes.c_int, _DOUBLE),
    "adam": (ctypes.c_float, _INT, *[_POINTER] * 8, *[_DOUBLE] * 4),
    "linear_branches": (None, _POINTER, _INT, *[_POINTER] * 3, ctypes.c_int, _POINTER),
    "linear_gradient": (None, _POINTER, _INT, *[_POINTER] * 9),
    "categorical_branches": (None, _POINTER, _INT, *[_POINTER] * 3, ctypes.c_int, _POINTER),
    "categorical_gradient": (None, _POINTER, _INT, *[_POINTER] * 9),
    "hyperbolic_tangent": (None, _INT, _POINTER, _POINTER),
    "chosen_losses": (ctypes.c_int, *[_INT] * 3, *[_POINTER] * 4, ctypes.c_float, *[_POINTER] * 3),
    "quantile_losses": (None, *[_INT] * 4, *[_POINTER] * 4),
    "gaussian_log_prob": (None, *[_INT] * 3, *[_POINTER] * 5),
    "gaussian_gradient": (None, *[_INT] * 3, *[_POINTER] * 5, ctypes.c_float, *[_POINTER] * 4),
    "squashed_gaussian": (None, *[_INT] * 3, _POINTER, *[ctypes.c_float] * 3, *[_POINTER] * 4),
    "squashed_gradient": (None, *[_INT] * 3, _POINTER, *[ctypes.c_float] * 3, *[_POINTER] * 5),
    "switching": (None, _INT, *[_POINTER] * 2, *[_DOUBLE] * 2, *[_POINTER] * 2, ctypes.c_int, *[_POINTER] * 3),
    "exponentiated_gradient": (None, _INT, *[_POINTER] * 2, *[_DOUBLE] * 6, _POINTER),
    "whiteness": (None, _INT, _INT, *[_POINTER] * 2, *[_DOUBLE] * 4, *[_POINTER] * 4),
}


def library_path(source: Path = SOURCE) -> Path:
    """Where the library of this source lies, on this platform."""
    # By its content: an editable checkout that moves to another commit must not call functions of another signature.
    version = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    return source.with_name(f"_kernels-{version}-{sysconfig.get_platform()}{_suffix()}")


def _suffix() -> str:
    return ".dll" if sysconfig.get_platform().startswith("win") else ".so"


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError:  # not built, or for another platform
        return None
    for name, (result, *arguments) in _SIGNATURES.items():
        if (function := getattr(library, name, None)) is None:
            return None
        function.restype, function.argtypes = result, arguments
    return library


library = _load()
LOOPS = "torch" if library is None else "compiled"
"""What computes small networks here: the two round differently."""
