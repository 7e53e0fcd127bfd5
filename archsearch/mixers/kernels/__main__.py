"""What is usable on this machine: one line an operation."""

from __future__ import annotations

import sys

import torch

from archsearch.mixers.kernels.choice import Kernels
from archsearch.mixers.kernels.table import OPERATIONS

device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
name = torch.cuda.get_device_name() if device.startswith("cuda") and torch.cuda.is_available() else device
print(f"torch {torch.__version__} on {name}")
for operation in OPERATIONS:
    choice = Kernels("auto", device).choose(operation)
    print(f"{operation}: {choice.name} ({choice.why})")
