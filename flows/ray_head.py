"""`python -m flows.ray_head start …`: Ray's own command, with a dashboard that asks no cloud."""

from ray.scripts.scripts import cli

from pipeline.ray_dashboard import asking_no_cloud

if __name__ == "__main__":
    with asking_no_cloud():
        cli()
