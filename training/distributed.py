"""Data-parallel training under torchrun.

Gradients are reduced explicitly instead of through `DistributedDataParallel`: cooperative methods take two gradients of
one forward with `torch.autograd.grad`, which never runs DDP's hooks, and compare them after averaging, because the
similarity of averages is not the average of similarities.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from odm_deploy.errors import UsageError


@dataclass(frozen=True)
class World:
    """The processes that share every batch."""

    rank: int = 0
    """Index of this process."""
    size: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process talks, logs and writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """The part of a global batch that is this process's.

        Raises:
            UsageError: the batch does not divide evenly.
        """
        if batch % self.size:
            raise UsageError(f"cannot split run.batch = {batch}", why=f"over {self.size} processes")
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Elementwise sums over all processes, in one message."""
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def sum_named(self, tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        """`factor` times the sums over all processes, by name."""
        if self.size == 1:
            return dict(tensors)
        reduced = self.sum(list(tensors.values()))
        return {name: value * factor for name, value in zip(tensors, reduced, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; the same answer everywhere."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(count)
        return bool(count.item())

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` everywhere with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return once all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Generator[World, None, None]:
    """The world torchrun's environment describes; a world of one without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
