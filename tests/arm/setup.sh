#!/bin/sh
# What `make arm` needs besides a cross compiler and qemu-aarch64: Python 3.11 for ARM from Debian 12's packages,
# unpacked into build/arm/root, and what the kernels' tests import, into build/arm/site. Needs no root, installs nothing.
#
# PyPI's torch for ARM wants CUDA from 2.11 on, so this is the last one without.
set -eu
arm=$(pwd)/build/arm
rm -rf "$arm"
mkdir -p "$arm/apt/lists/partial" "$arm/apt/archives/partial" "$arm/root"
touch "$arm/apt/status"
cat > "$arm/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures {"arm64";};
Dir::State "$arm/apt";
Dir::State::status "$arm/apt/status";
Dir::Cache "$arm/apt";
CONF
export APT_CONFIG="$arm/apt.conf"
apt-get update -qq
apt-get install -qq --yes --download-only --no-install-recommends python3.11 libpython3.11-dev libstdc++6
for package in "$arm"/apt/archives/*.deb; do dpkg-deb --extract "$package" "$arm/root"; done

pip=".venv/bin/pip install -q --disable-pip-version-check"
$pip "nanobind>=2.4" cmake ninja
for_arm="$pip --target $arm/site --platform manylinux_2_28_aarch64 --python-version 3.11 --only-binary=:all:"
$for_arm --no-deps torch==2.10.0
$for_arm filelock fsspec hypothesis jinja2 msgspec "networkx<3.7" numpy pytest sympy typing-extensions
