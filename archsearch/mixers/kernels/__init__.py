"""Which implementation computes an operation, chosen by device and by what is really usable.

A CUDA package that is installed may still be broken (the normal state on a machine without a GPU), or run and
return nonsense (packages built for another GPU have done so). So each function is imported and tried once,
forward and backward, against float64. Native torch is always there and computes the same function.

`python -m archsearch.mixers.kernels` says what is usable on this machine.
"""

from archsearch.mixers.kernels.choice import Choice, KernelError, Kernels, Mode, choose_kernels

__all__ = ["Choice", "KernelError", "Kernels", "Mode", "choose_kernels"]
