"""Lightning and Fabric: trainings with torch's class and with ours come to the same weights."""

import atexit
import gc
import os
from datetime import timedelta
from functools import partial
from unittest import mock

import pytest
import torch
from integrations.problem import loader, make_model
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.tuner import Tuner
from torch.nn.functional import cross_entropy

import fusedopt

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Module(LightningModule):
    def __init__(self, make, clips=False, manual=False):
        super().__init__()
        self.net, self.make, self.clips, self.lr = make_model(), make, clips, None
        self.automatic_optimization = not manual
        self.skipped = 0

    def configure_optimizers(self):
        # In a process of a group: a thread of gloo that outlives Python, with a model that nobody collected, aborts.
        atexit.register(gc.collect)
        opt = self.make(self.net.parameters(), **({"max_grad_norm": 0.1} if self.clips else {}))
        if self.lr is not None:
            opt.param_groups[0]["lr"] = self.lr
        if not self.automatic_optimization:
            return opt
        return [opt], [{"scheduler": torch.optim.lr_scheduler.StepLR(opt, 3, 0.5), "interval": "step"}]

    def training_step(self, batch, index):
        loss = cross_entropy(self.net(batch[0]).float(), batch[1])
        if not self.automatic_optimization:
            opt = self.optimizers()
            opt.zero_grad()
            self.manual_backward(loss)
            opt.step()
        return loss

    def train_dataloader(self):
        return loader()


def fit(make, manual=False, epochs=2, scaler=False, **options):
    module = Module(make, manual=manual)
    if scaler:  # what precision="16-mixed" is on a GPU
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))]
    Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET, **options).fit(module)
    return module.net


SETTINGS = {
    "plain": {},
    "manual": {"manual": True},
    "accumulate": {"accumulate_grad_batches": 4},
    "clip": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-true": {"precision": "bf16-true"},
    "bf16-mixed with clip": {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    "16-mixed with clip": {"scaler": True, "gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_trainer(both, setting):
    # With bfloat16 weights torch rounds after every operation and ours after the step, a unit in the last place or two.
    close = {"atol": 1e-2} if setting == "bf16-true" else {"rtol": 0.02, "atol": 2e-3} if "16" in setting else {}
    both(partial(fit, **SETTINGS[setting]), **close)


def test_averaging(both):
    both(lambda make: fit(make, epochs=4, callbacks=[StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2)]))


def test_learning_rate_finder(both):
    def training(make):
        module = Module(make)
        trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
        found = Tuner(trainer).lr_find(module, num_training=30, min_lr=1e-4, max_lr=1.0)
        suggestions.append(found.suggestion())
        trainer.fit(module)
        return module.net

    suggestions = []
    both(training, rtol=1e-4, atol=1e-5)
    assert suggestions[0] == pytest.approx(suggestions[1])


def test_resume_in_the_middle_of_an_epoch(both, tmp_path):
    """From a checkpoint after four of six batches."""

    def training(make):
        first = Module(make)
        keep = ModelCheckpoint(
            dirpath=tmp_path, filename="middle", every_n_train_steps=4, save_top_k=-1, enable_version_counter=False
        )
        Trainer(max_steps=4, callbacks=[keep], **QUIET).fit(first)
        second = Module(make)
        Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(
            second, ckpt_path=tmp_path / "middle.ckpt", weights_only=False
        )
        return second.net

    both(training)


def test_the_optimizers_own_clipping_equals_lightnings(both):
    def training(make):
        if make([torch.zeros(1)]).__module__.startswith("torch"):
            return fit(make, gradient_clip_val=0.1)
        module = Module(make, clips=True)
        Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(module)
        return module.net

    both(training)


needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


def fit_together(make, start):
    strategy = DDPStrategy(start_method=start, process_group_backend="gloo", timeout=timedelta(minutes=3))
    with mock.patch.dict(os.environ, MASTER_ADDR="127.0.0.1"):  # Lightning adds a port
        return fit(make, strategy=strategy, devices=2, epochs=1)


@needs_gloo
def test_two_processes(both, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    both(partial(fit_together, start="fork"))


@needs_gloo
@pytest.mark.parametrize("both", ["AdamW"], indirect=True)
def test_two_processes_that_are_spawned(both, monkeypatch):
    """Torch's class in forked ones, which need not import Lightning first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    both(lambda make: fit_together(make, "spawn" if make.func is fusedopt.AdamW else "fork"))


def test_fused_true_is_refused_as_torchs_is():
    """The step takes the scale then, and Lightning has nothing to clip."""
    for module in torch.optim, fusedopt:
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping because it performs unscaling"):
            fit(partial(module.AdamW, fused=True), precision="bf16-mixed", gradient_clip_val=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(both, precision):
    def training(make):
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        net = make_model()
        model, opt = fabric.setup(net, make(net.parameters()))
        for inputs, labels in fabric.setup_dataloaders(loader()):
            opt.zero_grad()
            fabric.backward(cross_entropy(model(inputs).float(), labels))
            fabric.clip_gradients(model, opt, max_norm=0.1)
            opt.step()
        return net

    both(training, **({} if precision == "32-true" else {"rtol": 0.02, "atol": 2e-3}))
