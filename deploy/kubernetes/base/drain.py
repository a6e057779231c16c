"""The last minutes of a Ray worker's pod, as its preStop hook: no new work, until what it has is done.

`python drain.py SECONDS` tells the cluster that this node goes within so many seconds, and returns when it has gone.
degrain's workers on it finish their shards (`pipeline/cluster.py`), and Ray then ends the node by itself. Where the
seconds are over first, what was not committed is done again elsewhere.
"""

import os
import sys
import time

from ray._raylet import GcsClient  # Ray's public way to drain needs a node's id, which a pod does not know
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.core.generated.gcs_pb2 import GcsNodeInfo

POLL_S = 1.0
REQUEST_S = 10.0


def own_node(cluster: GcsClient) -> str | None:
    """The id of the node of this pod while it lives; KubeRay tells Ray the pod's name."""
    for node in cluster.get_all_node_info(timeout=REQUEST_S).values():
        if node.instance_id == os.environ["RAY_CLOUD_INSTANCE_ID"] and node.state == GcsNodeInfo.ALIVE:
            return bytes(node.node_id).hex()
    return None


def main(grace_s: float) -> int:
    """Returns the exit code: 0 when the node has gone, 1 when the time was over first."""
    ends_s = time.time() + grace_s
    cluster = GcsClient(address=os.environ["RAY_ADDRESS"])
    if (node := own_node(cluster)) is None:
        return 0
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    cluster.drain_node(node, reason, "the pod ends", int(ends_s * 1000))
    while time.time() < ends_s:
        if own_node(cluster) is None:
            return 0
        time.sleep(POLL_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
