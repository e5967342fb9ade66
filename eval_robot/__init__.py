"""Evaluation: rollouts, protocols, statistics, studies."""

import os
from pathlib import Path

_CPU = Path("/proc/cpuinfo")

# An episode depends on its policy and its seed alone, to the last bit. With AVX-512 MKL rounds a row of a small matrix product by where it lies in
# the batch, unless it is asked for strict reproducibility before its first product. Other makers' CPUs have no such mode, only slow ones.
if _CPU.is_file() and "GenuineIntel" in _CPU.read_text():
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
