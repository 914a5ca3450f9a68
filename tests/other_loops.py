"""A plan carried out in the loops of others: transformers' Trainer, and Lightning with manual optimization."""

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import executor
from planner.plans import Plan
from profiles.artifacts import validate
from tests.apply_entries import MOST, RATE, STEPS, batch_of, module_of, task_of

NAME = "llama"


class Steps(Dataset[dict[str, Tensor]]):
    """One item is what a replica takes in a step."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        if step >= STEPS:
            raise IndexError(step)
        return batch_of(task_of(NAME), step, self.job.replica, self.job.num_replicas)


def job_of(payload: dict[str, Any]) -> tuple[Any, nn.Module]:
    """The plan on a module; before anything of theirs, so that they find the process group there."""
    plan, task = validate(payload["plan"], Plan, "the test"), task_of(NAME)
    module = module_of(task)
    return executor.apply(plan, module, example=batch_of(task, 0, 0, plan.data_parallel), device="cpu"), module


def in_trainer(payload: dict[str, Any]) -> list[float]:
    """Losses of transformers' Trainer."""
    from transformers import Trainer, TrainingArguments

    class Planned(Trainer):
        def __init__(self, job: Any, **options: Any) -> None:
            super().__init__(model=job.module, **options)
            self.job = job
            # Else it would be wrapped in DDP once more.
            self.accelerator.prepare_model = lambda model, **_: model

        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = self.optimizer or self.job.optimizer(torch.optim.AdamW, lr=self.args.learning_rate)
            return self.optimizer

        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=None)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss: Tensor = self.job.step(inputs)
            self.job.clip_(MOST)
            return loss

    job, _ = job_of(payload)
    arguments = TrainingArguments(
        output_dir=payload["folder"], max_steps=STEPS, learning_rate=RATE, max_grad_norm=0, save_strategy="no",
        lr_scheduler_type="constant", logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Planned(job, args=arguments, train_dataset=Steps(job))
    trainer.train()
    job.export(Path(payload["folder"]) / "exported")
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    del trainer
    gc.collect()
    job.close()
    return losses


def in_lightning(payload: dict[str, Any]) -> list[float]:
    """Losses of Lightning's Trainer."""
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import SingleDeviceStrategy

    class Planned(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, job: Any) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.job, self.losses = job, list[float]()

        def configure_optimizers(self) -> Any:
            return self.job.optimizer(torch.optim.AdamW, lr=RATE)

        def training_step(self, batch: Any, index: int) -> None:
            self.losses.append(float(self.job.step(batch)))
            self.job.clip_(MOST)
            self.optimizers().step()

    job, _ = job_of(payload)
    planned = Planned(job)
    # The ranks are there: it must neither start others nor average anything itself.
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, strategy=SingleDeviceStrategy(job.rank.device), plugins=[LightningEnvironment()],
        max_steps=STEPS, enable_checkpointing=False, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(planned, DataLoader(Steps(job), batch_size=None))
    job.export(Path(payload["folder"]) / "exported")
    job.close()
    return planned.losses
