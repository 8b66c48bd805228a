"""C functions exported by Python extensions, callable from Numba kernels without the GIL."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any

import llvmlite.binding
from numba import types


def exported(extension: str, name: str, signature: Any) -> Any:
    """Return the function `name` of the shared library of an extension module.

    Kernels refer to it by name, not by address, so that they can be cached on disk.

    signature: Numba types of the result and the arguments, such as `types.int32(types.voidptr)`.

    Raises:
        OSError: the extension is not installed, or its library cannot be loaded.
        AttributeError: the library does not export the name.
    """
    spec = importlib.util.find_spec(extension)
    if spec is None or spec.origin is None:
        raise OSError(f"no shared library of {extension}")
    function = getattr(ctypes.CDLL(spec.origin), name)
    llvmlite.binding.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
    return types.ExternalFunction(name, signature)
