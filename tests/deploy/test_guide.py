"""The operator's guide says of everything in deploy/ what it is for."""

import re

from tests.deploy.conftest import DEPLOYED, OVERLAYS, REPOSITORY

GUIDE = (REPOSITORY / "docs" / "deployment.md").read_text()


def rows_of(heading: str) -> list[str]:
    """The first column of the table below a heading."""
    section = GUIDE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `?(\w[\w-]*)`? \|", section, re.MULTILINE)[1:]


def test_each_alert_is_explained():
    """In the order of the rules; an alert that is added wants a row."""
    alerts = re.findall(r"^ +- alert: (\w+)$", (DEPLOYED / "forebay.rules.yml").read_text(), re.MULTILINE)
    assert rows_of("When an alert fires") == alerts


def test_each_overlay_is_explained():
    """With what is before its servers, and who decides on replicas."""
    assert sorted(rows_of("Kubernetes")[: len(OVERLAYS)]) == OVERLAYS


def test_numbers_of_the_guide_are_those_of_the_manifests():
    """The end of a pod and the limits of autoscaling are told as they are set."""
    deployment = (REPOSITORY / "deploy" / "kubernetes" / "base" / "deployment.yaml").read_text()
    toml = (REPOSITORY / "deploy" / "kubernetes" / "base" / "forebay.toml").read_text()
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", deployment)
    (delay,) = re.findall(r"drain_delay_s = (\d+)", toml)
    (drain,) = re.findall(r"drain_grace_s = (\d+)", toml)
    assert f"The grace period ({grace} s)" in GUIDE
    assert f"`drain_delay_s` ({delay})" in GUIDE
    assert f"`drain_grace_s` ({drain})" in GUIDE
