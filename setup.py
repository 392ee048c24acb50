"""The native CPU kernel: built where there is a compiler, left out without harm otherwise.

It uses Python's stable ABI and nothing of torch, so one build serves every version of both.
"""

import sys

from setuptools import Extension, setup

_GCC_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
_GCC_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # in GCC 12's own AVX-512 header

native = Extension(
    "losslab.logodds._native",
    sources=["src/losslab/logodds/native.cpp"],
    depends=["src/losslab/logodds/native_kernel.h"],
    extra_compile_args=[] if sys.platform == "win32" else _GCC_FLAGS,
    libraries=["dl"] if sys.platform.startswith("linux") else [],
    language="c++",
    py_limited_api=True,
    optional=True,
)
setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": "cp311"}})
