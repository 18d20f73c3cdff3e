"""The version stands where each tool wants it; what a release forgets fails here."""

import re
import tomllib

import pytest
import yaml
from paths import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MENTIONS = re.compile(r'ghcr\.io/hftitan/[a-z]+:([\w.+-]*\w)|org\.opencontainers\.image\.version="([^"]+)"')
CARRIERS = ("Dockerfile", "Makefile", "charts/hftitan/Chart.yaml", "crds/hftitan_api/pod.py", "crds/hftitanjobs.yaml")


def mentions(path):
    return {tag or label for tag, label in MENTIONS.findall((ROOT / path).read_text())}


@pytest.mark.parametrize("path", CARRIERS)
def test_images_are_named_with_the_version_of_the_distribution(path):
    assert mentions(path) == {VERSION}


def test_the_chart_has_the_version_of_the_distribution():
    chart = yaml.safe_load((ROOT / "charts/hftitan/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
