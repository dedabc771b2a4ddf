"""Engines that hide from an optimizer that its parameters are on several processes: results are those of one."""

import copy
import functools
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from engines import CASES, STEPS, batch, check, make_model, train
from ranks import gloo_group, one_process, run_ranks
from torch import nn

import fusedopt

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


# ---- The engines ----


def with_zero(rank, world):
    """Each process has some of the tensors, the last of four none."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    for case, make in CASES.items():
        own = make(make_model().parameters())
        options = {k: v for k, v in own.defaults.items() if k not in ("foreach", "fused", "decoupled_weight_decay")}
        for bucket_view in False, True:
            model = DistributedDataParallel(make_model())
            opt = ZeroRedundancyOptimizer(
                model.parameters(), type(own), parameters_as_bucket_view=bucket_view, **options
            )
            train(model, opt, rank, world)
            check(case, model.parameters(), opt.optim)
            assert all(g.get("max_grad_norm") == own.defaults["max_grad_norm"] for g in opt.param_groups)

        opt.consolidate_state_dict()
        if rank == 0:  # goes on in one process, and back
            train(model.module, opt, steps=[])
            single = make(copy.deepcopy(model.module).parameters())
            single.load_state_dict(opt.state_dict())
    # A group that comes later, and only some processes have a part of it.
    model = DistributedDataParallel(make_model())
    first, *others = model.parameters()
    opt = ZeroRedundancyOptimizer([first], fusedopt.AdamW, lr=0.01, eps=0.1, max_grad_norm=0.05)
    opt.add_param_group({"params": others})
    train(model, opt, rank, world)
    check("adamw", model.parameters(), opt.optim)


def with_fsdp1(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    linears = ModuleWrapPolicy({nn.Linear})
    kinds = {
        "full": {"sharding_strategy": ShardingStrategy.FULL_SHARD},
        "grad": {"sharding_strategy": ShardingStrategy.SHARD_GRAD_OP, "auto_wrap_policy": linears},
        "none": {"sharding_strategy": ShardingStrategy.NO_SHARD},
    }
    if world == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        kinds["hybrid"] = {"sharding_strategy": ShardingStrategy.HYBRID_SHARD, "device_mesh": mesh}
    for original in True, False:
        for kind, options in kinds.items():
            for case, make in CASES.items():
                wrap = functools.partial(
                    FullyShardedDataParallel, device_id=torch.device("cpu"), use_orig_params=original, **options
                )
                model = wrap(make_model())
                if case == "lamb" and not original:
                    with pytest.raises(ValueError, match="use_orig_params=True, or use fully_shard"):
                        make(model.parameters())
                    continue
                opt = make(model.parameters())
                train(model, opt, rank, world)
                with FullyShardedDataParallel.summon_full_params(model):
                    check(case, list(model.parameters()), opt)
                spread = case in ("lamb", "swats", "swats-clip") and kind != "none"
                paths = {e.path for e in opt.explain()} - {"none"}
                assert paths <= ({"torch"} if spread else {"fused"}), (kind, case, opt.explain())


def with_ignored_parameters(rank, world):
    """What FSDP1 leaves whole on every process counts once."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for case in "adamw", "lamb", "swats":
        model = make_model()
        ignored = list(model[0].parameters())
        model = FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True, ignored_states=ignored
        )
        opt = CASES[case](model.parameters())
        for p in ignored:  # nobody else averages these
            p.register_hook(lambda grad: (dist.all_reduce(grad := grad.clone()), grad / world)[1])
        train(model, opt, rank, world)
        with FullyShardedDataParallel.summon_full_params(model):
            check(case, list(model.parameters()), opt)


def with_noise(rank, world):
    """Parts of one parameter do not all get the same noise."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"))
    opt = fusedopt.SGD(model.parameters(), lr=1.0)
    fusedopt.GradientNoise(opt, eta=1.0)
    (flat,) = opt.param_groups[0]["params"]
    flat.grad = torch.zeros_like(flat)
    opt.step()
    parts = [None] * world
    dist.all_gather_object(parts, flat.grad)
    assert parts[0].std() > 0.3
    assert not any(torch.equal(parts[0][:5], part[:5]) for part in parts[1:])


def with_an_overflow_on_one_rank(rank, world):
    """ShardedGradScaler asks all processes unless a fused optimizer takes over, which ours does not here."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    for original in False, True:
        for fused in False, True:
            model = FullyShardedDataParallel(make_model(), device_id=torch.device("cpu"), use_orig_params=original)
            opt = fusedopt.AdamW(model.parameters(), lr=0.1, fused=fused)
            scaler = ShardedGradScaler("cpu", init_scale=8.0)
            for step in range(3):
                before = [p.detach().clone() for p in model.parameters()]
                opt.zero_grad()
                scaler.scale(model(batch(step, rank, world)).square().mean()).backward()
                if step == 1 and rank == 0:
                    next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = float("inf")
                scaler.step(opt)
                scaler.update()
                same = all(map(torch.equal, before, model.parameters()))
                assert same == (step == 1), (rank, step, fused)
            assert scaler.get_scale() == 4.0


class Whole(nn.Module):
    """A model whose parameters are cut, a part for each process, with nothing to tell of it."""

    def __init__(self, rank, world):
        super().__init__()
        self.whole = make_model()
        self.cut = [torch.tensor_split(p.detach(), world)[rank].clone() for p in self.whole.parameters()]
        self.rank, self.world = rank, world

    def backward(self, step):
        self.whole.zero_grad()
        (3 * self.whole(batch(step))).square().mean().backward()
        for p, part in zip(self.whole.parameters(), self.cut, strict=True):
            part.grad = torch.tensor_split(p.grad, self.world)[self.rank].clone()

    def gather(self):
        for p, part in zip(self.whole.parameters(), self.cut, strict=True):
            parts = [torch.empty_like(t) for t in torch.tensor_split(p.detach(), self.world)]
            boxes = [None] * self.world
            dist.all_gather_object(boxes, part)
            with torch.no_grad():
                p.copy_(torch.cat([box.view_as(t) for box, t in zip(boxes, parts, strict=True)]))


def with_a_group_that_was_told(rank, world):
    for case, make in CASES.items():
        model = Whole(rank, world)
        opt = make(model.cut, norm_group=dist.group.WORLD)
        for step in range(STEPS):
            model.backward(step)
            opt.step()
            model.gather()
        check(case, model.whole.parameters(), opt)
    with pytest.raises(TypeError, match=r"norm_group cannot be copied or pickled.*load its state_dict"):
        copy.deepcopy(opt)
    # Gradients that a process lacks are no reason to stay away.
    for case in "adamw", "lamb", "swats":
        opt = CASES[case](model.cut, norm_group=dist.group.WORLD)
        model.backward(0)
        if rank == 0:
            for part in model.cut:
                part.grad = None
        opt.step()
        norms = [None] * world
        dist.all_gather_object(norms, opt.grad_norm)
        assert all(norm == norms[0] for norm in norms)


def with_flat_partitions(rank, world):
    """As DeepSpeed does, which puts a part of all, flattened, in the place of a group's parameters."""

    def partition(opt, params):
        flat = torch.cat([p.detach().reshape(-1) for p in params])
        part = torch.tensor_split(flat, world)[rank].clone()
        opt.param_groups[0]["params"] = [part]
        part.grad = torch.ones_like(part)
        return part

    params = list(make_model().parameters())
    for case, make in CASES.items():
        part = partition(opt := make(params), params)
        if case == "adamw-no-clip":
            opt.step()
            continue
        match = "takes norms of single tensors: choose another" if case == "lamb" else "norm_group, the processes over"
        before = part.clone()
        with pytest.raises(ValueError, match=match):
            opt.step()
        assert torch.equal(part, before)
        assert not opt.state.get(part)
        if case == "lamb":
            continue
        part = partition(opt := make(params, norm_group=dist.group.WORLD), params)
        opt.step()
        if opt.grad_norm is not None:
            torch.testing.assert_close(opt.grad_norm, torch.tensor(float(sum(p.numel() for p in params))).sqrt())


ENGINES = [
    with_zero,
    with_fsdp1,
    with_ignored_parameters,
    with_noise,
    with_an_overflow_on_one_rank,
    with_a_group_that_was_told,
    with_flat_partitions,
]


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def results(request, tmp_path_factory):
    return run_ranks(__file__, tmp_path_factory.mktemp("ranks"), request.param, timeout=400)


@pytest.mark.parametrize("engine", [engine.__name__ for engine in ENGINES])
def test_results_are_those_of_one_process(results, engine):
    assert [result[engine] for result in results] == [None] * len(results)


def test_what_a_caller_deletes_is_gone(tmp_path):
    import torch.distributed.optim.zero_redundancy_optimizer  # whose frames are looked for

    with one_process(tmp_path):
        activations = torch.zeros(3)
        fusedopt.SGD([torch.zeros(3)], lr=0.1)
        gone = weakref.ref(activations)
        del activations
        assert gone() is None


def main(rank, folder, world):
    import traceback

    outcomes = {}
    with gloo_group(rank, folder, world):
        for engine in ENGINES:
            try:
                engine(rank, world)
                outcomes[engine.__name__] = None
            except (Exception, pytest.fail.Exception):
                outcomes[engine.__name__] = traceback.format_exc()
            dist.barrier()
    torch.save(outcomes, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
