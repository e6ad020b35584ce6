import pytest
import torch
from torchvision.transforms import functional, v2

from lcw_lightning.data.augmentation import ImageTransform, channel_mean_and_std, crop_and_flip


@pytest.fixture
def images():
    return torch.randint(256, (40, 3, 8, 12), dtype=torch.uint8)


def draws_of(samples, seed=0):
    transform = ImageTransform(torch.zeros(3, 1, 1), torch.ones(3, 1, 1), augment=True)
    return transform.draw(samples, torch.Generator().manual_seed(seed))


def one_by_one(images, draws, flip=functional.hflip):
    """What torchvision makes of each image, in a plain loop."""
    done = []
    for image, (top, left, flipped) in zip(images, draws.tolist(), strict=True):
        cropped = functional.crop(functional.pad(image, [4]), top, left, *image.shape[-2:])
        done.append(flip(cropped) if flipped else cropped)
    return torch.stack(done)


def test_a_batch_is_cropped_and_flipped_as_torchvision_does_it_one_by_one(images):
    draws = draws_of(len(images))
    expected = one_by_one(images, draws)
    assert torch.equal(crop_and_flip(images, *draws.unbind(1), padding=4), expected)
    assert not torch.equal(one_by_one(images, draws, flip=functional.vflip), expected)
    assert not torch.equal(one_by_one(images, draws.roll(1, 0)), expected)


@pytest.mark.parametrize("corner", [(0, 0), (0, 8), (8, 0), (8, 8)], ids=str)
@pytest.mark.parametrize("flipped", [0, 1])
def test_every_corner_of_the_padding_is_reached(corner, flipped, images):
    draws = torch.tensor([[*corner, flipped]]).expand(len(images), -1)
    assert torch.equal(crop_and_flip(images, *draws.unbind(1), padding=4), one_by_one(images, draws))


def test_the_middle_crop_without_a_flip_is_the_image(images):
    four = torch.full((len(images),), 4)
    assert torch.equal(crop_and_flip(images, four, four, torch.zeros_like(four), padding=4), images)


def test_images_in_channels_last_give_the_same(images):
    draws = draws_of(len(images)).unbind(1)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_and_flip(last, *draws, padding=4), crop_and_flip(images, *draws, padding=4))


def test_offsets_are_uniform_and_independent_and_half_of_the_images_are_flipped():
    samples = 162_000
    tops, lefts, flips = draws_of(samples).unbind(1)
    counts = (tops * 18 + lefts * 2 + flips).bincount(minlength=162)
    assert len(counts) == 162  # 9 x 9 x 2
    # Chi squared with 161 degrees of freedom: mean 161, standard deviation 18.
    assert ((counts - 1000.0).square() / 1000).sum() < 161 + 5 * 18


def test_draws_follow_from_the_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(draws_of(10), draws_of(10))
    assert not torch.equal(draws_of(10), draws_of(10, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_mean_and_std_are_those_of_each_channels_pixels(images):
    mean, std = channel_mean_and_std(images)
    pixels = images.double().transpose(0, 1).flatten(1)
    assert mean.shape == std.shape == (3, 1, 1)
    torch.testing.assert_close(mean.flatten(), pixels.mean(1).float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(std.flatten(), pixels.std(1, correction=0).float(), rtol=1e-7, atol=0)


def test_sums_beyond_float32_stay_exact():
    bright = torch.full((700, 1, 256, 256), 255, dtype=torch.uint8)
    bright[:350] = 253
    mean, std = channel_mean_and_std(bright)
    assert (mean.item(), std.item()) == (254, 1)


def test_normalization_is_torchvisions(images):
    mean, std = channel_mean_and_std(images)
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((mean / 255).flatten(), (std / 255).flatten())]
    transform = ImageTransform(mean, std, augment=False)
    normalized = transform(images, draws_of(len(images)))
    torch.testing.assert_close(normalized, v2.Compose(normalize)(images), rtol=1e-5, atol=1e-6)


def test_crops_are_padded_with_black(images):
    mean, std = channel_mean_and_std(images)
    draws = torch.tensor([[0, 0, 0]]).expand(len(images), -1)
    augmented = ImageTransform(mean, std, augment=True)(images, draws)
    assert torch.equal(augmented[:, :, :4], (-mean / std).expand(40, 3, 4, 12))
    assert torch.equal(augmented[:, :, 4:, 4:], ((images - mean) / std)[:, :, :4, :8])
