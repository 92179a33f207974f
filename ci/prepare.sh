#!/usr/bin/env bash
# Sees to what the other scripts need beyond a Rust toolchain: a C linker, setpriv (to run the main job as an ordinary user),
# Chromium (the page that shows a history is tested in it), an OpenCL driver that runs on the CPU, Vulkan's loader and validation
# layer; and, if it can be had, what boots other kernels in an emulated machine, without which kernels.sh says so and tests nothing.
# Installs Debian packages, by name, only where one is missing.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v setpriv >/dev/null || missing+=(util-linux)
[ -n "${CHROMIUM:-}" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing+=(chromium)
compgen -G '/usr/lib*/*/libOpenCL.so.1' >/dev/null || missing+=(ocl-icd-libopencl1)
compgen -G '/etc/OpenCL/vendors/*.icd' >/dev/null || missing+=(pocl-opencl-icd)
# The Vulkan loader, and the layer that checks every call of the tests. The driver is fetched by ci/drivers.sh.
compgen -G '/usr/lib*/*/libvulkan.so.1' >/dev/null || missing+=(libvulkan1)
[ -e /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json ] || missing+=(vulkan-validationlayers)
optional=()
command -v qemu-system-x86_64 >/dev/null || optional+=(qemu-system-x86 seabios)
command -v busybox >/dev/null || optional+=(busybox-static)
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" -ne 0 ]; then
    echo "ci: only root can install what is missing here: ${missing[*]}" >&2
    exit 1
fi
install() {
    apt-get install --yes --no-install-recommends "$@"
}
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update
    install "${missing[@]}"
fi
if [ ${#optional[@]} -gt 0 ]; then
    { [ "$(id -u)" -eq 0 ] && apt-get update && install "${optional[@]}"; } ||
        echo "ci: not installed, so other kernels cannot be tested: ${optional[*]}"
fi
command -v cargo >/dev/null || { echo "ci: no Rust toolchain; install one that has cargo, rustfmt and clippy" >&2; exit 1; }
for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 || rustup component add "${component/fmt/rustfmt}"
done
cargo --version
uname -sr
