"""The flow `janitor`: stops Ray jobs for which no flow run waits any more, as when a worker was killed."""

from prefect import flow, get_run_logger

from flows.ray_jobs import RayJobs, address_of
from flows.settings import RaySettings
from flows.stages import JANITOR, is_wanted, origin


@flow(name=JANITOR, flow_run_name=JANITOR, persist_result=False)
def janitor(address: str | None = None) -> list[str]:
    """Stop the Ray jobs that flow runs of this server began, and that are gone or have ended.

    Args:
        address: URL of a Ray cluster's dashboard. Empty: what RAY_API_SERVER_ADDRESS says where the flow runs.
    """
    found = address_of(RaySettings(address=address).address)
    if found is None:
        raise ValueError("there is no Ray cluster to look at: give its address, or set RAY_API_SERVER_ADDRESS")
    stopped = RayJobs(found).stop_orphans(origin(), is_wanted)
    get_run_logger().info("stopped %s", ", ".join(stopped) or "none: every job has its flow run")
    return stopped
