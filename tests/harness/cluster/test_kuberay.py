"""The manifest for KubeRay: every field is one that KubeRay has, and the versions are ours."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from harness.options import parse_options

ROOT = Path(__file__).parents[3]
MANIFEST = yaml.safe_load((ROOT / "harness/cluster/kuberay.yaml").read_text("utf-8"))


def of(required: str = "", **properties):
    """An object without other fields, as `kubectl apply` demands it."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, WHOLE, FLAG = ({"type": kind} for kind in ("string", "integer", "boolean"))
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {
        "type": ["integer", "string"],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
        r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
    },
}
REFERENCE = of(name=TEXT, optional=FLAG)
CONTAINER = of(
    "name",
    name=TEXT,
    image=TEXT,
    envFrom={
        "type": "array",
        "items": of(prefix=TEXT, secretRef=REFERENCE, configMapRef=REFERENCE),
    },
    resources=of(requests=QUANTITIES, limits=QUANTITIES),
)
POD = of(spec=of("containers", containers={"type": "array", "items": CONTAINER}))

# Source: KubeRay's definition of RayJob, ray.io/v1, in its repository ray-project/kuberay:
# docs/reference/api.md at 0057210ed5a9 has the fields, ray-operator/config/crd/bases/ray.io_rayjobs.yaml
# at 007412988d06 their types; `authOptions` came with 1.5.1 (ray-project.github.io/kuberay/reference/api).
# All fields of a job and its cluster that one would write; of pods only those in use here.
RAY_JOB = of(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object"},
    spec=of(
        activeDeadlineSeconds=WHOLE,
        backoffLimit=WHOLE,
        clusterSelector=TEXTS,
        entrypoint=TEXT,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        jobId=TEXT,
        managedBy=TEXT,
        metadata=TEXTS,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=FLAG,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterConfig=of(backoffLimit=WHOLE),
        submitterPodTemplate=POD,
        suspend=FLAG,
        ttlSecondsAfterFinished=WHOLE,
        rayClusterSpec=of(
            "headGroupSpec",
            authOptions=of(mode={"enum": ["disabled", "token"]}),
            autoscalerOptions=of(
                idleTimeoutSeconds=WHOLE,
                image=TEXT,
                imagePullPolicy=TEXT,
                resources=of(requests=QUANTITIES, limits=QUANTITIES),
                upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                version={"enum": ["v1", "v2"]},
            ),
            enableInTreeAutoscaling=FLAG,
            headServiceAnnotations=TEXTS,
            rayVersion=TEXT,
            suspend=FLAG,
            headGroupSpec=of(
                "template", enableIngress=FLAG, rayStartParams=TEXTS, serviceType=TEXT, template=POD
            ),
            workerGroupSpecs={
                "type": "array",
                "items": of(
                    "groupName maxReplicas minReplicas template",
                    groupName=TEXT,
                    idleTimeoutSeconds=WHOLE,
                    maxReplicas=WHOLE,
                    minReplicas=WHOLE,
                    numOfHosts=WHOLE,
                    rayStartParams=TEXTS,
                    replicas=WHOLE,
                    suspend=FLAG,
                    template=POD,
                ),
            },
        ),
    ),
)


def test_every_field_is_one_that_kuberay_has():
    jsonschema.validate(MANIFEST, RAY_JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rayClusterSpec", "authOption"), {"mode": "token"}),
        (("rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("shutdownAfterJobFinishes",), "true"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 8),
    ],
)
def test_what_kuberay_would_refuse_is_refused(path, value):
    wrong = copy.deepcopy(MANIFEST)
    place = wrong["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_JOB)


def test_all_pods_have_one_image_with_the_ray_that_is_tested():
    cluster = MANIFEST["spec"]["rayClusterSpec"]
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    (pinned,) = re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [one for group in groups for one in group["template"]["spec"]["containers"]]
    assert {container["image"] for container in containers} == {f"REGISTRY/bn-order:{pinned}"}
    assert cluster["rayVersion"] == pinned
    text = (ROOT / "harness/cluster/kuberay.yaml").read_text("utf-8")
    assert f"FROM rayproject/ray:{pinned}-" in text
    assert all(container["envFrom"] for container in containers)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_entrypoint_is_a_command_line_of_ours():
    entrypoint = MANIFEST["spec"]["entrypoint"]
    assert not set("&;|<>$`\n") & set(entrypoint)  # KubeRay's shell would end the job there
    python, _, module, *arguments = shlex.split(entrypoint)
    assert (python, module) == ("python", "harness.run")
    options = parse_options(arguments)
    assert options.address == "auto"
    assert options.results.startswith("s3://")
    assert (ROOT / Path(options.grid).relative_to("/home/ray/bn-order")).is_file()
