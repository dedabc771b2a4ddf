"""Scripts as people write them, which know nothing of fusedopt."""

# In the structure of torch's example of the same name, on drawn images.
MNIST = """
    import argparse
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import torch.optim as optim
    from torch.optim.lr_scheduler import StepLR


    class Net(nn.Module):
        def __init__(self):
            super(Net, self).__init__()
            self.conv1 = nn.Conv2d(1, 4, 3, 1)
            self.dropout1 = nn.Dropout(0.25)
            self.fc1 = nn.Linear(144, 10)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.conv1(x)), 2)
            x = self.fc1(torch.flatten(self.dropout1(x), 1))
            return F.log_softmax(x, dim=1)


    def train(args, model, device, train_loader, optimizer, epoch):
        model.train()
        for batch_idx, (data, target) in enumerate(train_loader):
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            output = model(data)
            loss = F.nll_loss(output, target)
            loss.backward()
            optimizer.step()
            if batch_idx % args.log_interval == 0:
                print(f"Train Epoch: {epoch} Loss: {loss.item():.3f}")


    def test(model, device, test_loader):
        model.eval()
        correct = 0
        with torch.no_grad():
            for data, target in test_loader:
                pred = model(data.to(device)).argmax(dim=1, keepdim=True)
                correct += pred.eq(target.to(device).view_as(pred)).sum().item()
        print(f"Test set: Accuracy: {correct}/{len(test_loader.dataset)}")


    def main():
        parser = argparse.ArgumentParser(description="PyTorch MNIST Example")
        parser.add_argument("--epochs", type=int, default=14)
        parser.add_argument("--lr", type=float, default=1.0)
        parser.add_argument("--gamma", type=float, default=0.7)
        parser.add_argument("--log-interval", type=int, default=2)
        parser.add_argument("--save-model", action="store_true")
        args = parser.parse_args()
        torch.manual_seed(1)
        device = torch.device("cpu")
        labels = torch.arange(40) % 10
        dataset = torch.utils.data.TensorDataset(torch.randn(40, 1, 14, 14) + labels[:, None, None, None], labels)
        train_loader = torch.utils.data.DataLoader(dataset, batch_size=10, shuffle=True)
        test_loader = torch.utils.data.DataLoader(dataset, batch_size=40)
        model = Net().to(device)
        optimizer = optim.AdamW(model.parameters(), lr=args.lr)
        scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)
        for epoch in range(1, args.epochs + 1):
            train(args, model, device, train_loader, optimizer, epoch)
            test(model, device, test_loader)
            scheduler.step()
        print(type(optimizer).__module__.split(".")[0])
        if args.save_model:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "mnist_cnn.pt")


    if __name__ == "__main__":
        main()
"""

SCALER = """
    import torch
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for number in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.ones(3, 4)).float().square().mean() * (float("inf") if number == 2 else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(p.isfinite().all() for p in model.parameters())
"""

LIBRARY = """
    from torch.optim import AdamW, LBFGS

    class Decayed(AdamW):
        def __init__(self, params):
            super().__init__(params, weight_decay=0.5)

    def make(params):
        return AdamW(params, lr=0.01, weight_decay=0.0)
"""

USES_LIBRARY = """
    import torch
    import library
    p, q, r = (torch.nn.Parameter(torch.randn(shape)) for shape in ((3,), (2, 3), (4,)))
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    optimizer, decayed = library.make([p, q]), library.Decayed([r])
    line_search = library.LBFGS([torch.nn.Parameter(torch.zeros(2))])
    rows = torch.optim.SGD(embedding.parameters(), lr=0.1)
    unused = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    q.requires_grad_(False)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum() + r.sum() + embedding(torch.tensor([1])).sum()
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure) > optimizer.step(closure=closure)
        decayed.step(), rows.step()
    del optimizer
"""

DDP = """
    import gc, sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel as DDP

    def main():
        dist.init_process_group("gloo")
        rank = dist.get_rank()
        torch.manual_seed(rank)
        model = DDP(nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        assert type(optimizer).__module__.startswith("fusedopt")
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, flat)
        assert all(torch.equal(each, flat) for each in everyone)
        with open(f"{rank}.txt", "w") as file:
            print(sys.argv[1:], dist.get_world_size(), file=file)
        dist.destroy_process_group()

    if __name__ == "__main__":
        main()
        gc.collect()  # a thread of gloo that outlives Python, with a model that nobody has collected, aborts
"""
