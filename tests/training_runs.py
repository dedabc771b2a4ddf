"""A small training, by the loop and written out."""

import torch
from torch import nn
from torch.nn import functional as F

from fusedopt.data import Normalize
from fusedopt.models import HandClassifier
from fusedopt.training import Settings, make_optimizer, seeded, train


class Normed(nn.Module):
    """A network with buffers of both kinds: running statistics, and how many batches they are of."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.Linear(4 * 6 * 6, 3)

    def forward(self, images):
        return self.fc(F.relu(self.norm(self.conv(images))).flatten(1))


def fit(data, model=HandClassifier, optimizer="torch.sgd", lr=None, epochs=2, batch_size=16, **options):
    """Trains with settings; returns the network and the epochs."""
    arguments = {name: options.pop(name) for name in ("loss_fn", "on_epoch", "augmentation") if name in options}
    network = seeded(model, 0)
    chosen = make_optimizer(optimizer, network.parameters(), lr=lr)
    settings = Settings(**options)
    torch.manual_seed(0)
    return network, list(
        train(network, chosen, data, epochs=epochs, batch_size=batch_size, settings=settings, **arguments)
    )


def written_out(data, model=HandClassifier, optimizer="torch.sgd", lr=None, epochs=2, batch_size=16):
    """The same batches as `train` has, for a training that is written out."""
    network = seeded(model, 0)
    chosen = make_optimizer(optimizer, network.parameters(), lr=lr)
    generator, normalize = torch.Generator().manual_seed(0), Normalize(data.train_images)
    batches = []
    for _ in range(epochs):
        order = torch.randperm(len(data.train_labels), generator=generator)
        batches += [(normalize(data.train_images[i]), data.train_labels[i]) for i in order.split(batch_size)]
    torch.manual_seed(0)
    return network.train(), chosen, batches


def assert_same_weights(ours, theirs, rtol=0.0, atol=0.0):
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=rtol, atol=atol)
