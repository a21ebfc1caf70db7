"""How this process was started: by torchrun, by the first process of a training that shares the work, or alone."""

import os
from dataclasses import dataclass

from runtime.errors import SajiError

SHARED = "SAJI_SHARED"  # set where Lightning starts processes of ours: what it then tells them is not another's
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT")
# What Lightning takes for its own, whoever has set it
_FOREIGN = {"RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"}
_FOREIGN |= {"WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass(frozen=True)
class Launch:
    """A process among those that share the work."""

    torchrun: bool = False
    first: bool = True  # the one that writes
    here: int = 1  # processes that torchrun has started on this node
    everywhere: int = 1  # and on all of them


def launch() -> Launch:
    """How this process was started; to be asked before Lightning is imported, which reads the environment, too.

    Alone, which is how MPI, SLURM and Kubernetes start processes for us, their variables are taken out of the
    environment. Raises SajiError where torchrun's are not all there.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        there = {name: os.environ.get(name, "") for name in _TORCHRUN}
        if not (all(map(str.isdecimal, there.values())) and _fit(*map(int, list(there.values())[:4]))):
            raise SajiError(
                f"TORCHELASTIC_RUN_ID says that torchrun started this, but {' '.join(map('='.join, there.items()))} is "
                "not what it sets; start it with torchrun, or unset TORCHELASTIC_RUN_ID to train alone"
            )
        return Launch(True, int(there["RANK"]) == 0, int(there["LOCAL_WORLD_SIZE"]), int(there["WORLD_SIZE"]))
    if SHARED in os.environ:
        return Launch(first=os.environ.get("LOCAL_RANK", "0") == "0")
    for name in _FOREIGN:
        os.environ.pop(name, None)
    return Launch()


def _fit(rank: int, everywhere: int, local: int, here: int) -> bool:
    """Whether there is such a process, and the nodes have as many of them each."""
    return rank < everywhere and local < here and everywhere % here == 0
