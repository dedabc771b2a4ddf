"""torch's distributed checkpoints: from torch's class to ours and back in the middle of a run, on 1, 2 and 4 ranks."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import gloo_group, run_ranks
from torch import nn
from torch.distributed.checkpoint import state_dict as states
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fusedopt

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
WORLDS = 2, 4, 1
CASES = {
    "sgd": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.01, "eps": 1e-2, "amsgrad": True}),
    "adamw": ("AdamW", {"lr": 0.01, "eps": 1e-2}),
}
OURS_ALONE = {
    "lamb": ("LAMB", {"lr": 0.01, "eps": 1e-2, "always_adapt": False, "weight_decay": 0.0, "max_grad_norm": None}),
    "delta-bar-delta": ("DeltaBarDelta", {"lr": 0.1, "momentum": 0.5}),
    "sgd-classic": ("SGD", {"lr": 0.1, "momentum": 0.9, "momentum_form": "classic"}),
    "adamw-8bit": ("AdamW", {"lr": 0.01, "eps": 1e-2, "state_dtype": "8bit", "min_8bit_size": 0}),
}
WAYS = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "full from rank 0": {"full_state_dict": True, "broadcast_from_rank0": True},
}


def fsdp2(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def fsdp1(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def tensor_parallel(model, mesh=None):
    mesh = mesh or init_device_mesh("cpu", (dist.get_world_size(),))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def two_dimensions(model):
    inner = min(dist.get_world_size(), 2)
    mesh = init_device_mesh("cpu", (dist.get_world_size() // inner, inner), mesh_dim_names=("outer", "inner"))
    return fully_shard(tensor_parallel(model, mesh["inner"]), mesh=mesh["outer"])


def unsharded(engine):
    torch.manual_seed(0)
    width = 8 if engine in (tensor_parallel, two_dimensions) else 7  # those cut a layer's outputs in equal parts
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))


def make_model(engine):
    return engine(unsharded(engine)) if engine else unsharded(engine)


def make(module, case, model):
    name, options = {**CASES, **OURS_ALONE}[case]
    decay = [p for name, p in model.named_parameters() if name.endswith("weight")]
    others = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return getattr(module, name)([{"params": decay}, {"params": others, "lr": 0.02}], **options)


def train(model, opt, steps):
    for step in steps:
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        opt.zero_grad()
        model(inputs).square().mean().backward()
        opt.step()


def whole(model):
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return [p.detach().clone() for p in model.parameters()]
    return [p.detach().full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def expected(case, steps, engine):
    """One run of torch's class, or of ours where there is none, without any of this."""
    model = unsharded(engine)
    train(model, make(torch.optim if case in CASES else fusedopt, case, model), range(steps))
    return whole(model)


def through_memory(old, old_opt, new, new_opt, way):
    """state_dict and set_state_dict, without a file."""
    options = states.StateDictOptions(**WAYS[way])
    model_state, state = states.get_state_dict(old, old_opt, options=options)
    states.set_state_dict(new, new_opt, model_state_dict=model_state, optim_state_dict=state, options=options)


def through_a_file(folder, old, old_opt, new, new_opt, way):
    options = states.StateDictOptions(**WAYS[way])
    model_state, state = states.get_state_dict(old, old_opt, options=options)
    dcp.save({"model": model_state, "optim": state}, checkpoint_id=folder)
    load(folder, new, new_opt, way)


def load(folder, model, opt, way):
    options = states.StateDictOptions(**WAYS[way])
    model_state, state = states.get_state_dict(model, opt, options=options)
    dcp.load({"model": model_state, "optim": state}, checkpoint_id=folder)
    states.set_state_dict(model, opt, model_state_dict=model_state, optim_state_dict=state, options=options)


def check_switch(engine, case, way, carry):
    """Two steps of torch's class, two of ours, two of torch's again, are six of torch's."""
    modules = (torch.optim, fusedopt, torch.optim) if case in CASES else (fusedopt, fusedopt, fusedopt)
    model = make_model(engine)
    opt = make(modules[0], case, model)
    train(model, opt, range(2))
    for number, module in enumerate(modules[1:], 1):
        other = make_model(engine)
        other_opt = make(module, case, other)
        carry(model, opt, other, other_opt, way)
        model, opt = other, other_opt
        train(model, opt, range(2 * number, 2 * number + 2))
    torch.testing.assert_close(whole(model), expected(case, 6, engine), rtol=1e-5, atol=1e-6)


def check_resharding(folder, engine, case, way, first, second):
    """Each number of ranks loads what the one before has saved, into the other class, and goes on."""
    stage = WORLDS.index(dist.get_world_size())
    model = make_model(engine)
    opt = make((first, second, first)[stage], case, model)
    path = folder / f"{engine.__name__}, {case}, {way}, {first.__name__}"
    if stage:
        load(path / str(stage - 1), model, opt, way)
    train(model, opt, range(2 * stage, 2 * stage + 2))
    torch.testing.assert_close(whole(model), expected(case, 2 * stage + 2, engine), rtol=1e-5, atol=1e-6)
    model_state, state = states.get_state_dict(model, opt, options=states.StateDictOptions(**WAYS[way]))
    dcp.save({"model": model_state, "optim": state}, checkpoint_id=path / str(stage))


def checks(folder):
    """All of them, by name."""
    for case in [*CASES, *OURS_ALONE]:
        coded = case.endswith("8bit")  # torch flattens no tuples, and DTensors are refused
        engines = (None,) if coded else (fsdp2, None)
        for way in [w for w in WAYS if w != "flat"] if coded else WAYS:
            for engine in engines:
                name = f"{case}, {way}, {'sharded' if engine else 'plain'}"
                yield f"memory, {name}", partial(check_switch, engine, case, way, through_memory)
            if not way.startswith("full"):
                carry = partial(through_a_file, folder / f"{case}, {way}")
                yield f"file, {case}, {way}", partial(check_switch, engines[0], case, way, carry)
    for engine in fsdp2, fsdp1, tensor_parallel, two_dimensions:
        for case in CASES if engine is fsdp2 else ("sgd", "adamw"):
            # torch cannot load FSDP1's nested states itself: "Missing key ... optim.param_groups".
            for way in ("flat",) if engine is fsdp1 else ("nested", "flat"):
                for modules in (torch.optim, fusedopt), (fusedopt, torch.optim):
                    name = f"resharding, {engine.__name__}, {case}, {way}, {modules[0].__name__} first"
                    yield name, partial(check_resharding, folder, engine, case, way, *modules)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """By number of ranks what each rank has to say, in the order of `WORLDS`, in one folder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {world: run_ranks(__file__, folder, world, timeout=400) for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["memory", "file", "resharding"])
def test_the_state_of_torch_goes_on_here_and_back(results, world, kind):
    for outcome in results[world]:
        wrong = {name: error for name, error in outcome.items() if name.startswith(kind) and error}
        assert not wrong
        assert sum(name.startswith(kind) for name in outcome) >= 16


def main(rank, folder, world):
    outcomes = {}
    (folder / "stores" / str(world)).mkdir(parents=True, exist_ok=True)
    with gloo_group(rank, folder / "stores" / str(world), world):
        for name, check in checks(folder):
            try:
                check()
                outcomes[name] = None
            except (Exception, CheckpointException) as error:  # every rank goes on with the next one
                outcomes[name] = f"{type(error).__name__}: {error}"
    torch.save(outcomes, folder / f"{rank}.pt")
    # With PyTorch 2.13 Python's end may abort ("terminate called"): so many groups over gloo, whose threads go on.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
