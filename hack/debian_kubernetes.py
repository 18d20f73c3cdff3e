"""Builds the control plane of Kubernetes 1.20, the oldest supported version, from Debian 12's source package.

It takes four minutes on 2 cores and installs only dpkg-dev. The compiler and etcd are unpacked into a temporary folder.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from programs import Unavailable, command, say

RECIPE = 3
"""Version of this build. A new number causes a new build."""
CODENAME = "bookworm"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def build(work: Path, result: Path) -> None:
    """Build PROGRAMS in `result`. Unavailable: this machine cannot."""
    started = time.monotonic()
    if f"VERSION_CODENAME={CODENAME}" not in Path("/etc/os-release").read_text().splitlines():
        raise Unavailable(f"the build needs Debian {CODENAME}")
    if not shutil.which("dpkg-source"):
        say("installing dpkg-dev")
        command("apt-get", "update", "-qq")
        command("apt-get", "install", "-y", "-qq", "--no-install-recommends", "dpkg-dev", "xz-utils")

    say("downloading Debian's kubernetes sources, Go 1.19 and etcd")
    apt = private_apt(work)
    command(*apt, "update", "-qq", cwd=work)
    packages = ("golang-1.19-go", "golang-1.19-src", "etcd-server", "golang-github-modern-go-reflect2-dev")
    command(*apt, "download", "-qq", *packages, cwd=work)
    for package in work.glob("*.deb"):
        command("dpkg-deb", "-x", str(package), str(work / "root"))
    command(*apt, "source", "-qq", "kubernetes", cwd=work)
    [source] = work.glob("kubernetes-*/")
    tree = work / "go/src/k8s.io/kubernetes"
    tree.parent.mkdir(parents=True)
    source.rename(tree)

    # The vendored reflect2 1.0.1 crashes with Go 1.18 and later.
    reflect2 = tree / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(reflect2)
    shutil.copytree(work / "root/usr/share/gocode/src/github.com/modern-go/reflect2", reflect2)
    # The vendored go-openapi takes "" for null if zero values share one address, as they do since Go 1.17. It would
    # reject an empty string in a custom resource. The source tree contains two copies.
    zero = "data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))"
    for copy in ("github.com/go-openapi", "k8s.io/kube-openapi/pkg/validation"):
        validator = tree / "vendor" / copy / "validate/type.go"
        text = validator.read_text()
        if zero not in text:
            raise Unavailable(f"{copy}/validate/type.go differs from the expected release")
        validator.write_text(text.replace(zero, "data == nil"))

    say("compiling (about four minutes)")
    goroot = work / "root/usr/lib/go-1.19"
    go = {
        "GOROOT": str(goroot), "GOPATH": str(work / "go"), "GOCACHE": str(work / "cache"), "GOTMPDIR": str(work),
        "GO111MODULE": "off", "GOFLAGS": "", "GOENV": "off", "CGO_ENABLED": "0",
    }  # fmt: skip
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith(("GO", "CGO_"))}, **go}
    compiler = str(goroot / "bin/go")
    command(
        compiler, "build", "-o", str(work) + "/", "./vendor/k8s.io/kube-openapi/cmd/openapi-gen", cwd=tree, env=environ
    )
    generate_openapi(work / "openapi-gen", tree, environ)
    flags = f"-s -w {version_flags(source.name.removeprefix('kubernetes-'))}"
    commands = [f"./cmd/{name}" for name in PROGRAMS[1:]]
    command(compiler, "build", "-ldflags", flags, "-o", str(result) + "/", *commands, cwd=tree, env=environ)
    shutil.copy(work / "root/usr/bin/etcd", result / "etcd")
    say(f"built in {time.monotonic() - started:.0f} s")


def generate_openapi(generator: Path, tree: Path, environ: dict[str, str]) -> None:
    """Generate the OpenAPI definitions, the only generated file missing in the source package."""
    marked = {
        path.parent.relative_to(tree)
        for path in tree.rglob("*.go")
        if "_examples" not in path.parts and b"+k8s:openapi-gen=" in path.read_bytes()
    }

    def package(folder: Path) -> str:
        """Return the import path of a folder. vendor/k8s.io links to staging/src/k8s.io."""
        text = re.sub(r"^(vendor|staging/src)/", "", folder.as_posix())
        return text if text != folder.as_posix() else f"k8s.io/kubernetes/{text}"

    command(
        str(generator), "--logtostderr", "-i", ",".join(sorted(map(package, marked))),
        "-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi", "-o", str(tree.parents[1]),
        "-h", "hack/boilerplate/boilerplate.generatego.txt", "-r", os.devnull, cwd=tree, env=environ,
    )  # fmt: skip


def version_flags(package: str) -> str:
    """Return linker flags that set the version. Debian's `1.20.5+really1.20.2` means 1.20.2."""
    version = package.rpartition("+really")[2].partition("-")[0]
    major, minor, _ = version.split(".", 2)
    values = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    places = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X k8s.io/kubernetes/vendor/{p}.{k}={v}" for p in places for k, v in values.items())


def private_apt(work: Path) -> list[str]:
    """Return an apt-get command with separate lists that include sources. It does not change the machine's lists."""
    parts = work / "sources"
    for folder in (parts, work / "lists/partial", work / "archives/partial"):
        folder.mkdir(parents=True)
    one_line, stanzas = "\n".join(list_entries()), "\n\n".join(stanza_entries())
    if not one_line and not stanzas:
        raise Unavailable(f"the apt sources contain no Debian mirror with {CODENAME}")
    (parts / "own.list").write_text(one_line + "\n")
    (parts / "own.sources").write_text(stanzas + "\n")
    options = {
        "Dir::Etc::sourcelist": os.devnull, "Dir::Etc::sourceparts": parts, "Dir::State::lists": work / "lists",
        "Dir::Cache": work, "APT::Sandbox::User": "root",
    }  # fmt: skip
    return ["apt-get", *(f"-o{key}={value}" for key, value in options.items())]


def is_debian(suites: list[str], components: list[str]) -> bool:
    return "main" in components and any(suite.split("-")[0] == CODENAME for suite in suites)


def list_entries() -> Iterator[str]:
    """Yield the lines `deb [options] uri suite component...`, each followed by its deb-src line."""
    for path in ("/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list")):
        for line in Path(path).read_text().splitlines() if os.path.exists(path) else ():
            match = re.match(r"deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip())
            if match and is_debian([match[3]], match[4].split()):
                yield match[0]
                yield match[0].replace("deb", "deb-src", 1)


def stanza_entries() -> Iterator[str]:
    for path in glob.glob("/etc/apt/sources.list.d/*.sources"):
        text = re.sub(r"(?m)^#.*\n?", "", Path(path).read_text())
        for stanza in re.split(r"\n\s*\n", text):
            fields = {k.lower(): v.split() for k, v in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", stanza)}
            if fields.get("enabled") != ["no"] and is_debian(fields.get("suites", []), fields.get("components", [])):
                yield re.sub(r"(?mi)^types:.*$", "Types: deb deb-src", stanza.strip())
