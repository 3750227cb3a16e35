"""The manifests against Kubernetes' own schemas: fields that it does not know are mistakes."""

import copy
from typing import Any

import pytest

from tests.docker.manifests import CUSTOM, FOLDERS, built, manifests

pytestmark = pytest.mark.extras

KUSTOMIZE_PATCH = "deployment.yml"  # of gpu: a part of one, valid once it is built


def validate(manifest: Any) -> None:
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(manifest, version, strict=True)


WHOLE = [
    pytest.param(manifest, id=f"{folder}/{name}")
    for folder in FOLDERS
    for name, manifest in manifests(folder).items()
    if manifest["kind"] not in CUSTOM and (folder, name) != ("gpu", KUSTOMIZE_PATCH)
]


@pytest.mark.parametrize("manifest", WHOLE)
def test_a_file_is_what_kubernetes_takes(manifest: Any) -> None:
    validate(manifest)


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_what_is_applied_is_what_kubernetes_takes(folder: str) -> None:
    for manifest in built(folder):
        if manifest["kind"] not in CUSTOM:
            validate(manifest)


def test_a_mistake_is_found() -> None:
    import kubernetes_validate

    wrong = copy.deepcopy(manifests("base")["disruption.yml"])
    wrong["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)
