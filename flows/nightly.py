"""The flow `nightly`: plan, a canary, perhaps a person's approval, denoise, verify, report."""

import os
from uuid import uuid4

from prefect import flow, get_run_logger, pause_flow_run
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.artifacts import show_canary, show_plan, show_report, show_summary, show_verdict
from flows.events import Ending, tell_of_rejects
from flows.run_names import nightly_name
from flows.settings import Gates, NightlySettings, Values
from flows.stages import HOOKS, run_stage
from pipeline.errors import RunStopped

APPROVAL_POLL_S = 5
LINK_ENDPOINT = "DEGRAIN_LINK_ENDPOINT"


class GatesClosed(RunStopped):
    """A canary did not show what it must: nothing was written."""


class Unsound(RunStopped):
    """The image set is not as its index says."""


@flow(name="nightly", flow_run_name=nightly_name, persist_result=False, **HOOKS)
def nightly(settings: NightlySettings) -> Values | State[Values]:
    """Denoise what is new or changed, if a canary goes well: photos of it, drawn at random; then verify and report.

    Args:
        settings: What to denoise, what the canary must show, and whether a person has a look before.
    """
    job, ray = settings.denoise.job, settings.denoise.ray
    plan = run_stage("plan", "plan", {"denoise": job}, ray)
    show_plan("plan", plan)
    if plan["photos"]["to_do"]["photos"]:
        _try(settings)
    elif not plan["unfinished_runs"]:  # else one has done all, and then ended before it was published
        return Completed(message="nothing is new", name=Ending.NOTHING_NEW)

    summary = run_stage("denoise", "denoise", job, ray)
    show_summary("denoise", summary, settings.denoise.target)
    tell_of_rejects(summary, settings.denoise)
    _look_after(settings)
    return summary


def _try(settings: NightlySettings) -> None:
    """Try photos of the plan, and wait for a person where one is asked for.

    Raises:
        GatesClosed: they did not go well.
    """
    job, ray = settings.denoise.job, settings.denoise.ray
    canary = run_stage("canary", "canary", {"denoise": job, "photos": settings.gates.photos}, ray)
    failures = closed_gates(canary, settings.gates)
    show_canary("canary", canary, failures)
    if failures:
        raise GatesClosed(f"the canary of {canary['photos']} photos stops the run: {'; '.join(failures)}")
    if settings.approval:
        get_run_logger().info("waiting for a person: look at the artifacts, and resume the run")
        timeout_s = round(settings.approval_hours * 3600)
        key = uuid4().hex  # a run that is taken up would pass by a key that it has paused at before
        pause_flow_run(timeout=timeout_s, poll_interval=APPROVAL_POLL_S, key=key)


def _look_after(settings: NightlySettings) -> None:
    """Hold the image set against its index, and write the page about it."""
    target, ray = settings.denoise.target, settings.denoise.ray
    verdict = run_stage("verify", "verify", {"target": target, "cluster": ray.cluster}, ray)
    show_verdict("verify", verdict)
    asked = {
        "target": target,
        "output": settings.report_place,
        "link_s": round(settings.report_link_days * 24 * 3600) or None,
        "link_endpoint": settings.report_link_endpoint or os.environ.get(LINK_ENDPOINT) or None,
    }
    page = run_stage("report", "report", asked, ray)
    show_report("report", page, link_days=settings.report_link_days)
    if verdict["findings"]:
        raise Unsound(f"{verdict['findings']:,} things in {target} are not as its index says: see the artifacts")


def closed_gates(canary: Values, gates: Gates) -> list[str]:
    """What a canary did not show that it must, each as a clause."""
    rejected = canary["rejected"] / canary["photos"] if canary["photos"] else 0.0
    noise_left, change_db, speed = (
        canary[name] for name in ("noise_left", "worst_change_psnr_db", "megapixels_per_second")
    )
    failures = []
    if rejected > gates.max_rejected_fraction:
        failures.append(f"{rejected:.0%} are rejected, and at most {gates.max_rejected_fraction:.0%} may be")
    if noise_left is not None and noise_left > gates.max_noise_left:
        failures.append(f"{noise_left:.0%} of the noise is left, and at most {gates.max_noise_left:.0%} may be")
    if change_db is not None and change_db < gates.min_change_psnr_db:
        failures.append(
            f"a photo is changed to {change_db:g} dB, and at least {gates.min_change_psnr_db:g} must be kept"
        )
    if speed < gates.min_megapixels_per_second and canary["denoised"]:
        failures.append(f"{speed:g} megapixels/s, and at least {gates.min_megapixels_per_second:g} are asked for")
    return failures
