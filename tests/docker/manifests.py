"""The Kubernetes manifests, as files and as kustomize puts them together."""

import ipaddress
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.files import DOCKER

K8S = DOCKER / "k8s"
FOLDERS = ("base", "gpu", "monitoring")
OTHERS = {"adapter-values.yml"}  # helm's
CUSTOM = {"ServiceMonitor"}  # kinds that Kubernetes itself does not have

Manifest = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def load(path: Path) -> Manifest:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict), path
    return found


def kustomization(folder: str) -> Manifest:
    return load(K8S / folder / "kustomization.yml")


def manifests(folder: str) -> dict[str, Manifest]:
    """Every manifest file of a folder, patches included."""
    files = (K8S / folder).glob("*.yml")
    return {f.name: load(f) for f in files if f.name not in {"kustomization.yml", *OTHERS}}


def built(folder: str) -> list[Manifest]:
    """What would be applied. Needs kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    run = subprocess.run([kubectl, "kustomize", K8S / folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def pods() -> Iterator[tuple[str, Manifest]]:
    """Each pod that is written out whole, by its file."""
    for name, manifest in manifests("base").items():
        if manifest["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield name, manifest["spec"]["template"]["spec"]


def outside() -> list[tuple[Network, list[Network]]]:
    """The address blocks that pods may reach, each with what is left out of it."""
    policy = manifests("base")["network.yml"]["spec"]
    blocks = [
        peer["ipBlock"] for rule in policy["egress"] for peer in rule["to"] if "ipBlock" in peer
    ]
    network = ipaddress.ip_network
    return [(network(b["cidr"]), [network(e) for e in b.get("except", [])]) for b in blocks]


def reaches(address: str) -> bool:
    """Whether pods may talk to it."""
    ip = ipaddress.ip_address(address)
    return any(ip in block and not any(ip in left for left in out) for block, out in outside())
