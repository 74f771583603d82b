#!/usr/bin/env python3
"""A Kubernetes JobSet that runs jaxsr on several nodes, one process with all of its GPUs on each; printed, to be applied:

    python launch/kubernetes.py --name sr3 --image IMAGE --nodes 2 --claim CLAIM -- \\
        train CONFIG [key=value …] --run-dir /data/runs/sr3 | kubectl apply -f -
    python launch/kubernetes.py --name up --image IMAGE --nodes 4 --claim CLAIM -- \\
        upscale -i /data/scans -o /data/upscaled --model /data/runs/sr3 | kubectl apply -f -

The cluster needs the JobSet controller (sigs.k8s.io/jobset); IMAGE is one in which jaxsr[cuda] is installed; CLAIM is a volume that all
nodes can write to, mounted at /data. If a process of a training fails or its node is taken away, all are started again and resume; what
would fail again (usage, config or input, no model, diverged) ends it. Processes that upscale share nothing: one that fails is started
again alone, and what is there already is skipped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

PORT = 8476
FINAL = [2, 3, 4, 6]  # exit statuses of jaxsr after which starting again is of no use: usage, nothing to do, no model, diverged
GRACE = 180  # seconds to save after SIGTERM
ENVIRONMENT = {"JAX_OPTIMIZATION_LEVEL": "O1", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "NCCL_NVLS_ENABLE": "1"}  # as environment.sh


def job_set(name: str, image: str, nodes: int, gpus: int, claim: str, words: Sequence[str], restarts: int = 100) -> dict[str, Any]:
    """The JobSet as YAML can hold it; `words` are those of the command line of jaxsr."""
    together = words[0] == "train"
    container = {
        "name": "jaxsr",
        "image": image,
        "command": ["jaxsr", *words],
        "env": [
            {"name": "JAXSR_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": _INDEX}}},
            {"name": "JAXSR_PROCESSES", "value": str(nodes)},
            # The first pod's name, which JobSet has the cluster's DNS know.
            *([{"name": "JAXSR_COORDINATOR", "value": f"{name}-nodes-0-0.{name}:{PORT}"}] if together else []),
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/data/.jaxsr-compiled"},
            *({"name": key, "value": value} for key, value in ENVIRONMENT.items()),
        ],
        "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}],
        **({"ports": [{"containerPort": PORT}]} if together else {}),
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL's; the default of 64 MiB is too small
        ],
    }
    # Training: the first failure ends the job, and the set starts it anew as a whole. Upscaling: pods are replaced one by one.
    # A status of 1 is a crash of a training, as where another process has died, and of upscaling that some volumes are no good.
    final = {"operator": "In", "values": FINAL if together else [1, *FINAL]}
    job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        **({"backoffLimit": 0} if together else {"backoffLimitPerIndex": 3, "maxFailedIndexes": nodes}),
        "podFailurePolicy": {"rules": [{"action": "FailJob" if together else "FailIndex", "onExitCodes": final}]},
        "template": {"spec": pod},
    }
    ends = {"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": restarts if together else 0, "rules": [ends]},
            "replicatedJobs": [{"name": "nodes", "replicas": 1, "template": {"spec": job}}],
        },
    }


_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the JobSet: small letters, digits and hyphens")
    parser.add_argument("--image", required=True)
    parser.add_argument("--nodes", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--gpus", type=int, default=8, help="of each node (%(default)s)")
    parser.add_argument("--claim", required=True, help="a PersistentVolumeClaim that all nodes can write to")
    parser.add_argument("command", nargs="+", help="what jaxsr is given, after --")
    given = parser.parse_args(words)
    if given.nodes < 1 or given.gpus < 0:
        parser.error("at least one node, and no fewer than no GPUs")
    made = job_set(given.name, given.image, given.nodes, given.gpus, given.claim, given.command)
    print(f"# {Path(__file__).name} {' '.join(sys.argv[1:] if words is None else words)}")
    print(yaml.safe_dump(made, sort_keys=False, width=160), end="")


if __name__ == "__main__":
    main()
