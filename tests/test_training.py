"""Training is reproducible, resumes bit by bit, and learns."""

import dataclasses
import itertools
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest
import torch

from model import training
from model.noise import NoiseConfig
from model.recipe import Loss, OptimizerName, TrainConfig
from model.training import Examples, TrainState, read_checkpoint_header, rmse, tell_level, train_steps

pytestmark = pytest.mark.usefixtures("one_thread")


def _config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **({"steps": 6, "batch_size": 2, "patch_px": 32, "small_share": 0, "warmup_steps": 2, "seed": 3} | changes)
    )


def _examples(config: TrainConfig, step: int, parts: Iterable[int] | None = None) -> Examples:
    """A batch of blocky patches, or some parts of it."""

    def part(number: int) -> Examples:
        draw = np.random.default_rng([step, number])
        cells = draw.integers(0, 256, (config.part_size, 4, 4, 3), dtype=np.uint8)
        side_px = config.patch_px_at(step) // 4
        return Examples.make(cells.repeat(side_px, axis=1).repeat(side_px, axis=2), config, step=step, part=number)

    return Examples.together([part(number) for number in (range(config.parts) if parts is None else parts)])


def _train(config: TrainConfig, *, steps: int, state: TrainState | None = None) -> TrainState:
    state = state or TrainState(config)
    for _ in itertools.islice(train_steps(state, config, partial(_examples, config)), steps):
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
    undisturbed = _train(config, steps=2)

    checkpoint = _train(config, steps=1).dump(config)
    torch.manual_seed(12345)  # another process has another past
    resumed = TrainState(config)
    resumed.load(checkpoint, read_checkpoint_header(checkpoint)[0])
    _train(config, steps=1, state=resumed)

    assert resumed.step == undisturbed.step == 2
    assert _same(resumed, undisturbed)


def test_a_checkpoint_knows_its_step():
    config = _config()
    assert read_checkpoint_header(_train(config, steps=3).dump(config)) == (3, dataclasses.asdict(config))


@pytest.mark.parametrize("bit", [0, 3])
@pytest.mark.parametrize("place", [b'"step":"1"', -5], ids=["step", "tensor"])
def test_a_checkpoint_with_a_flipped_bit_is_refused(place, bit):
    config = _config()
    data = bytearray(_train(config, steps=1).dump(config))
    data[data.index(place) + 8 if isinstance(place, bytes) else place] ^= 1 << bit
    with pytest.raises(ValueError, match=r"its sha256 is .*, and was .* when it was made"):
        read_checkpoint_header(bytes(data))


def test_a_checkpoint_with_numbers_that_are_not_finite_is_refused():
    config, state = _config(), TrainState(_config())
    next(iter(state.average.parameters()))[0] = float("nan")
    with pytest.raises(ValueError, match=r"average\..* has numbers that are not finite"):
        TrainState(config).load(state.dump(config), 0)


def test_training_ends_at_the_last_step_with_the_learning_rate_near_zero():
    config = _config()
    metrics = list(train_steps(TrainState(config), config, partial(_examples, config)))
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
    losses = [step.loss for step in train_steps(TrainState(config), config, partial(_examples, config))]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_the_average_follows_the_network_but_is_not_it():
    state = _train(_config(), steps=3)
    network, average = (dict(part.named_parameters()) for part in (state.network, state.average))
    name = "head.0.weight"
    start = dict(TrainState(_config()).network.named_parameters())[name]
    assert 0 < (average[name] - start).norm() < (network[name] - start).norm()


def test_gradients_are_measured_before_they_are_clipped():
    config = _config(gradient_clip=1e-6)
    (metrics,) = itertools.islice(train_steps(TrainState(config), config, partial(_examples, config)), 1)
    assert metrics.gradient_norm > 1e-3


def test_a_date_is_a_seed():
    assert _train(_config(seed=20_261_129), steps=1).step == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training_and_spoils_nothing(bad):
    config, before = _config(), _train(_config(), steps=1)
    state = _train(config, steps=1)

    def spoilt(step: int) -> Examples:
        examples = _examples(config, step)
        examples.noisy_BCHW[0, 0, 0, 0] = bad
        return examples

    with pytest.raises(FloatingPointError, match="the loss of step 2 is"):
        next(train_steps(state, config, spoilt))

    assert _same(state, before)


def test_processes_that_are_at_different_steps_do_not_train_together(monkeypatch):
    """Else they would mix batches of different steps, and the one that is ahead would end in it without a word."""
    monkeypatch.setattr(training, "_sum_of_all", lambda loss, asked, step, processes: [float(loss), asked, step + 2])
    state = TrainState(_config())

    with pytest.raises(RuntimeError, match="at different steps, and this one is at 0"):
        next(train_steps(state, _config(), partial(_examples, _config())))

    assert _same(state, TrainState(_config()))


def test_the_loss_is_the_mean_of_the_patches_own_errors_and_of_equal_ones_its_epsilon():
    clean = torch.zeros(2, 3, 4, 4)
    assert rmse(clean, clean) == pytest.approx(1e-3)
    made = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.3)])
    assert rmse(made, clean) == pytest.approx(0.2, rel=1e-4)


def test_a_batch_is_the_same_in_parts_by_whomever_they_are_made():
    config = _config(batch_size=12)
    assert (config.parts, config.part_size) == (3, 4)
    whole, last = _examples(config, 5), _examples(config, 5, [2])
    assert all(torch.equal(*pair) for pair in zip([each[8:] for each in whole.tensors], last.tensors, strict=True))


def test_patches_are_in_the_range_0_to_1_and_their_noise_is_of_the_step_and_the_part():
    config = _config()
    patches = np.full((2, 32, 32, 3), 255, np.uint8)
    first, again, other = (Examples.make(patches, config, step=3, part=part) for part in (0, 0, 1))
    assert first.clean_BCHW.shape == (2, 3, 32, 32)
    assert torch.equal(first.clean_BCHW, torch.ones(2, 3, 32, 32))
    assert torch.equal(first.noisy_BCHW, again.noisy_BCHW)
    assert not torch.equal(first.noisy_BCHW, other.noisy_BCHW)


def test_no_noise_comes_back_some_thousand_steps_later_nor_under_the_next_seed():
    patches = np.full((2, 32, 32, 3), 128, np.uint8)
    places = [(0, 7), (0, 7 + 2**12), (0, 7 + 2**20), (1, 7 - 1_000_003 % 2**12 + 2**12), (2**12, 7)]
    noisy = [Examples.make(patches, _config(seed=seed), step=step, part=0).noisy_BCHW for seed, step in places]
    assert len({each.numpy().tobytes() for each in noisy}) == len(places)


def test_gradients_that_are_accumulated_are_those_of_the_whole_batch():
    whole, pieces = (_train(_config(batch_size=4, bfloat16=False, patches_at_once=size), steps=1) for size in (None, 1))
    for one, other in zip(whole.network.parameters(), pieces.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_the_dropout_of_the_seed_network_is_the_same_in_pieces():
    config = _config(network="seed", batch_size=8, bfloat16=False, optimizer=OptimizerName.ADAMW, loss=Loss.MSE)
    both = [dataclasses.replace(config, patches_at_once=size) for size in (None, 4)]
    whole, pieces = (next(train_steps(TrainState(each), each, partial(_examples, each))) for each in both)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-5)
    assert pieces.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


def test_the_first_patches_have_half_the_side():
    config = _config(small_share=0.5)
    assert [config.patch_px_at(step) for step in range(6)] == [16, 16, 16, 32, 32, 32]


def test_epochs_are_as_many_steps_as_show_a_patch_of_every_photo():
    assert _config(epochs=3).for_photos(5).steps == 9
    assert _config().for_photos(5) == _config()


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": "resnet"},
        {"patch_px": 0},
        {"patch_px": 40},
        {"steps": 0},
        {"batch_size": 0},
        {"small_share": 2},
        {"epochs": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"gradient_clip": -1},
        {"gradient_clip": 0},
        {"gradient_clip": float("inf")},
        {"warmup_steps": -5},
        {"weight_decay": -0.1},
        {"ema_decay": 1},
        {"ema_decay": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
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
