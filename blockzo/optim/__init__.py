"""What a user holds: `ZO`, its executors and costs; whole batches as micro-batches, ranks of a process group, captured graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzo import names_of

if TYPE_CHECKING:
    from blockzo.optim.costs import Cost, cost
    from blockzo.optim.distributed import DistributedZO
    from blockzo.optim.graphed import GraphedStep
    from blockzo.optim.micro_batches import MicroBatches
    from blockzo.optim.step import StepResult, step_seed
    from blockzo.optim.zo import ZO
    from blockzo.optim.zosgd import ZOSGD

__all__ = ["ZO", "ZOSGD", "Cost", "DistributedZO", "GraphedStep", "MicroBatches", "StepResult", "cost", "step_seed"]

# a server's learning-rate schedule must not load torch
__getattr__ = names_of(
    __name__,
    {
        "ZO": "blockzo.optim.zo",
        "ZOSGD": "blockzo.optim.zosgd",
        "Cost": "blockzo.optim.costs",
        "DistributedZO": "blockzo.optim.distributed",
        "GraphedStep": "blockzo.optim.graphed",
        "MicroBatches": "blockzo.optim.micro_batches",
        "StepResult": "blockzo.optim.step",
        "cost": "blockzo.optim.costs",
        "step_seed": "blockzo.optim.step",
    },
)
