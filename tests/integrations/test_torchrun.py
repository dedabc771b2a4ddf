"""One script under torchrun, on 2 and 4 processes over gloo: engines with torch's class and with ours."""

import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from integrations.problem import CLASSES, dataset, make_model
from ranks import torchrun
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import fusedopt

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
CLIP = 0.1
# The classes that train two steps each, one after the other, and whether gradients are clipped: by
# torch.nn.utils.clip_grad_norm_ or what the engine has in its place for torch's class, by max_grad_norm= for ours.
PLANS = {
    "alone": ("ours", "ours", "ours", False),
    "clipped": ("ours", "ours", "ours", True),
    "there and back": ("torch", "ours", "torch", True),
}


class Ddp:
    """DistributedDataParallel, and what the other engines do otherwise."""

    data_parallel = True

    def wrap(self, model):
        return DistributedDataParallel(model)

    def make(self, make, model):
        return make(model.parameters())

    def backward(self, model, inputs, labels):
        cross_entropy(model(inputs), labels).backward()

    def clip(self, model):
        clip_grad_norm_(model.parameters(), CLIP)

    def explain(self, opt):
        return opt.explain()

    def carry(self, model, opt, other, other_opt):
        """Brings a state from one optimizer to another; the networks have it already."""
        other_opt.load_state_dict(opt.state_dict())

    def whole(self, model):
        return nullcontext()


class Accumulating(Ddp):
    """Two halves of a batch, of which the first is not averaged, into gradients that are views of buckets."""

    def wrap(self, model):
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def backward(self, model, inputs, labels):
        (first, second), (ones, others) = inputs.chunk(2), labels.chunk(2)
        with model.no_sync():
            (cross_entropy(model(first), ones) / 2).backward()
        (cross_entropy(model(second), others) / 2).backward()


class PostLocalSgd(Ddp):
    """After a step gradients are averaged in pairs of processes, or not at all, and parameters every second step."""

    def __init__(self):
        self.pairs, _ = dist.new_subgroups(max(1, dist.get_world_size() // 2))

    def wrap(self, model):
        from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook

        model = DistributedDataParallel(model)
        model.register_comm_hook(PostLocalSGDState(None, self.pairs, start_localSGD_iter=1), post_localSGD_hook)
        return model

    def make(self, make, model):
        from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
        from torch.distributed.optim import PostLocalSGDOptimizer

        return PostLocalSGDOptimizer(make(model.parameters()), PeriodicModelAverager(period=2, warmup_steps=1))

    def explain(self, opt):
        return opt.optim.explain()


class Zero(Ddp):
    """ZeroRedundancyOptimizer."""

    def make(self, make, model):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(model.parameters(), make.func, **make.keywords)

    def explain(self, opt):
        return opt.optim.explain()

    def carry(self, model, opt, other, other_opt):
        opt.consolidate_state_dict()
        box = [opt.state_dict() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(box)
        other_opt.load_state_dict(box[0])


class Fsdp1(Ddp):
    def __init__(self, original):
        self.original = original

    def wrap(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=self.original)

    def clip(self, model):
        model.clip_grad_norm_(CLIP)

    def carry(self, model, opt, other, other_opt):
        state = model.optim_state_dict(model, opt)
        other_opt.load_state_dict(other.optim_state_dict_to_load(other, other_opt, state))

    def whole(self, model):
        return model.summon_full_params(model)


class Fsdp2(Ddp):
    def wrap(self, model):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))

    def carry(self, model, opt, other, other_opt):
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

        set_optimizer_state_dict(other, other_opt, get_optimizer_state_dict(model, opt))


class TensorParallel(Fsdp2):
    data_parallel = False

    def wrap(self, model, mesh=None):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
        return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


class TwoDimensions(TensorParallel):
    """Pairs of processes have a network together, which the pairs share."""

    def wrap(self, model, mesh=None):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "model"))
        return fully_shard(super().wrap(model, mesh["model"]), mesh=mesh["data"])


ENGINES = {
    "DDP": Ddp,
    "DDP, accumulating": Accumulating,
    "PostLocalSGD": PostLocalSgd,
    "ZeRO": Zero,
    "FSDP1": partial(Fsdp1, original=True),
    "FSDP1, flat": partial(Fsdp1, original=False),
    "FSDP2": Fsdp2,
    "TP": TensorParallel,
    "2-D": TwoDimensions,
}


def whole(engine, model):
    with engine.whole(model):
        return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach().clone() for p in model.parameters()]


def train(engine, name, classes, clip):
    inputs, labels = dataset().tensors
    parts, part = (dist.get_world_size(), dist.get_rank()) if engine.data_parallel else (1, 0)
    model = opt = None
    for stage, kind in enumerate(classes):
        own_clip = {"max_grad_norm": CLIP} if clip and kind == "ours" else {}
        make = partial(getattr(fusedopt if kind == "ours" else torch.optim, name), **CLASSES[name], **own_clip)
        other = engine.wrap(make_model())
        other_opt = engine.make(make, other)
        if model is not None:
            other.load_state_dict(model.state_dict())
            engine.carry(model, opt, other, other_opt)
        model, opt = other, other_opt
        for step in range(2 * stage, 2 * stage + 2):
            batch = slice(8 * step, 8 * step + 8)
            opt.zero_grad()
            engine.backward(model, inputs[batch].chunk(parts)[part], labels[batch].chunk(parts)[part])
            if clip and kind == "torch":
                engine.clip(model)
            opt.step()
        if kind == "ours":
            assert {e.path for e in engine.explain(opt)} <= {"fused", "none"}
    return whole(engine, model)


def expectations(engine, name):
    """What torch's class comes to, by whether gradients are clipped; every engine's states are handed on here, too."""
    start = list(make_model().parameters())
    found = {clip: train(engine, name, ["torch"] * 3, clip) for clip in (False, True)}
    for one, other in (found[False], start), (found[True], start), (found[True], found[False]):
        assert max((a - b).abs().max() for a, b in zip(one, other, strict=True)) > 5e-3
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_engines(world):
    tests = Path(__file__).parents[1]
    code, output, errors = torchrun(world, "-m", "integrations.test_torchrun", cwd=tests, timeout=200)
    assert code == 0, output + errors
    assert output.count(f": {len(ENGINES) * len(CLASSES) * len(PLANS)} right\n") == world


def main():
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    wrong, right = [], 0
    for title, kind in ENGINES.items():
        engine = kind()
        for name in CLASSES:
            expected = expectations(engine, name)
            for plan, (*classes, clip) in PLANS.items():
                ours = train(engine, name, classes, clip)
                try:
                    torch.testing.assert_close(ours, expected[clip], rtol=1e-5, atol=1e-6)
                    right += 1
                except AssertionError as error:
                    wrong.append(f"{title}, {name}, {plan}: {error}")
    sys.stdout.write("\n".join([f"{dist.get_rank()}: {right} right", *wrong, ""]))  # at once, beside the others
    dist.barrier()  # the first that fails ends the others
    dist.destroy_process_group()
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
