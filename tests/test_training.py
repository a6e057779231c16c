"""Training is reproducible, resumes bit by bit, and learns."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.noise import NoiseConfig
from model.training import (
    PatchSampler,
    TrainConfig,
    TrainState,
    charbonnier,
    read_checkpoint_header,
    tell_level,
    train_steps,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def _config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **({"steps": 6, "batch_size": 2, "patch_px": 32, "small_share": 0, "warmup_steps": 2, "seed": 3} | changes)
    )


def _sampler(config: TrainConfig) -> PatchSampler:
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (2, 8, 9, 3), dtype=np.uint8)
    return PatchSampler([np.kron(photo, np.ones((8, 8, 1), np.uint8)) for photo in blocks], config)


def _train(config: TrainConfig, *, steps: int, state: TrainState | None = None) -> TrainState:
    state = state or TrainState(config)
    for _ in itertools.islice(train_steps(state, config, _sampler(config).batch), steps):
        pass
    return state


def _same(first: TrainState, second: TrainState) -> bool:
    pairs = zip(
        [*first.network.state_dict().values(), *first.average.state_dict().values()],
        [*second.network.state_dict().values(), *second.average.state_dict().values()],
        strict=True,
    )
    return all(torch.equal(*pair) for pair in pairs)


def test_two_runs_of_one_seed_are_equal_and_those_of_two_are_not():
    assert _same(_train(_config(), steps=2), _train(_config(), steps=2))
    assert not _same(_train(_config(), steps=2), _train(_config(seed=4), steps=2))


@pytest.mark.parametrize("network", ["photo", "seed"])
def test_a_run_that_was_stopped_continues_to_the_same_bits(network):
    config = _config(network=network)
    undisturbed = _train(config, steps=4)

    checkpoint = _train(config, steps=2).dump(config)
    torch.manual_seed(12345)  # another process has another past
    resumed = TrainState(config)
    resumed.load(checkpoint, read_checkpoint_header(checkpoint)[0])
    _train(config, steps=2, state=resumed)

    assert resumed.step == undisturbed.step == 4
    assert _same(resumed, undisturbed)


def test_a_checkpoint_knows_its_step():
    config = _config()
    assert read_checkpoint_header(_train(config, steps=3).dump(config)) == (3, dataclasses.asdict(config))


def test_training_ends_at_the_last_step_with_the_learning_rate_near_zero():
    config = _config()
    metrics = list(train_steps(TrainState(config), config, _sampler(config).batch))
    assert [step.step for step in metrics] == [1, 2, 3, 4, 5, 6]
    assert [step.learning_rate for step in metrics] == [config.learning_rate_at(step) for step in range(6)]


def test_the_learning_rate_warms_up_stays_and_cools_down_to_nothing():
    config = _config(steps=1000, warmup_steps=10, cooldown_share=0.4)
    rates = [config.learning_rate_at(step) / config.learning_rate for step in range(1000)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1, 10))
    assert set(rates[10:600]) == {1.0}
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert rates[700] == pytest.approx(0.5)
    assert rates[-1] < 0.01


def test_the_loss_goes_down_on_a_tiny_problem():
    noise = NoiseConfig.only(sigma_min=25, sigma_max=25, float_share=1)
    config = _config(steps=40, warmup_steps=5, noise=noise)
    losses = [step.loss for step in train_steps(TrainState(config), config, _sampler(config).batch)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_the_average_follows_the_network_but_is_not_it():
    state = _train(_config(), steps=3)
    network, average = (dict(part.named_parameters()) for part in (state.network, state.average))
    name = "head.0.weight"
    start = dict(TrainState(_config()).network.named_parameters())[name]
    assert 0 < (average[name] - start).norm() < (network[name] - start).norm()


def test_gradients_are_measured_before_they_are_clipped():
    config = _config(gradient_clip=1e-6)
    (metrics,) = itertools.islice(train_steps(TrainState(config), config, _sampler(config).batch), 1)
    assert metrics.gradient_norm > 1e-3


def test_the_loss_of_equal_photos_is_its_epsilon_and_that_of_distant_ones_their_distance():
    assert charbonnier(torch.ones(3), torch.ones(3)) == pytest.approx(1e-3)
    assert charbonnier(torch.ones(3), torch.zeros(3)) == pytest.approx(1, rel=1e-5)


def test_the_patches_of_a_step_depend_on_the_seed_and_the_step_alone():
    sampler = _sampler(_config())
    assert torch.equal(sampler.batch(7), _sampler(_config()).batch(7))
    assert not torch.equal(sampler.batch(7), sampler.batch(8))
    assert not torch.equal(sampler.batch(7), _sampler(_config(seed=4)).batch(7))


def test_patches_are_crops_in_the_range_0_to_1():
    photo = np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)
    batch_BCHW = PatchSampler([photo], _config()).batch(0)
    assert batch_BCHW.shape == (2, 3, 32, 32)
    assert batch_BCHW.dtype == torch.float32
    assert set(np.unique((batch_BCHW * 255).round())) <= set(range(256))
    assert batch_BCHW.max() <= 1


def test_the_first_patches_have_half_the_side():
    config = _config(small_share=0.5)
    sampler = _sampler(config)
    assert [sampler.batch(step).shape[-1] for step in range(6)] == [16, 16, 16, 32, 32, 32]


def test_epochs_are_as_many_steps_as_show_a_patch_of_every_photo():
    assert _config(epochs=3).for_photos(5).steps == 9
    assert _config().for_photos(5) == _config()


def test_larger_photos_are_drawn_more_often():
    config = _config(batch_size=400)
    white, black = np.full((96, 96, 3), 255, np.uint8), np.zeros((32, 32, 3), np.uint8)
    assert PatchSampler([white, black], config).batch(0).mean() == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("photos", [[], [np.zeros((31, 64, 3), np.uint8)]])
def test_no_photos_or_too_small_ones_are_refused(photos):
    with pytest.raises(ValueError, match="at least 32 pixels a side"):
        PatchSampler(photos, _config())


@pytest.mark.parametrize(
    "wrong",
    [{"network": "resnet"}, {"patch_px": 0}, {"patch_px": 40}, {"steps": 0}, {"batch_size": 0}, {"small_share": 2}],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"network|patch_px|steps|small_share"):
        _config(**wrong)


def test_the_network_is_told_about_the_level_that_the_noise_has():
    noise_BCHW = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 20 / 255
    clean_BCHW = torch.full_like(noise_BCHW, 0.5)
    told_B2 = 255 * tell_level(clean_BCHW + noise_BCHW, clean_BCHW, torch.Generator().manual_seed(0))
    assert told_B2.shape == (64, 2)
    assert told_B2.median() == pytest.approx(20, rel=0.06)
    assert told_B2.log().std() == pytest.approx(0.22, rel=0.25)


def test_a_run_may_start_from_weights():
    before = _train(_config(), steps=2)
    state = TrainState(_config(seed=9))
    state.start_from(before.average.state_dict())
    pairs = zip(state.network.state_dict().values(), before.average.state_dict().values(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert state.step == 0
