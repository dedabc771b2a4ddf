"""Accelerate: accumulation, clipping, saved states, and steps that an overflow skips."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState, PartialState
from integrations.problem import loader, make_model
from torch.nn.functional import cross_entropy


@pytest.fixture(autouse=True)
def fresh():
    yield
    for state in AcceleratorState, GradientState, PartialState:
        state._reset_state()


def epoch(accelerator, model, opt, scheduler, batches):
    for inputs, labels in batches:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(inputs).float(), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
            scheduler.step()
            opt.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulate_save_and_load(both, tmp_path, precision):
    def training(make):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        net = make_model()
        opt = make(net.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
        model, opt, scheduler, batches = accelerator.prepare(net, opt, scheduler, loader())
        epoch(accelerator, model, opt, scheduler, batches)
        accelerator.save_state(tmp_path / "state")
        epoch(accelerator, model, opt, scheduler, batches)
        after = [p.detach().clone() for p in net.parameters()]
        accelerator.load_state(tmp_path / "state")
        epoch(accelerator, model, opt, scheduler, batches)
        torch.testing.assert_close(list(net.parameters()), after, rtol=0, atol=0)
        return net

    both(training, **({} if precision == "no" else {"rtol": 0.02, "atol": 2e-3}))


def test_the_schedule_waits_where_an_overflow_skips_the_step(both):
    def training(make):
        accelerator = Accelerator(cpu=True)
        net = make_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # what mixed_precision="fp16" makes on a GPU
        opt = AcceleratedOptimizer(make(net.parameters()), scaler=scaler)
        schedule = torch.optim.lr_scheduler.StepLR(opt.optimizer, 1, 0.5)
        scheduler = AcceleratedScheduler(schedule, opt, split_batches=True)
        skipped = []
        for step, (inputs, labels) in enumerate(loader()):
            scaler.scale(cross_entropy(net(inputs), labels)).backward()
            if step == 2:
                net[0].weight.grad[0, 0] = float("inf")
            accelerator.gradient_state._set_sync_gradients(True)
            opt.step()
            scheduler.step()
            opt.zero_grad()
            skipped.append(opt.step_was_skipped)
        assert skipped == [step == 2 for step in range(6)]
        assert schedule.last_epoch == 5
        return net

    both(training)
