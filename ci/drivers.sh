#!/usr/bin/env bash
# A Vulkan driver that computes right, for the tests, beside the system's and without a change to it. Debian 12 ships Mesa
# 22.3.6, whose lavapipe ends every shader invocation at 65,535 loop iterations; bookworm-backports has 25.0.7. apt fetches it,
# with what it needs beyond what the machine has, from the mirror that the machine's own sources name, with a configuration,
# lists and a cache of its own; it is unpacked into target/drivers. Prints what to export, for `eval "$(ci/drivers.sh)"`:
# nothing where the system's own Mesa is newer.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/drivers
suite=bookworm-backports
package=mesa-vulkan-drivers
wanted=25.0

has=$(dpkg-query --show --showformat='${Version}' "$package" 2>/dev/null || true)
if [ -n "$has" ] && dpkg --compare-versions "$has" ge "$wanted"; then
    echo "ci: the system's own $package is $has" >&2
    exit 0
fi

if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    mkdir -p "$folder"/{apt/lists/partial,apt/archives/partial,root}
    # The first of the machine's sources that has Debian's own suite: whatever their format.
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk '$2 == "bookworm" && $1 ~ "/debian/?$" { print $1; exit }' || true)
    [ -n "$mirror" ] || { echo "ci: this machine's apt sources name no mirror of Debian 12: install $package" >&2; exit 1; }
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || { echo "ci: Debian's keys are missing here: install debian-archive-keyring" >&2; exit 1; }
    for name in bookworm "$suite"; do
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' "$mirror" "$name" "$keyring"
    done >"$folder/apt/all.sources"
    # What the machine has installed counts (dpkg's status is its own); nothing else of its apt is touched. Hooks would tidy its
    # cache; the sandbox's user may not be able to read the build folder.
    cat >"$folder/apt/configuration" <<CONFIGURATION
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
APT::Sandbox::User "root";
Dir::State::lists "$folder/apt/lists";
Dir::State::extended_states "$folder/apt/extended_states";
Dir::Cache "$folder/apt";
Dir::Cache::archives "$folder/apt/archives";
Dir::Etc::sourcelist "$folder/apt/all.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Debug::NoLocking "true";
CONFIGURATION
    own_apt() { LC_ALL=C apt-get --config-file "$folder/apt/configuration" "$@" >&2; }
    own_apt --quiet update
    own_apt --quiet --yes --no-install-recommends --download-only --target-release "$suite" install "$package"
    for file in "$folder"/apt/archives/*.deb; do
        dpkg-deb --extract "$file" "$folder/root"
    done
    # The driver's description names the system's library: here it names the one beside it.
    library=$(find "$folder/root" -name libvulkan_lvp.so -print -quit)
    description=$(find "$folder/root" -name 'lvp_icd*.json' -print -quit)
    [ -n "$library" ] && [ -n "$description" ] || { echo "ci: $package of $suite has no lavapipe" >&2; exit 1; }
    sed "s,\"library_path\": *\"[^\"]*\",\"library_path\": \"$library\"," "$description" >"$folder/lavapipe.json"
    # Of the libraries that came with it, only those that the machine has not, or not new enough, are put in its way.
    mkdir "$folder/lib"
    while lacking=$(LD_LIBRARY_PATH=$folder/lib ldd "$library" 2>&1 | sed -n 's,^[ \t]*\(.*/\)\?\([^/: ]*\).* not found.*,\2,p' | sort -u); [ -n "$lacking" ]; do
        for name in $lacking; do
            file=$(find "$folder/root" -name "$name" -print -quit)
            [ -n "$file" ] && [ ! -e "$folder/lib/$name" ] || { echo "ci: $library lacks $name" >&2; exit 1; }
            ln -s "$file" "$folder/lib/$name"
        done
    done
    rm -rf "$folder/apt/archives" "$folder/apt/lists"
    touch "$folder/complete"
fi
printf 'export VK_DRIVER_FILES=%q\n' "$folder/lavapipe.json"
if [ -n "$(ls "$folder/lib")" ]; then
    printf 'export LD_LIBRARY_PATH=%q\n' "$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
