"""What a team's Prefect server does by itself: `python -m flows.automations`, once, and again to change it.

It tells of failed runs and of too many rejects by the webhook in DEGRAIN_WEBHOOK_URL, and marks runs as crashed whose
process sends no heartbeat any more, so that the janitor finds their Ray jobs.
"""

import os
import sys
from datetime import timedelta
from uuid import UUID

from prefect import get_client
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.deployments import DEPLOYMENT
from flows.events import TOO_MANY_REJECTED, Ending

WEBHOOK = "DEGRAIN_WEBHOOK_URL"  # it may hold a credential, and comes from the environment alone
BLOCK = "degrain-webhook"
LOST_AFTER_S = 180
RUN_LINK = "{{ flow_run|ui_url }}"


def automations(webhook: UUID, *, lost_after_s: int) -> list[AutomationCore]:
    """All of them.

    Args:
        webhook: the document of the block that sends notifications.
        lost_after_s: seconds without a heartbeat after which a run is lost.
    """
    states = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", *Ending)  # events tell a state by its name
    ends = {f"prefect.flow-run.{state}" for state in states}
    of_degrain = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{DEPLOYMENT}"}
    return [
        AutomationCore(
            name="degrain: a run failed",
            description="Sends a notification when a run of any deployment of degrain fails or crashes.",
            trigger=EventTrigger(
                expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
                match_related=of_degrain,
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
        AutomationCore(
            name="degrain: a run was lost",
            description="Marks a run as crashed whose process sends no heartbeat any more; the janitor does the rest.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *ends},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_degrain,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=lost_after_s),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message=f"no heartbeat for {lost_after_s} s: its process is gone"
                )
            ],
        ),
    ]


def apply(webhook_url: str, *, lost_after_s: int = LOST_AFTER_S) -> list[str]:
    """Make the automations on the server what they are here, and return their names."""
    block = CustomWebhookNotificationBlock(
        name=BLOCK, url=webhook_url, method="POST", json_data={"text": "{{subject}}\n{{body}}"}
    )
    document = block.save(BLOCK, overwrite=True)
    assert isinstance(document, UUID), "there is no event loop here that would make it a coroutine"
    wanted = automations(document, lost_after_s=lost_after_s)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            for known in client.read_automations_by_name(automation.name):
                client.delete_automation(known.id)
            client.create_automation(automation)
    return [automation.name for automation in wanted]


def main() -> int:
    """Returns the exit code."""
    if not (webhook_url := os.environ.get(WEBHOOK, "")):
        print(f"degrain: set {WEBHOOK} to the address that notifications are sent to", file=sys.stderr)
        return 2
    for name in apply(webhook_url):
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
