"""torchvision, to compare with, where it works."""

import pytest


def torchvision():
    """Imports torchvision, or skips the test: it is built for one version of torch, and fails to load with another."""
    try:
        import torchvision.transforms.v2.functional
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchvision does not work with this torch: {error}")
    return torchvision
