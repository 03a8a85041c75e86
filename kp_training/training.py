"""The training loop: the stages of any method, stopped at any step and continued exactly.

Every random draw is a function of (seed, sample or micro-batch number): item n of the data depends on the seed and n,
and torch is seeded anew for each micro-batch.  So a checkpoint needs no generator states, a run that was stopped
continues as if it had not been, and N processes draw what one would that accumulates N batches.
"""

from __future__ import annotations

import copy
import errno
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from kp_frontend.errors import InputError
from kp_frontend.resources import cache_folder
from kp_training.callbacks import Keeper, Progress, ignore_interrupt, worker_errors
from kp_training.data.images import Images
from kp_training.evaluation.scene_check.recordings import checked_scenes
from kp_training.methods.base import Context, Stage
from kp_training.runs import AtomicCheckpoints, Run, load_checkpoint, load_network
from kp_training.train_config import OPTIMIZERS, PRECISIONS, TrainConfig
from kp_training.validation import Validation
from kp_training.weights import load_initial

LONGEST_WAIT = timedelta(days=2)
"""Of a process for another that labels images."""


@dataclass(frozen=True)
class Machine:
    """What a run trains on.

    accelerator: Lightning's name.  processes, local_processes, rank: torchrun's, or one process.
    """

    accelerator: str
    processes: int = 1
    local_processes: int = 1
    rank: int = 0

    @classmethod
    def here(cls, device: str) -> Machine:
        """`device` (auto, cpu, cuda) and the processes that torchrun says there are."""
        processes, local, rank = (int(os.environ.get(name, default)) for name, default in
                                  (("WORLD_SIZE", 1), ("LOCAL_WORLD_SIZE", 1), ("RANK", 0)))
        return cls(device, processes, local, rank)

    @property
    def nodes(self) -> int:
        return self.processes // self.local_processes

    def device(self) -> torch.device:
        """This process's device."""
        if self.accelerator in ("auto", "cuda") and torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cpu")

    def strategy(self) -> Any:
        """Lightning's; parameters may go unused in a step, as where a loss is skipped."""
        if self.processes == 1:
            return "auto"
        backend = "nccl" if self.device().type == "cuda" else "gloo"
        return DDPStrategy(find_unused_parameters=True, process_group_backend=backend, timeout=LONGEST_WAIT)


def check_device(device: str) -> None:
    """Raises InputError for cuda where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device}: PyTorch {torch.__version__} sees none; use --device auto or cpu")


class Trained(lightning.LightningModule):
    """A stage's network, the average of its weights over time, and one step of their training."""

    def __init__(self, stage: Stage, config: TrainConfig, machine: Machine) -> None:
        super().__init__()
        self.stage, self.config, self.machine = stage, config, machine
        torch.manual_seed(config.seed)
        self.network = stage.network().to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval() if config.ema else None
        self.context: Context | None = None
        self.dataset: Any = None
        self._step, self._micro = -1, 0

    @property
    def exported(self) -> nn.Module:
        """The network to export and to evaluate."""
        return self.network if self.average is None else self.average

    def train_dataloader(self) -> DataLoader:
        """Made here, where processes can wait for the first one: it may have images to label for all."""
        config, machine = self.config, self.machine
        if machine.rank:
            self.trainer.strategy.barrier()
        self.dataset = self.stage.dataset(self.context)
        if not machine.rank:
            self.trainer.strategy.barrier()
        sampler = EndlessBatches(self.global_step * config.accumulate * machine.processes + machine.rank,
                                 machine.processes, config.batch_size)
        return DataLoader(self.dataset, batch_sampler=sampler, num_workers=config.loader_workers,
                          worker_init_fn=ignore_interrupt, pin_memory=self.device.type == "cuda")

    def on_after_batch_transfer(self, batch: Any, _: int) -> Any:
        """Seed this micro-batch's draws, the first of which may be its augmentation."""
        if self._step != self.global_step:
            self._step, self._micro = self.global_step, 0
        processes = self.machine.processes
        number = (self._step * self.config.accumulate + self._micro) * processes + self.machine.rank
        self._micro += 1
        torch.manual_seed(hash((self.config.seed, number)) % 2**63)
        finish = getattr(self.dataset, "finish", None)
        return finish(batch) if finish else batch

    def training_step(self, batch: Any, _: int) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            losses = self.stage.losses(self.run, self.network, batch)
        if not torch.isfinite(losses["loss"]):
            self._refuse(losses["loss"], batch)
        self.log_dict({f"{self.stage.name}/{name}": value.detach() for name, value in losses.items()})
        self.log(f"{self.stage.name}/learning_rate", self.optimizers().param_groups[0]["lr"])
        return losses["loss"]

    def _refuse(self, loss: Tensor, batch: Any) -> None:
        file = Path(self.trainer.default_root_dir) / "bad_batch.pt"
        torch.save({name: values.cpu() for name, values in batch._asdict().items()}, file)
        raise InputError(f"the loss is {loss.item()} at step {self.global_step} of {self.stage.name}; its batch is in "
                         f"{file}; --resume with a lower learning_rate (now {self.config.learning_rate:g}) or clip")

    def run(self, network: nn.Module, *inputs: Tensor) -> Any:
        """See ``methods.base.Run``."""
        dtype = PRECISIONS[self.config.precision]
        with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
            outputs = network(*(_channels_last(values) for values in inputs))
        return _to_float(outputs)

    def configure_optimizers(self) -> Any:
        config = self.config
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        rate = config.scaled_learning_rate(self.machine.processes)
        optimizer = OPTIMIZERS[config.optimizer](weights, rate, config.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rate and decay are those of the settings, which --resume may have changed, not those that were stored."""
        config, (schedule,) = self.config, checkpoint["lr_schedulers"]
        base = config.scaled_learning_rate(self.machine.processes)
        rate = base * config.rate_factor(schedule["last_epoch"])
        schedule |= {"base_lrs": [base], "_last_lr": [rate]}
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group |= {"initial_lr": base, "lr": rate, "weight_decay": config.weight_decay}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self._update_average()

    @torch.no_grad()
    def _update_average(self) -> None:
        # A short memory at first, so that the random start is forgotten.
        decay = min(self.config.ema, (self.global_step + 1) / (self.global_step + 10))
        for kept, new in zip(self.average.state_dict().values(), self.network.state_dict().values()):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


class EndlessBatches(Sampler):
    """Batches `start`, `start` + `step` …, each of `size` consecutive item numbers.

    Training that goes on after a stop sees what it would have seen; processes take turns.
    """

    def __init__(self, start: int, step: int, size: int) -> None:
        self.start, self.step, self.size = start, step, size

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start
        while True:
            yield list(range(batch * self.size, (batch + 1) * self.size))
            batch += self.step


def train(run: Run, images: Images, held_out: Images, device: str, minutes: float | None = None) -> bool:
    """Train the stages of `run` that are not over yet, to `minutes` or to Ctrl-C; whether all are over now.

    Stopped early or not, the run's folder holds what continues exactly.  Raises KeyboardInterrupt where there was no
    step in hand to end, and InputError for settings that cannot be trained with, before the folder is touched.
    """
    machine = Machine.here(device)
    _check_precision(run, machine)
    _check_stored(run)
    # Here, not in the workers: one forked while OpenCV's threads live would wait for their lock for ever.
    cv2.setNumThreads(0)
    keeper = Keeper(run, minutes)
    for stage in run.stages:
        if run.kept(stage.name).is_file():
            continue
        if not _train_stage(run, stage, machine, images, held_out, keeper):
            return False
        if stage is not run.stages[-1] and machine.rank == 0:
            run.finish(stage)
        if machine.processes > 1:
            torch.distributed.barrier()  # the next stage reads what the first process has just put away
    return True


def _check_precision(run: Run, machine: Machine) -> None:
    device = machine.device()
    for stage in run.stages:
        if run.configs[stage.name].precision == "16" and device.type != "cuda" and not run.kept(stage.name).is_file():
            raise InputError(f"precision=16 needs a GPU (here: {device}); use precision=bf16")


def _check_stored(run: Run) -> None:
    """Raises InputError where settings that --resume changed do not fit what the stages of `run` have left."""
    for file in filter(Path.is_file, [*(run.kept(stage.name) for stage in run.stages), run.last]):
        checkpoint = load_checkpoint(file)
        about = checkpoint["kp_training"]
        try:
            stage, _ = load_network(run.method, checkpoint)
        except InputError as error:
            stored = ", ".join(f"{name}={value}" for name, value in about["settings"].items()
                               if value != getattr(run.method.config, name, None))
            raise InputError(f"{error}; {file} was trained with {stored or 'the same settings'}") from error
        if file != run.last:
            continue
        for name, kind in (("optimizer", str), ("ema", bool)):  # another decay fits, but there is an average or none
            now = getattr(run.configs[stage.name], name)
            before = about["training"][stage.name].get(name, now)
            if kind(before) != kind(now):
                raise InputError(f"{name}={now} does not fit {file}, which was trained with {name}={before}; leave it "
                                 f"as it was, or start a new run from the weights: --init {file}")


def _train_stage(run: Run, stage: Stage, machine: Machine, images: Images, held_out: Images, keeper: Keeper) -> bool:
    """Whether the stage came to its end."""
    config = run.configs[stage.name]
    module, resumed = Trained(stage, config, machine), run.in_hand(stage)
    module.context = context_of(run, stage, machine, images)
    if not resumed:
        _start(module, stage, first=stage is run.stages[0])
    if machine.rank == 0:
        run.write_config()  # now that it has been seen to work, and before images are labelled, which may be stopped
    validation = Validation(run, stage, held_out)
    keeper.begin(stage)
    trainer = trainer_of(run, config, machine, [Progress(stage.name, config.steps), validation, keeper])
    try:
        with worker_errors():
            trainer.fit(module, ckpt_path=str(run.last) if resumed else None, weights_only=True)
    except SystemExit as error:  # what Lightning makes of a Ctrl-C before the first step, as while images are labelled
        keeper.restore_signals()
        raise KeyboardInterrupt from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = f"free some space, then train --resume {run.folder}"
        raise InputError(f"{run.folder}: {error.strerror}; {advice}") from error
    over = trainer.global_step >= config.steps or validation.exhausted
    if machine.rank == 0:
        run.write_metrics(stage.name, {"steps": float(trainer.global_step), "minutes": keeper.minutes(),
                                       **validation.latest, **validation.best_metrics()})
    return over


def trainer_of(run: Run, config: TrainConfig, machine: Machine, callbacks: list[Callback]) -> lightning.Trainer:
    """Lightning's loop for one stage of `run`."""
    return lightning.Trainer(
        accelerator=machine.device().type, devices=machine.local_processes, num_nodes=machine.nodes,
        strategy=machine.strategy(), use_distributed_sampler=False, max_steps=config.steps, max_epochs=-1,
        precision="16-mixed" if config.precision == "16" else "32-true", accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip or None, log_every_n_steps=config.log_every, default_root_dir=run.folder,
        logger=TensorBoardLogger(run.folder, name="", version=""), callbacks=callbacks, plugins=[AtomicCheckpoints()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )


def _start(module: Trained, stage: Stage, first: bool) -> None:
    if first:
        module.context.initial(module.network)
    if stage.start is not None:
        stage.start(module.network, module.context)
    if module.average is not None:
        module.average.load_state_dict(module.network.state_dict())


def context_of(run: Run, stage: Stage, machine: Machine, images: Images) -> Context:
    """What `stage` of `run` makes its data from."""
    config, device = run.configs[stage.name], machine.device()
    on_device = config.augment == "device" or (config.augment == "auto" and device.type == "cuda")

    def trained(name: str) -> nn.Module:
        _, network = load_network(run.method, load_checkpoint(run.kept(name)))
        return network.eval().to(device)

    def initial(network: nn.Module) -> bool:
        if run.initial is not None:
            load_initial(network, run.initial)
        return run.initial is not None

    items = config.steps * config.batch_size * config.accumulate * machine.processes
    scenes = functools.partial(checked_scenes, run.data)
    return Context(images, config.seed, device, on_device, cache_folder("labels"), trained, items, scenes, initial)


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def _to_float(outputs: Any) -> Any:
    """Tensors in 32 bit, whatever holds them."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, Mapping):
        return {name: _to_float(values) for name, values in outputs.items()}
    if outputs is None:
        return None
    parts = [_to_float(values) for values in outputs]
    return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
