"""The work pool's job template, as prefect-kubernetes itself reads it."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from zenml.config.resource_settings import ResourceSettings

from stacks.orchestrator.work_pool import job_variables

TEMPLATE = Path(__file__).parents[2] / "stacks" / "kubernetes_job.json"


def _configured(template: Any = None, **values: Any) -> KubernetesWorkerJobConfiguration:
    template = template or json.loads(TEMPLATE.read_text())
    # A template without blocks asks the server nothing: none is started for it.
    nobody = PrefectClient("http://127.0.0.1:9/api")
    return asyncio.run(KubernetesWorkerJobConfiguration.from_template_and_values(template, values, client=nobody))


def _pod(job: KubernetesWorkerJobConfiguration) -> Any:
    return job.job_manifest["spec"]["template"]["spec"]


def test_a_flow_run_becomes_a_job_that_reads_its_secrets_from_the_cluster() -> None:
    job = _configured(image="registry.example/gauntlet:1")
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="train-wine"))
    (container,) = _pod(job)["containers"]
    assert container["image"] == "registry.example/gauntlet:1"
    assert container["envFrom"] == [{"secretRef": {"name": "gauntlet-cloud"}}]
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "2Gi"},
        "limits": {"memory": "4Gi"},
    }
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert _pod(job)["restartPolicy"] == "Never"
    assert _pod(job)["serviceAccountName"] == "gauntlet"
    assert job.namespace == "gauntlet"
    # Prefect reruns nothing by itself, and Kubernetes neither.
    assert job.job_manifest["spec"]["backoffLimit"] == 0


def test_a_deployment_asks_for_more() -> None:
    job = _configured(image="x", memory_request="8Gi", memory_limit="8Gi", cpu_request="4")
    (container,) = _pod(job)["containers"]
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def test_what_steps_ask_for_reaches_the_container() -> None:
    template = json.loads(TEMPLATE.read_text())
    pool = WorkPool(name="gauntlet", type="kubernetes", base_job_template=template, default_queue_id=uuid4())
    asked = [ResourceSettings(cpu_count=2, memory="3GiB"), ResourceSettings(gpu_count=1)]
    (container,) = _pod(_configured(image="x", **job_variables(pool, asked, {}, None)))["containers"]
    expected = {"cpu": "2", "memory": "3072Mi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": expected, "limits": expected}


def test_every_variable_is_used_and_every_place_is_filled() -> None:
    template = json.loads(TEMPLATE.read_text())
    used = json.dumps(template["job_configuration"])
    for name in template["variables"]["properties"]:
        assert f"{{{{ {name} }}}}" in used, name
    del template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    with pytest.raises(ValueError, match="containers"):
        _configured(template)
