"""Build the library of operators; without a C++ compiler, or for another processor, the package has none."""

import platform

from setuptools import Extension, setup

_INSTRUCTIONS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "fma")
_IS_SUPPORTED = (platform.system(), platform.machine()) == ("Linux", "x86_64")

_LIBRARY = Extension(
    "aimass_kernels._native",
    sources=[
        f"native/{name}.cpp"
        for name in (
            "aligned",
            "attention",
            "block_product",
            "block_weights",
            "group_query_attention",
            "library",
            "matmul_nbits",
            "runtime",
        )
    ],
    depends=["native/*.h"],
    language="c++",
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        "-Wno-maybe-uninitialized",  # GCC's own headers of AVX-512
        *(f"-m{name}" for name in _INSTRUCTIONS),
    ],
    optional=True,
)

setup(ext_modules=[_LIBRARY] if _IS_SUPPORTED else [])
