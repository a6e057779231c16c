"""What a team's Prefect server does by itself: it looks after lost runs, and tells of what failed.

`flows.deploy` sets up the first. `python -m flows.automations`, once, and again to change it, sets up notifications of
failed runs and of too many rejects, by the webhook in DEGRAIN_WEBHOOK_URL.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect import get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL

from flows.deployments import DEPLOYMENT
from flows.events import TOO_MANY_REJECTED, Ending

WEBHOOK = "DEGRAIN_WEBHOOK_URL"  # it may hold a credential, and comes from the environment alone
BLOCK = "degrain-webhook"
LOST_AFTER_S = 180
LOST = "Lost"  # the name of a crashed run's state
RUN_LINK = "{{ flow_run|ui_url }}"
OF_DEGRAIN = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{DEPLOYMENT}"}


def care(*, lost_after_s: int = LOST_AFTER_S) -> list[AutomationCore]:
    """Runs whose process sends no heartbeat any more are begun again, and go on with their Ray jobs.

    Args:
        lost_after_s: seconds without a heartbeat after which a run is lost.
    """
    states = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", *Ending)  # events tell a state by its name
    ends = {f"prefect.flow-run.{state}" for state in states}
    heartbeat = "prefect.flow-run.heartbeat"
    return [
        AutomationCore(
            name="degrain: a run was lost",
            description="Marks runs whose process sends no heartbeat any more, as when its worker is replaced.",
            trigger=EventTrigger(
                after={heartbeat},
                expect={heartbeat, "prefect.flow-run.Cancelling", *ends},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=OF_DEGRAIN,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=lost_after_s),
            ),
            actions=[  # as crashed: the server lets no run be that which has ended meanwhile
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name=LOST,
                    message=f"no heartbeat for {lost_after_s} s: its process is gone",
                )
            ],
        ),
        AutomationCore(
            name="degrain: a lost run is begun again",
            description="Has a worker take it up; it goes on with its Ray job, if that is there.",
            trigger=EventTrigger(
                expect={f"prefect.flow-run.{LOST}"}, match_related=OF_DEGRAIN, posture=Posture.Reactive, threshold=1
            ),
            actions=[
                ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="its process was lost")
            ],
        ),
    ]


def notifications(webhook: UUID) -> list[AutomationCore]:
    """Of failed runs, and of too many rejects.

    Args:
        webhook: the document of the block that sends them.
    """
    return [
        AutomationCore(
            name="degrain: a run failed",
            description="Sends a notification when a run of any deployment of degrain fails or crashes.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
                match_related=OF_DEGRAIN,
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                SendNotification(
                    block_document_id=webhook,
                    subject="degrain: {{ flow_run.name }} {{ flow_run.state.name|lower }}",
                    body=f"{{{{ flow_run.state.message }}}}\n{RUN_LINK}",
                )
            ],
        ),
        AutomationCore(
            name="degrain: too many rejected",
            description="Sends a notification when a run rejected more than its settings take for ordinary.",
            trigger=EventTrigger(expect={TOO_MANY_REJECTED}, posture=Posture.Reactive, threshold=1),
            actions=[
                SendNotification(
                    block_document_id=webhook,
                    subject="degrain: too many photos rejected",
                    body="{{ event.payload.rejected }} photos, a share of {{ event.payload.fraction }}, "
                    "in {{ event.resource.name }}: its index has the reasons.",
                )
            ],
        ),
    ]


def apply(wanted: Sequence[AutomationCore]) -> None:
    """Make automations on the server what they are here; those that a person has turned off stay so."""
    with get_client(sync_client=True) as client:
        for automation in wanted:
            known = client.read_automations_by_name(automation.name)
            for each in known:
                client.delete_automation(each.id)
            is_on = all(each.enabled for each in known)
            client.create_automation(automation.model_copy(update={"enabled": is_on}))


def save_webhook(url: str) -> UUID:
    """The document of a block that sends notifications there."""
    block = CustomWebhookNotificationBlock(
        name=BLOCK, url=url, method="POST", json_data={"text": "{{subject}}\n{{body}}"}
    )
    document = block.save(BLOCK, overwrite=True)
    assert isinstance(document, UUID), "there is no event loop here that would make it a coroutine"
    return document


def on_server(work: Callable[[], int]) -> int:
    """The exit code of what is done on a team's server: not on one that Prefect would start for a moment."""
    if (url := PREFECT_API_URL.value()) is None:
        print("degrain: no Prefect server is named: set PREFECT_API_URL, http://HOST:4200/api", file=sys.stderr)
        return 2
    try:
        return work()
    except (TransportError, HTTPStatusError) as error:
        text = str(error).splitlines()[0]
        print(f"degrain: the Prefect server at {url} cannot be asked: {text}", file=sys.stderr)
        return 1


def main() -> int:
    """Returns the exit code."""
    if not re.match(r"https?://[^/]", webhook_url := os.environ.get(WEBHOOK, "")):  # Prefect would take any text
        print(f"degrain: set {WEBHOOK} to the address that notifications are sent to, https://…", file=sys.stderr)
        return 2
    return on_server(lambda: _notify(webhook_url))


def _notify(webhook_url: str) -> int:
    wanted = notifications(save_webhook(webhook_url))
    apply(wanted)
    for automation in wanted:
        print(automation.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
