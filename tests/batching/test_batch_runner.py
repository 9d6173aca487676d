"""Static batches: every item's own result, in order, whatever the sizes; and a memory that stays flat."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from servelab.batching import LastBatch, run_batches
from servelab.memory import record
from servelab.memory.timeline import modelled


class Seen:
    """A model that remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        return batch.sum(dim=1, keepdim=True) * 2


def items(count: int) -> Tensor:
    return torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from(LastBatch), st.booleans())
def test_each_item_gets_its_own_result_in_order(
    count: int, batch_size: int, last_batch: LastBatch, warm_up: bool
) -> None:
    given, model = items(count), Seen()
    kept = count - count % batch_size if last_batch is LastBatch.DROP else count
    if not kept:
        with pytest.raises(ValueError, match="do not drop"):
            run_batches(model, given, batch_size, last_batch=last_batch, progress=False)
        return
    done = run_batches(model, given, batch_size, last_batch=last_batch, warm_up=warm_up, progress=False)
    assert torch.equal(done, given[:kept].sum(dim=1, keepdim=True) * 2)
    whole, rest = divmod(count, batch_size)
    expected = [batch_size] * whole
    if rest and last_batch is not LastBatch.DROP:
        expected.append(batch_size if last_batch is LastBatch.PAD else rest)
    assert model.sizes == [expected[0]] * warm_up + expected


def test_padding_computes_one_shape_only() -> None:
    model = Seen()
    run_batches(model, items(10), 4, progress=False)
    assert set(model.sizes) == {4}


def test_padding_shows_in_a_model_whose_rows_depend_on_each_other() -> None:
    """The runner's condition: such a model gives other results for a padded batch."""

    def centred(batch: Tensor) -> Tensor:
        return batch - batch.mean(dim=0)

    ragged = run_batches(centred, items(5), 4, last_batch="ragged", progress=False)
    padded = run_batches(centred, items(6), 4, last_batch="pad", progress=False)
    assert torch.equal(ragged[4], torch.zeros(3))
    assert not torch.equal(padded[4:], items(6)[4:] - items(6)[4:].mean(dim=0))


def test_results_do_not_change_when_the_items_do() -> None:
    given = items(4)
    done = run_batches(lambda batch: batch, given, 2, progress=False)
    given.zero_()
    assert torch.equal(done, items(4))


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        (lambda batch: batch, [], "0 items"),
        (lambda batch: batch, [torch.zeros(3), torch.zeros(4)], r"Item 1 is \(4,\) of torch.float32"),
        (lambda batch: batch, [torch.zeros(3), torch.zeros(3, dtype=torch.int64)], "Item 1 is .*int64"),
        (lambda batch: {"logits": batch}, [torch.zeros(3)], "made dict of a batch of 32.*logits"),
        (lambda batch: batch.sum(), [torch.zeros(3)], r"made \(\) of a batch"),
        (lambda batch: batch[:1], [torch.zeros(3)], r"made \(1, 3\) of a batch"),
    ],
)
def test_what_cannot_be_done_is_said(
    model: Callable[[Tensor], Tensor], given: list[Tensor], says: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        run_batches(model, given, progress=False)


def test_a_model_that_raises_passes_its_error_on_and_can_be_run_again() -> None:
    fails = True

    def model(batch: Tensor) -> Tensor:
        if fails:
            raise KeyError("on purpose")
        return batch

    with pytest.raises(KeyError, match="on purpose"):
        run_batches(model, items(4), progress=False)
    fails = False
    assert torch.equal(run_batches(model, items(4), progress=False), items(4))


@pytest.mark.parametrize("last_batch", [LastBatch.PAD, LastBatch.RAGGED])
def test_memory_is_flat_from_the_first_batch_on(last_batch: LastBatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten()).eval()
    pictures = torch.randn(22, 3, 48, 48)
    with record(network) as recording:
        run_batches(
            network,
            pictures,
            8,
            last_batch=last_batch,
            progress=False,
            around=recording.batch,
        )
    timeline = modelled(recording.timeline)
    first, second, last = timeline.by_batch()
    assert [first.new_segments, second.new_segments, last.new_segments] == [0, 0, 0]
    assert first.allocated_after == second.allocated_after
    if last_batch is LastBatch.PAD:
        assert last.peak_allocated == second.peak_allocated
    else:
        assert last.peak_allocated < second.peak_allocated


def test_no_output_is_kept_beside_the_next_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten()).eval()
    with record(network) as recording:
        run_batches(network, torch.randn(24, 3, 24, 24), 8, progress=False, around=recording.batch)
    assert len({one.peak_allocated for one in recording.timeline.by_batch()}) == 1


def test_the_device_and_the_type_are_those_asked_for() -> None:
    done = run_batches(lambda batch: (batch * 2).to(torch.int64), items(5), 2, device="meta", progress=False)
    assert (done.device.type, done.dtype, done.shape) == ("meta", torch.int64, (5, 3))


def test_a_batch_is_announced_by_the_items_in_it() -> None:
    announced = []

    def around(size: int) -> AbstractContextManager[None]:
        announced.append(size)
        return nullcontext()

    run_batches(Seen(), items(10), 4, progress=False, around=around)
    assert announced == [4, 4, 2]


def test_the_rows_that_fill_a_batch_are_copies_of_its_last_item() -> None:
    seen: list[Tensor] = []

    def model(batch: Tensor) -> Tensor:
        seen.append(batch.clone())
        return batch

    run_batches(model, items(6), 4, warm_up=False, progress=False)
    assert torch.equal(seen[-1], items(6)[[4, 5, 5, 5]])


def test_the_warm_up_computes_real_items() -> None:
    """A model may fail on zeros."""
    matrices = [torch.eye(3) * (number + 1) for number in range(5)]
    done = run_batches(torch.linalg.inv, matrices, 4, progress=False)
    assert torch.allclose(done[4], torch.eye(3) / 5)


def test_a_model_may_change_its_batch() -> None:
    done = run_batches(lambda batch: batch.mul_(2), items(7), 3, progress=False)
    assert torch.equal(done, items(7) * 2)
    done = run_batches(lambda batch: batch.unsqueeze_(1).squeeze(1), items(7), 3, progress=False)
    assert torch.equal(done, items(7))


def test_results_of_another_shape_or_type_are_refused() -> None:
    def narrower(batch: Tensor) -> Tensor:
        return batch[:, :1] if batch[0, 0] > 5 else batch

    def whole_numbers(batch: Tensor) -> Tensor:
        return batch.long() if batch[0, 0] > 5 else batch

    for model in (narrower, whole_numbers):
        with pytest.raises(ValueError, match="must have one shape and type"):
            run_batches(model, items(6), 2, progress=False)


def test_each_item_is_read_once() -> None:
    class Read(list[Tensor]):
        def __getitem__(self, place: int) -> Tensor:  # type: ignore[override]
            read.append(place)
            return super().__getitem__(place)

    read: list[int] = []
    run_batches(Seen(), Read(items(10)), 4, warm_up=False, progress=False)
    assert sorted(read) == [0, 0, *range(10)]  # the first also for its shape and its device


def test_results_can_be_changed_and_trained_on() -> None:
    done = run_batches(lambda batch: batch, items(4), 2, progress=False)
    done += 1
    weight = torch.ones(3, requires_grad=True)
    (done @ weight).sum().backward()
    assert weight.grad is not None


def test_gradients_are_not_recorded() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not run_batches(lambda batch: batch * weight, items(3), progress=False).requires_grad
