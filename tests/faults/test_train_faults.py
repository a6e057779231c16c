"""`degrain train` from a bucket into it, through a proxy that fails a third of all requests."""

from pathlib import Path

import pytest
import torch
from photos import saved, scene

from model.recipe import TrainConfig
from model.weights import parse_weights
from pipeline.storage import open_store
from pipeline.train import run_train
from pipeline.train_job import TrainJob

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]


def test_training_on_a_bad_day_ends_in_the_same_weights_as_on_a_good_one(faulty_url: str, tmp_path: Path) -> None:
    bad, good = open_store(f"{faulty_url}/photos"), open_store(str(tmp_path / "photos"))
    for number in range(12):
        for store in (bad, good):
            store.write(f"{number:02}.png", saved(scene(sigma=2, seed=number), "PNG"))
    config = TrainConfig(steps=4, batch_size=2, patch_px=32)

    for store, run in ((bad, f"{faulty_url}/run"), (good, str(tmp_path / "run"))):
        job = TrainJob(source=store.url, run=run, data="the same photos", checkpoint_every=2, config=config)
        run_train(job, lambda metrics: None)

    ends = [
        parse_weights(open_store(run).read("weights.safetensors"))
        for run in (f"{faulty_url}/run", str(tmp_path / "run"))
    ]
    assert all(torch.equal(tensor, ends[1].tensors[name]) for name, tensor in ends[0].tensors.items())
