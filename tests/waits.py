"""Whether a host waits for its device, counted on the CPU, where waiting costs nothing and is not seen otherwise."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class CountWaits(TorchDispatchMode):
    """Counts the operations at which a host waits for its device; `lift_fresh` makes a tensor of Python numbers."""

    waits = 0
    waiting = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "bincount", "lift_fresh"}
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.waits += name in self.waiting
        return func(*args, **(kwargs or {}))
