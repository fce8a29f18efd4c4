"""Which keys a RayJob may have, as KubeRay's own definition says; writes kuberay_keys.json.

    python tests/kuberay_keys.py ray.io_rayjobs.yaml

with the file of helm-chart/kuberay-operator/crds in the release of KubeRay to be held to. A key
with nothing under it takes a plain value, or names of the user's choice. Lists stand for their
elements; a pod's specification is there once, as $pod.
"""

import json
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("kuberay_keys.json")
POD = "$pod"


def keys_of(schema: dict[str, Any]) -> dict[str, Any]:
    if "items" in schema:
        return keys_of(schema["items"])
    return {name: keys_of(below) for name, below in schema.get("properties", {}).items()}


def main(path: str) -> None:
    import yaml

    definition = yaml.safe_load(Path(path).read_text())
    (schema,) = [v["schema"] for v in definition["spec"]["versions"] if v["name"] == "v1"]
    keys = keys_of(schema["openAPIV3Schema"])
    cluster = keys["spec"]["rayClusterSpec"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"]):
        group["template"]["spec"] = POD
    keys["spec"]["submitterPodTemplate"] = {}
    del keys["status"]
    GOLDEN.write_text(json.dumps({"RayJob": keys, POD: pod}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
