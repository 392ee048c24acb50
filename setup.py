"""The native CPU kernel: built where there is a compiler, left out without harm otherwise.

It uses Python's stable ABI and nothing of torch, so one build serves every version of both.
LOSSLAB_NATIVE=0 leaves it out (a wheel for any platform), =1 fails where it cannot be built.
"""

import os
import sys

from setuptools import Extension, setup

_GCC_FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_GCC_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # in GCC 12's own AVX-512 header

_wanted = os.environ.get("LOSSLAB_NATIVE", "")
if _wanted not in ("", "0", "1"):
    raise SystemExit(f"LOSSLAB_NATIVE must be 0, 1 or unset; got {_wanted!r}.")

native = Extension(
    "losslab.logodds._native",
    sources=["src/losslab/logodds/native.cpp"],
    depends=["src/losslab/logodds/native_kernel.h"],
    extra_compile_args=[] if sys.platform == "win32" else _GCC_FLAGS,
    libraries=["dl"] if sys.platform.startswith("linux") else [],
    language="c++",
    py_limited_api=True,
    optional=_wanted != "1",
)
if _wanted == "0":
    setup()
else:
    setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": "cp311"}})
