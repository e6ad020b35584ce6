import pytest
import torch

from lcw_lightning.observation.scratch import Scratch

LAYOUTS = {
    "contiguous": lambda: torch.zeros(4, 6),
    "transposed": lambda: torch.zeros(6, 4).t(),
    "channels-last": lambda: torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.zeros(1, 6).expand(4, 6),
    "empty": lambda: torch.zeros(0, 6),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_a_tensor_has_the_layout_that_torch_gives_a_copy(make):
    values, scratch = make(), Scratch()
    for _ in range(2):
        found = scratch.like(values, torch.float64)
        expected = torch.empty_like(values, dtype=torch.float64)
        assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)


def test_tensors_of_a_dtype_share_memory_and_those_of_two_dtypes_do_not():
    scratch, values = Scratch(), torch.zeros(8, 6)
    one, smaller = scratch.like(values, torch.float64), scratch.like(values[:4], torch.float64)
    other = scratch.like(values, torch.float32)
    assert one.data_ptr() == smaller.data_ptr() != other.data_ptr()
    assert scratch.like(values, torch.float64).data_ptr() == one.data_ptr()


def test_a_larger_tensor_gets_memory_of_its_size():
    scratch = Scratch()
    scratch.like(torch.zeros(2), torch.float64)
    larger = scratch.like(torch.zeros(9), torch.float64).fill_(1)
    assert larger.tolist() == [1] * 9
    assert scratch.like(torch.zeros(2), torch.float64).tolist() == [1, 1]


def test_sequences_of_any_length_do_not_add_up(monkeypatch):
    monkeypatch.setattr("lcw_lightning.observation.scratch._MOST", 4)
    scratch = Scratch()
    for length in range(1, 20):
        assert scratch.like(torch.zeros(length), torch.float32).shape == (length,)
        assert scratch.ones(torch.zeros(length, 2)).tolist() == [[1] * length]
    assert len(scratch._tensors) <= 4


def test_tensors_of_other_kinds_get_memory_of_their_own():
    scratch, parameter = Scratch(), torch.nn.Parameter(torch.zeros(3, 2))
    first, second = scratch.like(parameter, torch.float64), scratch.like(parameter, torch.float64)
    assert first.data_ptr() != second.data_ptr()
    assert scratch.like(torch.zeros(3, 2, device="meta"), torch.float64).is_meta
    assert scratch.ones(torch.zeros(3, 2, device="meta")).is_meta


def test_memory_taken_in_inference_mode_can_be_written_to_later():
    scratch, values = Scratch(), torch.zeros(3, 2)
    with torch.inference_mode():
        scratch.like(values, torch.float64), scratch.ones(values)
    scratch.like(values, torch.float64).copy_(values)
    assert not scratch.ones(values).is_inference()
