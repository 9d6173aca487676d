"""What the tests of models share: few threads, and a marker for tests that need real weights."""

from collections.abc import Iterator

import pytest
import torch

from servelab.models import model_thread


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "weights: needs the weights of SmolLM2 on this machine")


@pytest.fixture(autouse=True, scope="session")
def one_worker() -> Iterator[None]:
    """Tiny networks gain nothing from several cores, and lose much when something else uses one of them."""
    workers = torch.get_num_threads()
    model_thread.call(torch.set_num_threads, 1)
    yield
    model_thread.call(torch.set_num_threads, workers)
