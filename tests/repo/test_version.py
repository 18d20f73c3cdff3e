"""All files have the same version. This fails if a release forgets one."""

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
def test_image_tags_have_the_version_of_the_package(path):
    assert mentions(path) == {VERSION}


def test_chart_has_the_version_of_the_package():
    chart = yaml.safe_load((ROOT / "charts/hftitan/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)
