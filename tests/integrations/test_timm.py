"""timm: layer-wise decay of the rate in parameter groups, and its average of the weights."""

import timm
import torch
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy


def test_layer_decay_and_average(both):
    def training(make):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=3
        )
        groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.7)
        assert len(groups) > 4
        opt = make(groups)
        for group in opt.param_groups:  # as timm's schedulers do
            group["lr"] = group["lr"] * group["lr_scale"]
        ema = ModelEmaV3(model, decay=0.5)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            opt.zero_grad()
            images = torch.randn(4, 3, 32, 32, generator=generator)
            cross_entropy(model(images), torch.tensor([0, 1, 2, 0])).backward()
            opt.step()
            ema.update(model)
        return ema.module

    both(training, rtol=1e-4, atol=1e-5)
