"""Rules of our own for the Kubernetes manifests: what a platform team looks for first."""

import re
from collections.abc import Iterable

import pytest

from lookm.policy import parse
from server.series import SERIES
from server.settings import Settings
from tests.docker.manifests import (
    FOLDERS,
    K8S,
    Manifest,
    built,
    kustomization,
    load,
    manifests,
    pods,
    reaches,
)


def environment(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_is_listed_and_everything_listed_is_there(folder: str) -> None:
    listed = kustomization(folder)
    patches = [each["path"] for each in listed.get("patches", [])]
    files = [each for each in listed["resources"] if each.endswith(".yml")] + patches
    assert set(files) == set(manifests(folder))
    for other in [*listed.get("components", []), *listed["resources"]]:
        assert (K8S / folder / other).exists(), other


def test_patches_change_what_there_is() -> None:
    base = {(m["kind"], m["metadata"]["name"]): m for m in manifests("base").values()}
    for patch in kustomization("gpu")["patches"]:
        change = load(K8S / "gpu" / patch["path"])
        changed = base[change["kind"], change["metadata"]["name"]]
        before, after = (m["spec"]["template"]["spec"] for m in (changed, change))
        for kind in ("containers", "volumes"):
            known = {each["name"] for each in before[kind]}
            assert {each["name"] for each in after[kind]} <= known


def test_no_container_is_root_or_may_become_it_or_writes_its_image() -> None:
    assert list(pods())
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == 10001, "the image's user"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod["volumes"])


def test_every_container_has_requests_and_limits() -> None:
    for _, pod in pods():
        for container in pod["containers"]:
            for bound in ("requests", "limits"):
                given = container["resources"][bound]
                assert {"cpu", "memory", "ephemeral-storage"} <= given.keys()
            memory = [container["resources"][b]["memory"] for b in ("requests", "limits")]
            assert memory[0] == memory[1], "a server that holds caches uses what it has"
        for volume in pod["volumes"]:
            assert volume.get("emptyDir") is None or volume["emptyDir"]["sizeLimit"]
    gpu = load(K8S / "gpu" / "deployment.yml")["spec"]["template"]["spec"]["containers"][0]
    gpus = {bound: gpu["resources"][bound]["nvidia.com/gpu"] for bound in ("requests", "limits")}
    assert gpus == {"requests": "1", "limits": "1"}, "a worker is a GPU"


def test_probes_ask_for_what_they_mean() -> None:
    ((_, pod),) = pods()
    (container,) = pod["containers"]
    assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a busy server lives"
    start = container["startupProbe"]
    allowed_s = start["periodSeconds"] * start["failureThreshold"]
    assert allowed_s >= Settings.model_fields["start_timeout_s"].default
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]


def test_a_pod_is_killed_no_sooner_than_its_drain_ends() -> None:
    ((_, pod),) = pods()
    (container,) = pod["containers"]
    _, before_s = container["lifecycle"]["preStop"]["exec"]["command"]
    drain_s = float(environment(container)["LOOKM_DRAIN_TIMEOUT_S"])
    assert pod["terminationGracePeriodSeconds"] >= float(before_s) + drain_s + 10


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_every_variable_is_a_setting_and_its_value_is_one(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = load(K8S / folder / "deployment.yml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for name, value in environment(container).items():
        assert name.removeprefix("LOOKM_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    settings = Settings()
    parse(settings.kv_cache)
    if folder == "base":
        assert settings.exit_on_worker_failure
        assert settings.key_limits is not None


def test_keys_come_from_a_secret_that_is_not_in_the_repository() -> None:
    everything = [m for folder in FOLDERS for m in manifests(folder).values()]
    assert not [m for m in everything if m["kind"] == "Secret"]
    ((_, pod),) = pods()
    (keys,) = [v["secret"] for v in pod["volumes"] if v["name"] == "keys"]
    (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "keys"]
    assert mount["readOnly"]
    path = f"{mount['mountPath']}/{keys['items'][0]['path']}"
    assert environment(pod["containers"][0])["LOOKM_KEY_LIMITS"] == path
    (endpoint,) = manifests("monitoring")["servicemonitor.yml"]["spec"]["endpoints"]
    scrape = endpoint["authorization"]["credentials"]
    assert scrape["name"] == keys["secretName"]
    readme = (K8S / "README.md").read_text()
    assert f"create secret generic {keys['secretName']} --from-file=keys.toml" in readme
    assert f"--from-literal={scrape['key']}=" in readme


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "127.0.0.1", "169.254.169.254",
     "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "fd00::1", "fe80::1",
     "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001::1"],
)  # fmt: skip
def test_nothing_private_is_reached(address: str) -> None:
    assert not reaches(address)


def test_images_come_from_outside_over_the_web_only() -> None:
    assert all(map(reaches, ("1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111")))
    policy = manifests("base")["network.yml"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    names, web = policy["egress"]
    assert {port["port"] for port in web["ports"]} == {80, 443}
    assert {port["port"] for port in names["ports"]} == {53}
    assert all("podSelector" in peer for peer in names["to"])
    (inside,) = policy["ingress"]
    assert {port["port"] for port in inside["ports"]} == {8000}
    assert all("namespaceSelector" in peer for peer in inside["from"])


def test_it_scales_on_series_that_there_are_and_the_adapter_serves_them() -> None:
    scaler = manifests("monitoring")["autoscaler.yml"]["spec"]
    used = {each["pods"]["metric"]["name"] for each in scaler["metrics"]}
    assert used <= {series.name for series in SERIES if series.kind == "gauge"}
    rules = load(K8S / "monitoring" / "adapter-values.yml")["rules"]["custom"]
    assert {re.match(r"\w+", rule["seriesQuery"])[0] for rule in rules} == used
    target = (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"])
    deployment = manifests("base")["deployment.yml"]
    assert target == (deployment["kind"], deployment["metadata"]["name"])
    assert scaler["minReplicas"] >= 2
    down = scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert down > scaler["behavior"]["scaleUp"]["stabilizationWindowSeconds"]


def test_conversations_keep_to_a_pod_and_what_was_sent_is_not_sent_again() -> None:
    told = manifests("base")["ingress.yml"]["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert told[f"{prefix}upstream-hash-by"].startswith("$http_x_session_id")
    assert set(told[f"{prefix}proxy-next-upstream"].split()) == {"error", "timeout"}
    assert told[f"{prefix}proxy-buffering"] == "off"


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_it_and_selectors_find_the_pods(folder: str) -> None:
    find_pods(built(folder), folder)


def test_selectors_find_the_pods_also_without_kustomize() -> None:
    find_pods(manifests("base").values(), "base")


def find_pods(applied: Iterable[Manifest], folder: str) -> None:
    kinds = {manifest["kind"]: manifest for manifest in applied}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    if folder == "gpu":
        assert {"HorizontalPodAutoscaler", "ServiceMonitor"} <= kinds.keys()
        (models,) = [v for v in pod["volumes"] if v["name"] == "models"]
        assert models == {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
        assert environment(container)["LOOKM_EXIT_ON_WORKER_FAILURE"] == "true"
