"""What the ranks of the parity tests run: plans through the executor's own trainer, and gradients through its hooks."""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from executor.axes.data import broadcast_buffers
from executor.axes.experts import MARK
from executor.axes.optimizer import LEARNING_RATE, grouped, sharded
from executor.mesh import Meshes
from executor.observe.live_tensors import LiveTensors
from executor.observe.recorder import Recorder
from executor.run.batches import Text, default_text, load_text
from executor.trainer import Trainer
from planner.plans import Plan
from profiles.artifacts import validate
from profiles.codecs.ddp_hooks import bucket_options, register
from profiles.models.adapters import adapters
from profiles.models.profile import WorkloadSpec
from profiles.ranks.rank import Rank, join_group
from profiles.workloads.loading import load_workload
from tests.plan_builders import GPT2, LLAMA, MIXTRAL, NUM_STEPS, QWEN3, SEED, SEQUENCE

# Three experts over two ranks: FSDP cuts them along their width.
ODD_MIXTRAL = replace(MIXTRAL, config={**MIXTRAL.config, "num_local_experts": 3})
# Adapters beside some linears, all else frozen.
ADAPTED = replace(LLAMA, adapters=adapters(4, ("q", "v", "down")))
SPECS = {"llama": LLAMA, "gpt2": GPT2, "qwen3": QWEN3, "mixtral": MIXTRAL, "odd-mixtral": ODD_MIXTRAL}
SPECS |= {"adapted": ADAPTED, "adapted-gpt2": replace(GPT2, adapters=adapters(4, ("q", "down")))}


def run_plans(cases: list[tuple[str, dict[str, Any]]], references: dict[str, str]) -> list[list[dict[str, Any]]]:
    """Per case, what each rank tells: its place, losses, actions, and how far its parameters are from the reference."""
    text = load_text(default_text(), SEQUENCE, SEED)
    results = []
    with join_group("cpu") as rank:
        meshes = Meshes("cpu")
        for name, fields in cases:
            plan = validate(fields, Plan, "the test")
            reference = torch.load(references[f"{name} {plan.precision}"], weights_only=True)
            own = _train(plan, SPECS[name], rank, meshes, text, reference)
            everyone: list[Any] = [None] * rank.num_ranks
            dist.all_gather_object(everyone, own)
            results.append(everyone)
    return results


def run_all(payload: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The entry of the ranks."""
    return run_plans(payload["cases"], payload["references"])


def _train(
    plan: Plan, spec: WorkloadSpec, rank: Rank, meshes: Meshes, text: Text, reference: dict[str, torch.Tensor]
) -> dict[str, Any]:
    started = time.perf_counter()
    trainer = Trainer(plan, load_workload(spec), rank, SEED, meshes.of(plan))
    # Taken now: DDP over split parameters hides them behind plain attributes from its first forward on.
    parameters = {index: dict(module.named_parameters()) for index, module in trainer.modules.items()}
    losses, actions = [], []
    for step in range(NUM_STEPS):
        loss, trace = trainer.step(*text.batch(step, plan.global_batch_size))
        losses.append(None if loss is None else float(loss))
        actions = [(action.name, action.microbatch, action.stage) for action in trace.actions]
    whole = {name: value for index in parameters for name, value in whole_parameters(plan, index, parameters[index])}
    deviations = {name: _deviation(value, reference[name]) for name, value in whole.items()}
    return {
        "place": asdict(trainer.place),
        "losses": losses,
        "deviations": deviations,
        "actions": actions,
        "seconds": time.perf_counter() - started,
    }


def whole_parameters(plan: Plan, stage: int, parameters: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """A stage's parameters as one device would hold them, by layer position and path."""
    for path, parameter in parameters.items():
        _, position, rest = path.removeprefix("module.").split(".", 2)
        whole = _whole(parameter)
        if "c_attn" in rest and plan.tensor_parallel > 1:
            whole = _parts_together(whole, plan.tensor_parallel)
        yield f"{plan.stage_bounds[stage] + int(position)}.{rest}", whole


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    value = parameter.detach()
    if hasattr(parameter, MARK):
        group = getattr(parameter, MARK).get_group()
        parts = [torch.empty_like(value) for _ in range(group.size())]
        dist.all_gather(parts, value.contiguous(), group=group)
        return torch.cat(parts)
    # DDP keeps the local parts of DTensors under this attribute's layout.
    layout = getattr(parameter, "_st_info", None)
    if layout is not None:
        value = DTensor.from_local(value, layout.mesh, layout.placements, run_check=False)
    return value.full_tensor() if isinstance(value, DTensor) else value


def _parts_together(fused: torch.Tensor, degree: int) -> torch.Tensor:
    """Rows of a fused query-key-value back in the order query, key, value."""
    return fused.reshape(degree, 3, -1, *fused.shape[1:]).transpose(0, 1).reshape(fused.shape)


def _deviation(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Root mean square of the difference, in units of the farthest that AdamW can have moved a parameter."""
    return float((value.double() - reference.double()).pow(2).mean().sqrt()) / (NUM_STEPS * LEARNING_RATE)


class Weights(nn.Module):
    """A matrix and a vector whose gradients are what is fed in."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(48, 32))
        self.vector = nn.Parameter(torch.zeros(32))

    def forward(self, matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return (self.matrix * matrix).sum() + (self.vector * vector).sum()


def average_with_hooks(names: list[str]) -> dict[str, list[float]]:
    """Per codec, the largest relative error of the matrix's and the vector's averaged gradients after four steps."""
    errors = {}
    with join_group("cpu") as rank:
        group = dist.group.WORLD
        assert group is not None
        for name in names:
            torch.manual_seed(rank.rank)
            # Of rank one, over all ranks too: PowerSGD with rank 1 must then lose nothing.
            matrix = torch.outer(torch.arange(1.0, 49.0), torch.linspace(-1, 1, 32)) * (rank.rank + 1)
            vector = torch.randn(32)
            weights = Weights()
            module = DistributedDataParallel(weights, gradient_as_bucket_view=True, **bucket_options(name, weights))
            register(module, name, group, Recorder(device=rank.device))
            for _ in range(4):
                module.zero_grad()
                module(matrix, vector).backward()
            errors[name] = [
                _relative_error(weights.matrix.grad, matrix, rank.num_ranks),
                _relative_error(weights.vector.grad, vector, rank.num_ranks),
            ]
    return errors


def _relative_error(found: torch.Tensor | None, own: torch.Tensor, num_ranks: int) -> float:
    exact = own.double()
    dist.all_reduce(exact)
    exact /= num_ranks
    assert found is not None
    return float((found.double() - exact).abs().max() / exact.abs().max())


def count_bytes(codecs: list[str]) -> list[dict[str, float]]:
    """Live bytes of a data-parallel plan after it was built and after its fourth step, per codec."""
    with join_group("cpu") as rank:
        return [_count_bytes(codec, rank) for codec in codecs]


def _count_bytes(codec: str, rank: Rank) -> dict[str, float]:
    plan = Plan(data_parallel=rank.num_ranks, micro_batch_size=1, codec=codec)
    text = load_text(default_text(), SEQUENCE, SEED)
    with LiveTensors() as live:
        trainer = Trainer(plan, load_workload(LLAMA), rank, SEED, Meshes("cpu").of(plan))
        built = live.live_bytes
        for step in range(4):
            live.reset_peak()
            trainer.step(*text.batch(step, plan.global_batch_size))
            live.add(trainer.held_tensors)
    # The communication library's threads let go of their last tensors in their own time.
    gc.collect()
    time.sleep(0.5)
    num_parameters = sum(parameter.numel() for parameter in trainer.parameters())
    return {"parameters": num_parameters, "built": built, "held": live.live_bytes, "peak": live.peak_bytes}


def step_in_shares(num_weights: int) -> dict[str, Any]:
    """Messages of a step of AdamW in shares, and how far its weights are from plain AdamW's."""
    with join_group("cpu"):
        return _step_in_shares(num_weights)


@contextlib.contextmanager
def _broadcasts() -> Iterator[list[int]]:
    """The sizes of the messages that are broadcast while entered."""
    sizes: list[int] = []
    broadcast = dist.broadcast

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return broadcast(tensor, *args, **options)

    dist.broadcast = counted
    try:
        yield sizes
    finally:
        dist.broadcast = broadcast


def _step_in_shares(num_weights: int) -> dict[str, Any]:
    def weights() -> list[nn.Parameter]:
        draw = torch.Generator().manual_seed(SEED)
        made = [nn.Parameter(torch.randn(4, 4, generator=draw)) for _ in range(num_weights)]
        for weight in made:
            weight.grad = torch.ones_like(weight)
        return made

    shared, plain = weights(), weights()
    group = dist.group.WORLD
    assert group is not None
    optimizer = sharded(torch.optim.AdamW, grouped({str(i): own for i, own in enumerate(shared)}), group, lr=0.1)
    with _broadcasts() as sent:
        optimizer.step()
    torch.optim.AdamW(plain, lr=0.1).step()
    off = max(float((one - other).abs().max()) for one, other in zip(shared, plain, strict=True))
    return {"sent": len(sent), "off": off}


def share_buffers(_: None) -> dict[str, Any]:
    """Buffers of several types and shapes as the first rank has them, and as the last has them before and after."""
    with join_group("cpu") as rank:
        number = rank.rank
        buffers = [
            torch.tensor([number == 0, True]),
            torch.tensor(3 + number),
            torch.full((2, 3), 0.5 + number),
            torch.full((3,), 1.5 + number, dtype=torch.bfloat16),
        ]
        before = [buffer.tolist() for buffer in buffers]
        group = dist.group.WORLD
        assert group is not None
        with _broadcasts() as sent:
            broadcast_buffers(buffers, group)
        every: list[Any] = [None] * rank.num_ranks
        dist.all_gather_object(every, (before, [buffer.tolist() for buffer in buffers]))
        return {"before": every[-1][0], "first": every[0][0], "last": every[-1][1], "sent": len(sent)}
