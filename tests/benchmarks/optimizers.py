"""What the optimisers are worth: the same small run by each, and PSNR on other photos.

White noise of sigma 0–55 and small patches, from random weights; a constant learning rate, then a cool-down.

    python tests/benchmarks/optimizers.py FOLDER_OF_PHOTOS OTHER_PHOTOS [--steps 1000]
"""

import argparse
import tempfile
from pathlib import Path

from model.noise import NoiseConfig
from model.recipe import OptimizerName, TrainConfig
from pipeline.train import SCORED_SIGMAS, run_train
from pipeline.train_job import TrainJob

CONTENDERS = (
    (OptimizerName.ADAMW, 1e-3),
    (OptimizerName.ADAMW, 2e-3),
    (OptimizerName.MUON, 1e-3),
    (OptimizerName.MUON, 3e-3),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="FOLDER_OF_PHOTOS")
    parser.add_argument("others", metavar="OTHER_PHOTOS", help="to measure by")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    for optimizer, learning_rate in CONTENDERS:
        config = TrainConfig(
            steps=options.steps,
            patch_px=64,
            small_share=0,
            optimizer=optimizer,
            learning_rate=learning_rate,
            noise=NoiseConfig.only(float_share=1, jpeg_share=0),
        )
        with tempfile.TemporaryDirectory() as folder:
            job = TrainJob(
                source=options.photos,
                run=str(Path(folder) / "run"),
                validation=options.others,
                validate_every=options.steps,
                config=config,
            )
            scores = run_train(job, lambda metrics: None)
        figures = ", ".join(f"{scores[f'psnr_db_sigma_{sigma}']:.2f} dB at sigma {sigma}" for sigma in SCORED_SIGMAS)
        print(f"{optimizer:6} {learning_rate:g}: {figures}", flush=True)


if __name__ == "__main__":
    main()
