"""A Ray cluster of two nodes with a core each on this machine, until stdin closes; for tests/test_ray_engine.py.

Prints a line of JSON: the cluster's address, and the process id of the second node's raylet, whose children are all
that runs there.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

from imhi.talk import show

if __name__ == "__main__":
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 200 << 20},
    )
    second = cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
    cluster.wait_for_nodes()
    (raylet,) = second.all_processes["raylet"]
    show(json.dumps({"address": cluster.address, "second": raylet.process.pid}))
    sys.stdin.read()
    cluster.shutdown()
